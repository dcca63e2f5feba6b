//! A pod's service account and tolerations: upstream's admission plugins `ServiceAccount` and `DefaultTolerationSeconds`.

use serde_json::{Map, Value, json};

use crate::object::status::Problem;
use crate::store::Key;
use crate::verbs::{Call, create, meta};

/// Where a container finds its token.
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds; with the seven that let a client notice that it is one of these.
const TOKEN_LIFE: u64 = 3607;
/// Seconds that a pod stays on a node that is lost.
const STAY: u64 = 300;

/// Gives a new pod its account, and its containers the account's token unless pod or account want none.
pub(super) fn admit(call: &Call, pod: &str, spec: &mut Map<String, Value>) -> Result<(), Problem> {
    if spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default().is_empty() {
        spec.insert("serviceAccountName".into(), json!("default"));
        spec.insert("serviceAccount".into(), json!("default"));
    }
    let name = spec.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default().to_owned();
    let key = Key::new("", "serviceaccounts", call.namespace.as_str(), name.as_str());
    let Some(account) = call.core.store.get(&key) else {
        let why =
            format!("error looking up service account {}/{name}: serviceaccount {name:?} not found", call.namespace);
        return Err(Problem::forbidden(call.resource.what(), pod, &why));
    };
    let account = account.value();
    let automount = spec.get("automountServiceAccountToken").or_else(|| account.get("automountServiceAccountToken"));
    if automount != Some(&json!(false)) {
        mount(spec);
    }
    let pulls = |secrets: Option<&Value>| secrets.and_then(Value::as_array).is_some_and(|it| !it.is_empty());
    if !pulls(spec.get("imagePullSecrets"))
        && let Some(secrets) = account.get("imagePullSecrets").filter(|it| pulls(Some(it)))
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    Ok(())
}

fn mount(spec: &mut Map<String, Value>) {
    let mut name = String::new();
    let mut mounted = false;
    for field in ["initContainers", "containers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let mounts = meta::map(container).entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            // Who mounts something there knows what he does.
            if mounts.iter().any(|it| it.get("mountPath").is_some_and(|it| it == MOUNT)) {
                continue;
            }
            if name.is_empty() {
                name = create::generate_name("kube-api-access-");
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT}));
            mounted = true;
        }
    }
    if !mounted {
        return;
    }
    let volume = json!({"name": name, "projected": {"sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_LIFE, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ], "defaultMode": 0o644}});
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(volume);
    }
}

/// A new pod stays for a while on a node that is lost, unless it says how long.
pub(super) fn tolerate(spec: &mut Map<String, Value>) {
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(tolerations) = tolerations.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let said = tolerations.iter().any(|it| {
            let of = |field: &str| it.get(field).and_then(Value::as_str).unwrap_or_default();
            (of("key") == key || of("key").is_empty()) && matches!(of("effect"), "NoExecute" | "")
        });
        if !said {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": STAY}));
        }
    }
}
