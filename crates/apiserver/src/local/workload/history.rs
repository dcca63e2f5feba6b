//! ControllerRevisions: the templates that a StatefulSet or a DaemonSet has had, as `kubectl rollout history` and `undo` read
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use super::{readable, reference};
use crate::local::World;
use crate::local::reader::{Kind, Reader};
use crate::object::status::Problem;

/// The longest beginning of a revision's name.
const PREFIX: usize = 223;
/// Names that are tried, when others have them.
const ATTEMPTS: usize = 16;

/// What a revision keeps of an object: a strategic merge patch that brings its template back.
pub(super) fn snapshot(template: &Value) -> Value {
    let mut template = sorted(template);
    if let Some(fields) = template.as_object_mut() {
        fields.insert("$patch".into(), "replace".into());
    }
    sorted(&json!({"spec": {"template": template}}))
}

/// The template that a revision keeps. None when it keeps none.
pub(super) fn template(of: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = of.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.shift_remove("$patch");
    serde_json::from_value(template).ok()
}

/// With the fields in the order in which Go writes them.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<&String, Value> = fields.iter().map(|(name, value)| (name, sorted(value))).collect();
            Value::Object(fields.into_iter().map(|(name, value)| (name.clone(), value)).collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

/// The hash in a revision's name: the same as upstream's for the same template.
fn hash(data: &Value, collisions: i32) -> String {
    let mut text = data.to_string();
    for (plain, escaped) in
        [("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029")]
    {
        text = text.replace(plain, escaped);
    }
    text.push_str(&collisions.to_string());
    // FNV-1 of 32 bits.
    readable(text.bytes().fold(0x811c_9dc5_u32, |sum, byte| sum.wrapping_mul(0x0100_0193) ^ u32::from(byte)))
}

/// Of what the owner is now, and which label of the revision tells its hash.
pub(super) struct Present<'a> {
    pub(super) data: &'a Value,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) hash_label: &'a str,
}

/// Oldest first.
pub(super) fn in_order(all: &mut [Arc<ControllerRevision>]) {
    let made = |it: &ControllerRevision| it.metadata.creation_timestamp.clone();
    all.sort_by(|a, b| (a.revision, made(a), a.name()).cmp(&(b.revision, made(b), b.name())));
}

/// The revision of what the owner is now: the last one, or an earlier one that becomes the last, or a new one. `all` are its
/// revisions, oldest first; `collisions` counts the names that others have.
pub(super) async fn current<O: Kind>(
    world: &World,
    revisions: &Reader<ControllerRevision>,
    owner: &O,
    all: &[Arc<ControllerRevision>],
    now: Present<'_>,
    collisions: &mut i32,
) -> Result<Arc<ControllerRevision>, Problem> {
    let same = |it: &ControllerRevision| it.data.as_ref().is_some_and(|it| it.0 == *now.data);
    let next = all.iter().map(|it| it.revision).max().unwrap_or_default() + 1;
    if let Some(found) = all.iter().rfind(|it| same(it)) {
        if all.last().is_none_or(|last| last.uid() == found.uid()) {
            return Ok(found.clone());
        }
        world.change(&**found, json!({"revision": next})).await?;
        return revisions.get(found.namespace(), found.name()).ok_or_else(|| gone(found.name()));
    }
    for _ in 0..ATTEMPTS {
        let hash = hash(now.data, *collisions);
        let mut labels = now.labels.clone().unwrap_or_default();
        labels.insert(now.hash_label.to_owned(), hash.clone());
        let prefix = owner.name().get(..owner.name().floor_char_boundary(PREFIX)).unwrap_or_default();
        let name = format!("{prefix}-{hash}");
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(owner.namespace().to_owned()),
                labels: Some(labels),
                annotations: owner.metadata().annotations.clone(),
                owner_references: Some(vec![reference(owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(now.data.clone())),
            revision: next,
        };
        match world.create(&revision).await {
            Ok(made) => return revisions.of(&made).ok_or_else(|| gone(&name)),
            Err(problem) if problem.reason == "AlreadyExists" => match revisions.get(owner.namespace(), &name) {
                Some(there) if same(&there) && super::is_controlled_by(&*there, owner) => return Ok(there),
                _ => *collisions = collisions.saturating_add(1),
            },
            Err(problem) => return Err(problem),
        }
    }
    Err(Problem::internal("no name is free for a revision"))
}

fn gone(name: &str) -> Problem {
    Problem::not_found(crate::object::status::What::new("apps", "controllerrevisions"), name)
}

/// Deletes the oldest of those that nothing is made of, beyond the limit.
pub(super) async fn truncate(
    world: &World,
    all: &[Arc<ControllerRevision>],
    limit: Option<i32>,
    is_live: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), Problem> {
    let Some(limit) = limit.and_then(|it| usize::try_from(it).ok()) else { return Ok(()) };
    let old: Vec<_> = all.iter().filter(|it| !is_live(it)).collect();
    for revision in old.iter().take(old.len().saturating_sub(limit)) {
        world.delete(&***revision).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{hash, snapshot, template};

    #[test]
    fn a_revision_has_the_name_that_it_has_upstream() {
        // Read off a StatefulSet of a real Kubernetes.
        let container = json!({"command": ["sleep", "1000"], "image": "busybox", "imagePullPolicy": "Always", "name": "c",
            "resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"});
        let spec = json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "containers": [container],
            "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 0});
        let of = json!({"metadata": {"labels": {"app": "s"}}, "spec": spec});
        let data = snapshot(&of);
        assert_eq!(hash(&data, 0), "86b8dfc965");
        assert_ne!(hash(&data, 0), hash(&data, 1));
        let kept = k8s_openapi::api::apps::v1::ControllerRevision {
            data: Some(k8s_openapi::apimachinery::pkg::runtime::RawExtension(data)),
            ..Default::default()
        };
        assert_eq!(serde_json::to_value(template(&kept).unwrap()).unwrap(), of);
    }
}
