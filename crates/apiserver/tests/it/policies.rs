//! Admission policies in CEL.

use serde_json::{Value, json};

use crate::{CONFIG_MAPS, House, config_map};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

/// A policy about new ConfigMaps in `default`.
pub(crate) fn policy(name: &str, spec: &Value) -> Value {
    let mut all = json!({"matchConstraints": {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        "objectSelector": {"matchExpressions": [{"key": "unasked", "operator": "DoesNotExist"}]},
        "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
    }});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": all})
}

pub(crate) fn binding(name: &str, policy: &str, spec: &Value) -> Value {
    let mut all = json!({"policyName": policy, "validationActions": ["Deny"]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": all})
}

impl House {
    pub(crate) async fn bound(&self, name: &str, spec: &Value, bound: &Value) {
        self.post(&format!("{GROUP}/validatingadmissionpolicies"), &policy(name, spec)).await.is(201);
        let binding = binding(name, name, bound);
        self.post(&format!("{GROUP}/validatingadmissionpolicybindings"), &binding).await.is(201);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_holds_where_it_is_bound_with_the_parameters_of_its_binding() {
    let house = House::open().await;
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "Secret"},
        "variables": [
            {"name": "words", "expression": "object.metadata.name.split('-')"},
            {"name": "count", "expression": "variables.words.size()"},
            {"name": "broken", "expression": "object.none"},
        ],
        "validations": [{
            "expression": "variables.count <= int(params.metadata.labels.words) || variables.broken",
            "messageExpression": "'composited of ' + string(variables.count) + ' words'",
        }],
    });
    house
        .post(
            "/api/v1/namespaces/default/secrets",
            &json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "limit", "labels": {"words": "2"}}}),
        )
        .await
        .is(201);
    let bound = json!({"paramRef": {"name": "limit", "parameterNotFoundAction": "Deny"}});
    house.bound("words", &spec, &bound).await;
    house.post(CONFIG_MAPS, &config_map("a-b", json!({}))).await.is(201);
    // A variable that fails is an error only for who looks at it.
    let refused = house.post(CONFIG_MAPS, &config_map("a-b-c", json!({}))).await;
    let said = "configmaps \"a-b-c\" is forbidden: ValidatingAdmissionPolicy 'words' with binding 'words' denied request: expression 'variables.count <= int(params.metadata.labels.words) || variables.broken' resulted in error: composited variable \"broken\" fails to evaluate: no such key: none";
    assert_eq!(refused.message(), said);
    assert_eq!(refused.code, 422);
    // What the parameters say now is what counts.
    let wider = json!({"metadata": {"labels": {"words": "3"}}});
    house.patch("/api/v1/namespaces/default/secrets/limit", "merge", &wider).await.is(200);
    house.post(CONFIG_MAPS, &config_map("a-b-c", json!({}))).await.is(201);
    house.delete("/api/v1/namespaces/default/secrets/limit").await.is(200);
    let refused = house.post(CONFIG_MAPS, &config_map("a", json!({}))).await.message();
    assert!(refused.ends_with("no params found for policy binding with `Deny` parameterNotFoundAction"), "{refused}");
    house.delete(&format!("{GROUP}/validatingadmissionpolicybindings/words")).await.is(200);
    house.post(CONFIG_MAPS, &config_map("a", json!({}))).await.is(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_does_not_end_refuses_and_is_bounded_from_the_beginning() {
    let house = House::open().await;
    let lists = "[0,1,2,3,4,5,6,7,8,9]";
    let endless = (0..8).fold("true".to_owned(), |inner, at| format!("{lists}.all(x{at}, {inner})"));
    house.bound("endless", &json!({"validations": [{"expression": endless}]}), &json!({})).await;
    let refused = house.post(CONFIG_MAPS, &config_map("a", json!({}))).await;
    assert!(refused.message().contains("denied request: expression '[0,1,2"), "{}", refused.text);
    assert!(refused.message().ends_with("operation cancelled: actual cost limit exceeded"), "{}", refused.text);
    assert_eq!(refused.code, 422);

    let variables: Vec<Value> = (0..257).map(|at| json!({"name": format!("v{at}"), "expression": "1"})).collect();
    let many = policy("many", &json!({"variables": variables, "validations": [{"expression": "true"}]}));
    let refused = house.post(&format!("{GROUP}/validatingadmissionpolicies"), &many).await;
    assert!(
        refused.message().ends_with("spec.variables: Too many: 257: must have at most 256 items"),
        "{}",
        refused.text
    );
    // A chain of all that are allowed is evaluated, and a name that is given twice means what was before.
    let mut chain: Vec<Value> = vec![json!({"name": "v0", "expression": "1"})];
    chain.extend(
        (1..255).map(|at| json!({"name": format!("v{at}"), "expression": format!("variables.v{} + 1", at - 1)})),
    );
    chain.push(json!({"name": "v254", "expression": "variables.v254 + 1"}));
    house.delete(&format!("{GROUP}/validatingadmissionpolicybindings/endless")).await.is(200);
    let spec = json!({"variables": chain, "validations": [{"expression": "variables.v254 == 256"}]});
    house.bound("chain", &spec, &json!({})).await;
    house.post(CONFIG_MAPS, &config_map("a", json!({}))).await.is(201);
}

#[tokio::test]
async fn who_refers_to_parameters_must_be_able_to_read_them() {
    let house = House::open().await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "policies"},
        "rules": [{"apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]});
    house.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await.is(201);
    let granted = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "policies"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "policies"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]});
    house.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &granted).await.is(201);
    let jane = async |path: &str, object: &Value| {
        let headers = [("content-type", "application/json"), ("impersonate-user", "jane")];
        house.send(http::Method::POST, &format!("{GROUP}/{path}"), &headers, object.to_string()).await
    };
    let about = |name: &str, kind: &str| {
        policy(name, &json!({"paramKind": {"apiVersion": "v1", "kind": kind}, "validations": [{"expression": "true"}]}))
    };
    jane("validatingadmissionpolicies", &about("maps", "ConfigMap")).await.is(201);
    let refused = jane("validatingadmissionpolicies", &about("secrets", "Secret")).await;
    let said = "spec.paramKind: Forbidden: user &{jane  [system:authenticated] map[]} must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)";
    assert!(refused.message().ends_with(said), "{}", refused.text);
    house.post(&format!("{GROUP}/validatingadmissionpolicies"), &about("secrets", "Secret")).await.is(201);
    let named = json!({"paramRef": {"name": "s", "namespace": "default", "parameterNotFoundAction": "Deny"}});
    let refused = jane("validatingadmissionpolicybindings", &binding("secrets", "secrets", &named)).await;
    assert!(
        refused.message().contains(
            "spec.paramRef: Forbidden: user &{jane  [system:authenticated] map[]} does not have \"get\" permission"
        ),
        "{}",
        refused.text
    );
    jane("validatingadmissionpolicybindings", &binding("maps", "maps", &named)).await.is(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_asks_what_the_user_and_a_service_account_may() {
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let house = House::open().await;
    let grant = async |name: &str, verb: &str, subjects: Value| {
        let role = json!({"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": [verb]}]});
        house.post(&format!("{ROLES}/roles"), &role).await.is(201);
        let granted = json!({"metadata": {"name": name}, "subjects": subjects,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}});
        house.post(&format!("{ROLES}/rolebindings"), &granted).await.is(201);
    };
    let jane = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]);
    grant("create", "create", jane.clone()).await;
    let spec = json!({
        "matchConditions": [{"name": "known", "expression": "authorizer.requestResource.check('create').allowed()"}],
        "validations": [
            {"expression": "authorizer.requestResource.check('delete').allowed()", "message": "who makes must tidy"},
            {"expression": "authorizer.serviceAccount('default', 'sweeper').group('').resource('configmaps').namespace('default').check('delete').allowed()",
                "message": "somebody must sweep"},
        ],
    });
    house.bound("tidy", &spec, &json!({})).await;
    let create = async |name: &str| {
        let map = config_map(name, json!({})).to_string();
        let headers = [("content-type", "application/json"), ("impersonate-user", "jane")];
        house.send(http::Method::POST, CONFIG_MAPS, &headers, map).await
    };
    let refused = create("a").await;
    assert!(refused.message().ends_with("denied request: who makes must tidy"), "{}", refused.text);
    grant("delete", "delete", jane).await;
    let refused = create("a").await;
    assert!(refused.message().ends_with("denied request: somebody must sweep"), "{}", refused.text);
    grant("sweep", "delete", json!([{"kind": "ServiceAccount", "name": "sweeper"}])).await;
    create("a").await.is(201);

    // No expression asks without end.
    let many =
        json!({"validations": [{"expression": "[1, 2, 3].all(x, authorizer.path('/x').check('get').allowed())"}]});
    house.bound("many", &many, &json!({})).await;
    let refused = house.post(CONFIG_MAPS, &config_map("b", json!({}))).await;
    assert!(refused.message().ends_with("operation cancelled: actual cost limit exceeded"), "{}", refused.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_says_what_is_wrong_with_it_by_the_types_of_what_it_is_about() {
    let house = House::open().await;
    let policies = format!("{GROUP}/validatingadmissionpolicies");
    let about = |name: &str, group: &str, plural: &str, validations: Value| {
        let rule =
            json!({"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [plural]});
        policy(name, &json!({"matchConstraints": {"resourceRules": [rule]}, "validations": validations}))
    };
    let checked = async |name: &str, generation: i64| {
        let of = house.becomes(&policies, name, |it| it["status"]["observedGeneration"] == generation).await;
        let mut status = of["status"].clone();
        status["typeChecking"]["expressionWarnings"].take()
    };
    let confused = json!([{
        "expression": "object.spec.replicas > '1'",
        "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas",
    }]);
    house.post(&policies, &about("confused", "apps", "deployments", confused)).await.is(201);
    let warnings = json!([
        {"fieldRef": "spec.validations[0].expression", "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^\n"},
        {"fieldRef": "spec.validations[0].messageExpression", "warning": "apps/v1, Kind=Deployment: ERROR: <input>:1:28: found no matching overload for '_+_' applied to '(string, int)'\n | 'wants replicas > 1, got ' + object.spec.replicas\n | ...........................^\n"},
    ]);
    assert_eq!(checked("confused", 1).await, warnings);
    // What is right has nothing to say, and says that it was looked at.
    let right = json!({"spec": {"validations": [{"expression": "object.spec.replicas > 1"}]}});
    house.patch(&format!("{policies}/confused"), "merge", &right).await.is(200);
    assert_eq!(checked("confused", 2).await, Value::Null);

    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "replicas": {"type": "integer"}, "free": {"x-kubernetes-preserve-unknown-fields": true},
    }}}});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crontabs.stable.example.com"}, "spec": {"group": "stable.example.com", "versions": [version],
            "scope": "Namespaced", "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab"}}});
    house.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await.is(201);
    let confused = json!([{"expression": "object.spec.replicas > 1"}, {"expression": "object.spec.maxRetries < 10"}]);
    house.post(&policies, &about("custom", "stable.example.com", "crontabs", confused)).await.is(201);
    let said = "stable.example.com/v1, Kind=CronTab: ERROR: <input>:1:12: undefined field 'maxRetries'\n | object.spec.maxRetries < 10\n | ...........^\n";
    assert_eq!(checked("custom", 1).await, json!([{"fieldRef": "spec.validations[1].expression", "warning": said}]));

    // What would not fit is cut short.
    let long = format!("object.none == '{}'", "x".repeat(5_000));
    let many: Vec<Value> = (0..100).map(|_| json!({"expression": long})).collect();
    house.post(&policies, &about("many", "", "pods", json!(many))).await.is(201);
    let told = checked("many", 1).await.as_array().unwrap().len();
    assert!((40..60).contains(&told), "{told}");
}
