//! The roles and bindings that Kubernetes makes itself (`defaults.jsonl`, as a real one of our version keeps them), and
//! mends at each start: `pkg/registry/rbac/{rest,reconciliation}` of upstream.

use std::sync::Arc;

use futures::future::try_join_all;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::roles::GROUP;
use super::rules::{self, Rule, nullable};
use crate::core::Core;
use crate::local::AGGREGATOR;
use crate::store::{Change, Entry, Expect, Key, WriteError};
use crate::verbs::meta;

/// `false` on an object that is to be left alone.
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const MARK: &str = "kubernetes.io/bootstrapping";
/// Whose work this is in a cluster.
const MANAGER: &str = "kube-apiserver";

/// Makes everything, in one go, where nothing of it is there. Otherwise what is missing or grants too little is mended
/// while the server serves, as upstream does it.
pub(crate) async fn ensure(core: &Arc<Core>) -> Result<(), WriteError> {
    if core.store.get(&Key::new(GROUP, "clusterroles", "", "cluster-admin")).is_none() {
        return write(core, plan(core)).await;
    }
    let (core, shutdown) = (core.clone(), core.tasks.shutdown().clone());
    core.tasks.clone().tenant("default roles", async move {
        let of = core.clone();
        let Ok(planned) = tokio::task::spawn_blocking(move || plan(&of)).await else { return };
        let written = tokio::select! {
            () = shutdown.begun() => return,
            written = write(&core, planned) => written,
        };
        if let Err(error) = written {
            tracing::warn!(error = kit::chain(&error), "default roles are not mended before the next start");
        }
    });
    Ok(())
}

async fn write(core: &Core, planned: Vec<(Key, Expect, Value)>) -> Result<(), WriteError> {
    let writes = planned.into_iter().map(|(key, expect, object)| async move {
        match core.store.write(key, expect, Change::Put(object)).await {
            // Somebody wrote it meanwhile: theirs it is, until the next start.
            Ok(_) | Err(WriteError::Exists { .. } | WriteError::Conflict { .. } | WriteError::Absent) => Ok(()),
            Err(error) => Err(error),
        }
    });
    try_join_all(writes).await.map(drop)
}

/// What is to be written, all of which fits in one commit.
fn plan(core: &Core) -> Vec<(Key, Expect, Value)> {
    let mut planned = Vec::new();
    for line in include_str!("defaults.jsonl").lines() {
        let Ok(Value::Object(wanted)) = serde_json::from_str(line) else {
            tracing::error!(line, "a default role that is no object");
            continue;
        };
        let text = |field: &str| wanted.get(field).and_then(Value::as_str).unwrap_or_default();
        let plural = format!("{}s", text("kind").to_lowercase());
        let key = Key::new(GROUP, plural, text("namespace"), text("name"));
        match core.store.get(&key) {
            None => planned.push((key, Expect::Absent, made(core, wanted))),
            Some(entry) => {
                let mended = mended(core, &entry, wanted).map(|object| (key, Expect::Rev(entry.rev), object));
                planned.extend(mended);
            }
        }
    }
    planned
}

fn made(core: &Core, mut wanted: Map<String, Value>) -> Value {
    let mut take = |field: &str| wanted.shift_remove(field).unwrap_or_default();
    let (kind, name, namespace) = (take("kind"), take("name"), take("namespace"));
    let mut labels = Map::from_iter([(MARK.to_owned(), json!("rbac-defaults"))]);
    if let Value::Object(more) = take("labels") {
        labels.extend(more);
    }
    let (now, api_version) = (core.now(), format!("{GROUP}/v1"));
    let fields = |names: &[&String]| -> Map<String, Value> {
        names.iter().map(|name| (format!("f:{name}"), json!({}))).collect()
    };
    let each = |names: &[&String]| {
        let mut each = fields(names);
        each.shift_insert(0, ".".to_owned(), json!({}));
        each
    };
    let mut owned = Map::new();
    let mut books = Vec::new();
    let entry = |manager: &str, operation: &str, fields: Map<String, Value>| {
        json!({"manager": manager, "operation": operation, "apiVersion": api_version, "time": now,
            "fieldsType": "FieldsV1", "fieldsV1": fields})
    };
    if wanted.contains_key("aggregationRule") {
        books.push(entry(AGGREGATOR, "Apply", fields(&[&"rules".to_owned()])));
        let selectors = each(&[&"clusterRoleSelectors".to_owned()]);
        owned.insert("f:aggregationRule".into(), Value::Object(selectors));
    } else {
        owned = fields(&wanted.keys().collect::<Vec<_>>());
    }
    let annotations = each(&[&AUTO_UPDATE.to_owned()]);
    let labelled = each(&labels.keys().collect::<Vec<_>>());
    owned.insert("f:metadata".into(), json!({"f:annotations": annotations, "f:labels": labelled}));
    books.push(entry(MANAGER, "Update", owned));
    let mut metadata = Map::from_iter([("name".to_owned(), name)]);
    if !namespace.is_null() {
        metadata.insert("namespace".into(), namespace);
    }
    metadata.insert("uid".into(), json!(uuid::Uuid::now_v7().to_string()));
    metadata.insert("creationTimestamp".into(), json!(now));
    metadata.insert("labels".into(), Value::Object(labels));
    metadata.insert("annotations".into(), json!({AUTO_UPDATE: "true"}));
    metadata.insert("managedFields".into(), Value::Array(books));
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
    meta::map(&mut object).extend(wanted);
    object
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Grants {
    #[serde(deserialize_with = "nullable")]
    rules: Vec<Rule>,
    role_ref: Value,
    #[serde(deserialize_with = "nullable")]
    subjects: Vec<Value>,
}

/// The object as it should be; none when it is as it should be, or is to be left alone.
fn mended(core: &Core, entry: &Entry, wanted: Map<String, Value>) -> Option<Value> {
    let mut object = entry.value();
    if meta::keyed(&object, "annotations", AUTO_UPDATE) == Some("false") {
        return None;
    }
    // What an aggregated role grants is the aggregation's affair.
    if wanted.contains_key("aggregationRule") {
        return None;
    }
    let is = Grants::deserialize(&object).unwrap_or_default();
    let should = Grants::deserialize(&Value::Object(wanted.clone())).unwrap_or_default();
    if is.role_ref != should.role_ref {
        return Some(made(core, wanted));
    }
    let missing: Vec<Value> = if should.role_ref.is_null() {
        let parts = rules::uncovered(&is.rules, &should.rules);
        parts.iter().filter_map(|it| serde_json::to_value(it).ok()).collect()
    } else {
        should.subjects.into_iter().filter(|it| !is.subjects.contains(it)).collect()
    };
    if missing.is_empty() {
        return None;
    }
    let field = if should.role_ref.is_null() { "rules" } else { "subjects" };
    let list = meta::map(&mut object).entry(field).or_insert_with(|| json!([]));
    match list {
        Value::Array(list) => list.extend(missing),
        other => *other = Value::Array(missing),
    }
    Some(object)
}
