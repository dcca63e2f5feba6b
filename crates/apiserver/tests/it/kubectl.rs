use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::House;

/// The real kubectl, against one server.
struct Kubectl {
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home);
        command.env("EDITOR", "sed -i s/edited-before/edited-after/").kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str], input: &str) -> (bool, String) {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        let done = tokio::time::timeout(Duration::from_secs(120), child.wait_with_output()).await.unwrap().unwrap();
        let said = if done.status.success() { done.stdout } else { done.stderr };
        (done.status.success(), String::from_utf8(said).unwrap())
    }

    #[track_caller]
    fn did(arguments: &[&str], (well, said): (bool, String)) -> String {
        assert!(well, "kubectl {arguments:?}: {said}");
        said
    }

    async fn ok(&self, arguments: &[&str]) -> String {
        Self::did(arguments, self.run(arguments, "").await)
    }

    async fn apply(&self, options: &[&str], manifest: &str) -> String {
        let arguments = [&["apply", "-f", "-"], options].concat();
        Self::did(&arguments, self.run(&arguments, manifest).await)
    }

    async fn fails(&self, arguments: &[&str]) -> String {
        let (well, said) = self.run(arguments, "").await;
        assert!(!well, "kubectl {arguments:?} was accepted: {said}");
        said
    }
}

async fn is_installed() -> bool {
    let asked = Command::new("kubectl")
        .args(["version", "--client"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    asked.is_ok_and(|status| status.success())
}

async fn kubectl(house: &House, home: &Path) -> Kubectl {
    let at = house.server.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.unwrap();
    let kubeconfig = home.join("kubeconfig");
    std::fs::write(&kubeconfig, house.server.kubeconfig(at)).unwrap();
    Kubectl { kubeconfig, home: home.to_owned() }
}

#[tokio::test]
async fn kubectl_does_a_days_work() {
    if !is_installed().await {
        println!("skipped: there is no kubectl on the PATH");
        return;
    }
    let house = House::open().await;
    let home = tempfile::tempdir().unwrap();
    let k = kubectl(&house, home.path()).await;

    assert!(k.ok(&["version"]).await.contains("Server Version: v1.34."));
    assert_eq!(k.ok(&["create", "namespace", "work"]).await, "namespace/work created\n");
    assert_eq!(
        k.ok(&["-n", "work", "create", "secret", "generic", "s", "--from-literal=p=hunter2"]).await,
        "secret/s created\n"
    );
    assert_eq!(
        k.ok(&["-n", "work", "create", "configmap", "c", "--from-literal=a=edited-before"]).await,
        "configmap/c created\n"
    );
    assert_eq!(k.ok(&["-n", "work", "get", "secret", "s", "-o", "jsonpath={.data.p}"]).await, "aHVudGVyMg==");
    let table = k.ok(&["-n", "work", "get", "cm", "c"]).await;
    assert_eq!(table.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(), ["NAME", "DATA", "AGE"]);
    assert!(k.ok(&["-n", "work", "get", "cm", "c", "-o", "wide"]).await.contains("c "));
    assert!(k.ok(&["-n", "work", "get", "cm", "c", "-o", "yaml"]).await.contains("a: edited-before"));
    assert!(k.ok(&["-n", "work", "describe", "cm", "c"]).await.contains("edited-before"));
    k.ok(&["-n", "work", "edit", "cm", "c"]).await;
    assert_eq!(k.ok(&["-n", "work", "get", "cm", "c", "-o", "jsonpath={.data.a}"]).await, "edited-after");

    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: work}\ndata: {k: v}\n";
    assert_eq!(k.apply(&[], manifest).await, "configmap/a created\n");
    assert_eq!(k.apply(&[], manifest).await, "configmap/a unchanged\n");
    assert_eq!(k.apply(&[], &manifest.replace("{k: v}", "{k: w}")).await, "configmap/a configured\n");
    let manifest = manifest.replace("name: a", "name: b");
    for _ in 0..2 {
        assert_eq!(k.apply(&["--server-side"], &manifest).await, "configmap/b serverside-applied\n");
    }
    let (well, said) = k.run(&["apply", "-f", "-"], &manifest.replace("\ndata:", "\ndtaa:")).await;
    assert!(!well && said.contains(r#"unknown field "dtaa""#), "{said}");

    assert!(k.ok(&["explain", "pod.spec.containers.image"]).await.contains("Container image name"));
    assert!(k.ok(&["explain", "deployment.spec.template.spec"]).await.contains("<[]Container>"));
    assert!(k.ok(&["api-resources"]).await.contains("deployments"));
    assert!(k.ok(&["-n", "work", "create", "deployment", "d", "--image=x", "--replicas=0"]).await.contains("created"));
    assert!(k.ok(&["-n", "work", "scale", "deployment", "d", "--replicas=2"]).await.contains("scaled"));
    assert!(k.ok(&["-n", "work", "set", "image", "deploy/d", "x=y"]).await.contains("image updated"));
    assert!(k.ok(&["-n", "work", "get", "all"]).await.contains("deployment.apps/d"));

    watch(&k).await;
    wait(&k).await;

    assert_eq!(k.ok(&["-n", "work", "delete", "cm", "c"]).await, "configmap \"c\" deleted\n");
    assert!(k.fails(&["-n", "work", "get", "cm", "c"]).await.contains("(NotFound)"));
    assert!(k.ok(&["delete", "namespace", "work", "--timeout=60s"]).await.contains("deleted"));
    assert!(k.fails(&["get", "namespace", "work"]).await.contains("(NotFound)"));
}

async fn watch(k: &Kubectl) {
    let format = "jsonpath={.type} {.object.data.k}{\"\\n\"}";
    let mut watching = k
        .command(&["-n", "work", "get", "cm", "a", "--watch", "--output-watch-events", "-o", format])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next =
        async || tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(next().await, "ADDED w");
    k.ok(&["-n", "work", "patch", "cm", "a", "-p", r#"{"data":{"k":"1"}}"#]).await;
    assert_eq!(next().await, "MODIFIED 1");
    k.ok(&["-n", "work", "delete", "cm", "a"]).await;
    assert_eq!(next().await, "DELETED 1");
    watching.kill().await.unwrap();
}

async fn wait(k: &Kubectl) {
    let waiting = ["-n", "work", "wait", "cm/b", "--for=jsonpath={.data.k}=done", "--timeout=60s"];
    let change = ["-n", "work", "patch", "cm", "b", "-p", r#"{"data":{"k":"done"}}"#];
    let (waited, _) = tokio::join!(k.ok(&waiting), k.ok(&change));
    assert_eq!(waited, "configmap/b condition met\n");
}
