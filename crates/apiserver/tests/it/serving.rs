use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use apiserver::Data;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::House;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": "v"}})).unwrap()
}

#[tokio::test]
async fn a_client_with_the_kubeconfig_is_the_administrator() {
    let house = House::open().await;
    let at = house.server.listen(ANY).await.unwrap();
    let client = client(&house.server.kubeconfig(at)).await;
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let made = api.create(&PostParams::default(), &config_map("c")).await.unwrap();
    assert_eq!(made.data.unwrap()["k"], "v");
    assert!(!api.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_stranger_gets_health_and_nothing_else() {
    let house = House::open().await;
    let at = house.server.listen(ANY).await.unwrap();
    let mut kubeconfig = Kubeconfig::from_yaml(&house.server.kubeconfig(at)).unwrap();
    let user = kubeconfig.auth_infos[0].auth_info.as_mut().unwrap();
    user.client_certificate_data = None;
    user.client_key_data = None;
    let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await.unwrap();
    let stranger = Client::try_from(config).unwrap();
    let refused = Api::<Namespace>::all(stranger.clone()).list(&ListParams::default()).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("{refused}") };
    let said = r#"namespaces is forbidden: User "system:anonymous" cannot list resource "namespaces" in API group "" at the cluster scope"#;
    assert_eq!((status.code, status.message.as_str()), (403, said));
    let health = http::Request::get("/readyz").body(Vec::new()).unwrap();
    assert_eq!(stranger.request_text(health).await.unwrap(), "ok");
    kubeconfig.auth_infos[0].auth_info.as_mut().unwrap().token = Some("nonsense".to_owned().into());
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let refused =
        Api::<Namespace>::all(Client::try_from(config).unwrap()).list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 401), "{refused}");
}

#[tokio::test]
async fn objects_and_kubeconfig_outlive_the_process() {
    let home = tempfile::tempdir().unwrap();
    let house = House::on(Data::Dir(home.path().to_owned())).await;
    let at = house.server.listen(ANY).await.unwrap();
    let kubeconfig = house.server.kubeconfig(at);
    let api: Api<ConfigMap> = Api::default_namespaced(client(&kubeconfig).await);
    api.create(&PostParams::default(), &config_map("c")).await.unwrap();
    house.tasks.end().await;
    drop(house);
    for key in ["ca.key", "apiserver.key", "admin.key"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(home.path().join("pki").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let house = House::on(Data::Dir(home.path().to_owned())).await;
    // Its port may be somebody else's by now.
    let again = house.server.listen(ANY).await.unwrap();
    let kubeconfig = kubeconfig.replace(&at.to_string(), &again.to_string());
    let api: Api<ConfigMap> = Api::default_namespaced(client(&kubeconfig).await);
    assert_eq!(api.get("c").await.unwrap().data.unwrap()["k"], "v");
    house.tasks.end().await;
}

#[tokio::test]
async fn who_says_nothing_or_rubbish_disturbs_nobody_and_the_server_ends() {
    let house = House::open().await;
    let at = house.server.listen(ANY).await.unwrap();
    let silent = tokio::net::TcpStream::connect(at).await.unwrap();
    let mut rude = tokio::net::TcpStream::connect(at).await.unwrap();
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = rude.read_to_end(&mut answer).await;
    let api: Api<ConfigMap> = Api::default_namespaced(client(&house.server.kubeconfig(at)).await);
    let busy = house.server.listen(at).await.unwrap_err();
    assert!(busy.to_string().starts_with("cannot listen on 127.0.0.1:"), "{busy}");
    api.create(&PostParams::default(), &config_map("c")).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), house.tasks.end()).await.expect("a silent client holds the server");
    drop(silent);
}
