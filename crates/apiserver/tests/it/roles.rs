use apiserver::Data;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::{Value, json};

use crate::{Answer, House};

const GROUP: &str = "rbac.authorization.k8s.io";
const CLUSTER: &str = "/apis/rbac.authorization.k8s.io/v1";
const DEFAULT: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn role(kind: &str, name: &str, rules: &[Value]) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": name}, "rules": rules})
}

fn binding(kind: &str, name: &str, (to, role): (&str, &str), user: &str) -> Value {
    json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": {"name": name},
        "roleRef": {"apiGroup": GROUP, "kind": to, "name": role},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": user}]})
}

impl House {
    /// Asks as another, with a JSON body.
    async fn jane(&self, method: Method, path: &str, body: &Value) -> Answer {
        let media_type = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        self.send(method, path, &[("impersonate-user", "jane"), ("content-type", media_type)], body.to_string()).await
    }

    /// Waits until an object has rules as they should be.
    async fn rules(&self, collection: &str, name: &str, fit: impl Fn(&Value) -> bool) {
        let path = format!("{collection}?watch=1&timeoutSeconds=60&fieldSelector=metadata.name%3D{name}");
        let mut body = self.client.send(Request::get(&path).body(Body::empty()).unwrap()).await.unwrap().into_body();
        let mut seen = String::new();
        loop {
            let frame = body.frame().await.unwrap_or_else(|| panic!("no such rules: {seen}")).unwrap();
            seen.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
            let mut events = seen.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if events.next_back().is_some_and(|event| event["type"] != "DELETED" && fit(&event["object"]["rules"])) {
                return;
            }
        }
    }

    async fn give(&self, rules: &[Value]) {
        self.post(&format!("{DEFAULT}/roles"), &role("Role", "janes", rules)).await.is(201);
        let given = binding("RoleBinding", "janes", ("Role", "janes"), "jane");
        self.post(&format!("{DEFAULT}/rolebindings"), &given).await.is(201);
    }
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let house = House::open().await;
    let writes = ["create", "update", "patch"];
    house
        .give(&[rule(&[GROUP], &["roles", "rolebindings"], &writes), rule(&[""], &["configmaps"], &["get", "list"])])
        .await;
    let (roles, bindings) = (format!("{DEFAULT}/roles"), format!("{DEFAULT}/rolebindings"));
    let user =
        r#"user "jane" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:"#;

    let named = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"], "resourceNames": ["a"]});
    let more = role("Role", "more", &[rule(&["", "apps"], &["configmaps", "deployments"], &["get", "watch"]), named]);
    let refused = house.jane(Method::POST, &roles, &more).await;
    let lacking = [
        r#"{APIGroups:[""], Resources:["configmaps"], Verbs:["watch"]}"#,
        r#"{APIGroups:[""], Resources:["deployments"], Verbs:["get" "watch"]}"#,
        r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["a"], Verbs:["get" "list"]}"#,
        r#"{APIGroups:["apps"], Resources:["configmaps"], Verbs:["get" "watch"]}"#,
        r#"{APIGroups:["apps"], Resources:["deployments"], Verbs:["get" "watch"]}"#,
    ]
    .join("\n");
    let said = format!("roles.{GROUP} \"more\" is forbidden: {user}\n{lacking}");
    assert_eq!((refused.code, refused.message()), (403, said));

    let same = role("Role", "same", &[rule(&[""], &["configmaps"], &["get"])]);
    house.jane(Method::POST, &roles, &same).await.is(201);
    let grow = json!({"rules": [rule(&[""], &["configmaps"], &["get", "delete"])]});
    let refused = house.jane(Method::PATCH, &format!("{roles}/same"), &grow).await;
    assert!(refused.code == 403 && refused.message().ends_with(r#"Verbs:["delete"]}"#), "{}", refused.text);
    let applied = role("Role", "new", &[rule(&["*"], &["*"], &["*"])]).to_string();
    let headers = [("impersonate-user", "jane"), ("content-type", "application/apply-patch+yaml")];
    let refused = house.send(Method::PATCH, &format!("{roles}/new?fieldManager=m"), &headers, applied).await;
    assert_eq!(refused.code, 403, "{}", refused.text);
    assert_eq!(house.get(&format!("{roles}/new")).await.code, 404);

    let admin = binding("RoleBinding", "b", ("ClusterRole", "cluster-admin"), "jane");
    let refused = house.jane(Method::POST, &bindings, &admin).await;
    let all = "{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}\n{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}";
    let said = format!("rolebindings.{GROUP} \"b\" is forbidden: {user}\n{all}");
    assert_eq!((refused.code, refused.message()), (403, said));
    let absent = house.jane(Method::POST, &bindings, &binding("RoleBinding", "b", ("Role", "absent"), "jane")).await;
    assert_eq!((absent.code, absent.message()), (404, format!("rolebindings.{GROUP} \"absent\" not found")));
    house.jane(Method::POST, &bindings, &binding("RoleBinding", "fine", ("Role", "same"), "joe")).await.is(201);

    // What nobody gains by may be changed on a role that grants more than one has.
    house.post(&roles, &role("Role", "great", &[rule(&["*"], &["*"], &["*"])])).await.is(201);
    let finalizers = json!({"metadata": {"finalizers": ["example.com/f"]}});
    house.jane(Method::PATCH, &format!("{roles}/great"), &finalizers).await.is(200);
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(house.jane(Method::PATCH, &format!("{roles}/great"), &labels).await.code, 403);

    let bind =
        json!({"apiGroups": [GROUP], "resources": ["clusterroles"], "verbs": ["bind"], "resourceNames": ["view"]});
    let escalate = rule(&[GROUP], &["roles"], &["create", "escalate"]);
    let both = rule(&[GROUP], &["rolebindings"], &["create"]);
    house.put(&format!("{roles}/janes"), &role("Role", "janes", &[bind, escalate, both])).await.is(200);
    house.jane(Method::POST, &roles, &more).await.is(201);
    house.jane(Method::POST, &bindings, &binding("RoleBinding", "v", ("ClusterRole", "view"), "jane")).await.is(201);
    assert_eq!(house.jane(Method::POST, &bindings, &admin).await.code, 403);
    assert_eq!(
        house.jane(Method::GET, "/api/v1/namespaces/default/pods", &json!(null)).await.code,
        200,
        "a viewer now"
    );
}

#[tokio::test]
async fn a_short_role_that_stands_for_millions_of_rules_holds_nobody_up() {
    let house = House::open().await;
    house.give(&[rule(&[GROUP], &["roles", "rolebindings"], &["create"])]).await;
    let names: Vec<String> = (0..300).map(|at| format!("n{at}")).collect();
    let many = json!({"apiGroups": names, "resources": names, "verbs": names, "resourceNames": names});
    let many = role("Role", "many", &[many]);
    let roles = format!("{DEFAULT}/roles");
    let refused = house.jane(Method::POST, &roles, &many).await;
    assert!(refused.code == 403 && refused.message().contains("more than 50000 combinations"), "{}", refused.text);
    // Nor when it is there and somebody binds it.
    house.post(&roles, &many).await.is(201);
    let bound = binding("RoleBinding", "b", ("Role", "many"), "jane");
    assert_eq!(house.jane(Method::POST, &format!("{DEFAULT}/rolebindings"), &bound).await.code, 403);
}

#[tokio::test]
async fn a_change_is_in_force_that_the_window_of_events_has_lost() {
    let house = House::open().await;
    let see = rule(&[""], &["configmaps"], &["list"]);
    house.give(&[see]).await;
    assert_eq!(house.jane(Method::GET, crate::CONFIG_MAPS, &Value::Null).await.code, 200);
    house.delete(&format!("{DEFAULT}/rolebindings/janes")).await.is(200);
    let large = json!({"k": "x".repeat(1_000_000)});
    for at in 0..18 {
        house.post(crate::CONFIG_MAPS, &crate::config_map(&format!("c{at}"), large.clone())).await.is(201);
    }
    assert_eq!(house.jane(Method::GET, crate::CONFIG_MAPS, &Value::Null).await.code, 403);
    house
        .post(&format!("{DEFAULT}/rolebindings"), &binding("RoleBinding", "b", ("Role", "janes"), "jane"))
        .await
        .is(201);
    assert_eq!(house.jane(Method::GET, &format!("{}?limit=1", crate::CONFIG_MAPS), &Value::Null).await.code, 200);
}

#[tokio::test]
async fn a_role_that_gathers_others_takes_a_master_and_follows_them() {
    let house = House::open().await;
    let path = format!("{CLUSTER}/clusterroles");
    let bind = binding("ClusterRoleBinding", "janes", ("ClusterRole", "janes"), "jane");
    house.post(&path, &role("ClusterRole", "janes", &[rule(&[GROUP], &["clusterroles"], &["create"])])).await.is(201);
    house.post(&format!("{CLUSTER}/clusterrolebindings"), &bind).await.is(201);
    let mut gathers = role("ClusterRole", "all", &[]);
    gathers["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"part": "yes"}}]});
    let refused = house.jane(Method::POST, &path, &gathers).await;
    let said = format!(
        "clusterroles.{GROUP} \"all\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
    );
    assert_eq!((refused.code, refused.message()), (403, said));
    house.post(&path, &gathers).await.is(201);

    let mut part = role("ClusterRole", "part", &[rule(&["x.io"], &["things"], &["get"])]);
    part["metadata"]["labels"] = json!({"part": "yes"});
    house.post(&path, &part).await.is(201);
    house.rules(&path, "all", |rules| *rules == part["rules"]).await;
    house.delete(&format!("{path}/part")).await.is(200);
    house.rules(&path, "all", Value::is_null).await;
}

#[tokio::test]
async fn what_kubernetes_grants_by_itself_is_there_and_mended_at_a_start() {
    let home = tempfile::tempdir().unwrap();
    let house = House::on(Data::Dir(home.path().to_owned())).await;
    for (plural, count) in [("clusterroles", 68), ("clusterrolebindings", 49), ("roles", 7), ("rolebindings", 7)] {
        let all = house.get(&format!("{CLUSTER}/{plural}")).await.is(200);
        assert_eq!(all["items"].as_array().unwrap().len(), count, "{plural}");
    }
    let of = async |house: &House, name: &str| house.get(&format!("{CLUSTER}/clusterroles/{name}")).await.is(200);
    let basic = of(&house, "system:basic-user").await;
    let change = async |name: &str, change: Value| {
        house.patch(&format!("{CLUSTER}/clusterroles/{name}"), "merge", &change).await.is(200);
    };
    change("system:basic-user", json!({"rules": []})).await;
    let left = json!({"rbac.authorization.kubernetes.io/autoupdate": "false"});
    change("system:discovery", json!({"rules": [], "metadata": {"annotations": left}})).await;
    house.delete(&format!("{CLUSTER}/clusterrolebindings/system:basic-user")).await.is(200);
    house.delete(&format!("{CLUSTER}/clusterroles/view")).await.is(200);
    assert_eq!(house.jane(Method::GET, "/api", &json!(null)).await.code, 403);
    house.tasks.end().await;
    drop(house);

    let house = House::on(Data::Dir(home.path().to_owned())).await;
    let roles = format!("{CLUSTER}/clusterroles");
    house.rules(&roles, "view", Value::is_array).await;
    house.rules(&roles, "system:basic-user", Value::is_array).await;
    let mended = of(&house, "system:basic-user").await;
    assert_eq!(mended["metadata"]["labels"], basic["metadata"]["labels"]);
    house.rules(&format!("{CLUSTER}/clusterrolebindings"), "system:basic-user", Value::is_null).await;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    house.jane(Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await.is(201);
    assert_eq!(house.jane(Method::GET, "/api", &json!(null)).await.code, 403, "it was to be left alone");
    house.tasks.end().await;
}

#[tokio::test]
async fn who_may_impersonate_one_may_not_impersonate_another() {
    let house = House::open().await;
    let named = |resource: &str, group: &str, name: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": ["impersonate"], "resourceNames": [name]});
    let authentication = "authentication.k8s.io";
    let rules = [
        named("users", "", "joe"),
        named("groups", "", "readers"),
        named("uids", authentication, "u1"),
        named("userextras/scope", authentication, "view"),
        named("serviceaccounts", "", "bot"),
    ];
    house.post(&format!("{CLUSTER}/clusterroles"), &role("ClusterRole", "acts", &rules)).await.is(201);
    let mut bound = binding("ClusterRoleBinding", "acts", ("ClusterRole", "acts"), "");
    bound["subjects"] = json!([{"kind": "ServiceAccount", "name": "actor", "namespace": "default"}]);
    house.post(&format!("{CLUSTER}/clusterrolebindings"), &bound).await.is(201);
    let actor = crate::tokens::bearer(&house, "actor").await;
    let ask = async |headers: &[(&str, &str)]| {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).to_string();
        let headers = [headers, &[("content-type", "application/json")]].concat();
        crate::send(&actor, Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &headers, review).await
    };
    let joe = ("impersonate-user", "joe");
    let whole = [joe, ("impersonate-group", "readers"), ("impersonate-uid", "u1"), ("impersonate-extra-scope", "view")];
    let info = json!({"username": "joe", "uid": "u1", "groups": ["readers", "system:authenticated"], "extra": {"scope": ["view"]}});
    assert_eq!(ask(&whole).await.is(201)["status"]["userInfo"], info);
    for (headers, said) in [
        (
            vec![("impersonate-user", "jim")],
            "users \"jim\" is forbidden: User \"system:serviceaccount:default:actor\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        ),
        (
            vec![joe, ("impersonate-group", "writers")],
            "groups \"writers\" is forbidden: User \"system:serviceaccount:default:actor\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope",
        ),
        (
            vec![joe, ("impersonate-uid", "u2")],
            "uids.authentication.k8s.io \"u2\" is forbidden: User \"system:serviceaccount:default:actor\" cannot impersonate resource \"uids\" in API group \"authentication.k8s.io\" at the cluster scope",
        ),
        (
            vec![joe, ("impersonate-extra-scope", "edit")],
            "userextras.authentication.k8s.io \"edit\" is forbidden: User \"system:serviceaccount:default:actor\" cannot impersonate resource \"userextras/scope\" in API group \"authentication.k8s.io\" at the cluster scope",
        ),
        (
            vec![("impersonate-user", "system:serviceaccount:default:other")],
            "serviceaccounts \"other\" is forbidden: User \"system:serviceaccount:default:actor\" cannot impersonate resource \"serviceaccounts\" in API group \"\" in the namespace \"default\"",
        ),
    ] {
        let refused = ask(&headers).await;
        assert_eq!((refused.code, refused.message().as_str()), (403, said));
    }
    let bot = ask(&[("impersonate-user", "system:serviceaccount:default:bot")]).await.is(201);
    assert_eq!(bot["status"]["userInfo"]["groups"][1], "system:serviceaccounts:default");
}
