//! Admission policies say what is wrong with their expressions: `pkg/controller/validatingadmissionpolicystatus` of
//! upstream. A policy is looked at when its spec has changed, and not when the kinds that it is about do.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::agenda::Agenda;
use super::{call, is_stale, options};
use crate::admission::typecheck;
use crate::core::Core;
use crate::object::status::Problem;
use crate::store::{Entry, Key};
use crate::verbs::WriteOptions;
use crate::verbs::patch::{Language, patch};

const GROUP: &str = "admissionregistration.k8s.io";
const PLURAL: &str = "validatingadmissionpolicies";
const MANAGER: &str = "validatingadmissionpolicy-status";

pub(super) async fn follow(core: Arc<Core>) {
    let listed = core.store.list(GROUP, PLURAL, None, None, None);
    let Ok(mut changes) = core.store.watch(GROUP, PLURAL, None, listed.rev) else { return };
    let mut agenda: Agenda<String> = Agenda::new(core.clock.clone());
    agenda.add(listed.entries.iter().filter(|it| is_unchecked(it)).map(|it| it.key.name.to_string()));
    loop {
        for name in agenda.take(1) {
            match check(&core, &name).await {
                Ok(()) => {}
                // The change that was in between is on its way.
                Err(problem) if is_stale(&problem) => {}
                Err(problem) => {
                    tracing::warn!(policy = name, why = problem.message, "the expressions of a policy are not checked");
                    // What is refused once, a status that is too large for one, is refused until the policy is another.
                    if problem.code >= 500 {
                        agenda.failed(name);
                    }
                }
            }
        }
        if agenda.is_due() {
            continue;
        }
        tokio::select! {
            change = changes.next() => {
                let Some(change) = change else { return };
                if !change.deleted && is_unchecked(&change.entry) {
                    agenda.add([change.entry.key.name.to_string()]);
                }
            }
            () = agenda.again() => {}
        }
    }
}

/// Whether the status is of an older spec.
fn is_unchecked(entry: &Entry) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Policy {
        metadata: Metadata,
        status: Status,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Metadata {
        generation: i64,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Status {
        observed_generation: i64,
    }
    // What does not parse is no policy.
    let policy: Policy = serde_json::from_slice(&entry.json).unwrap_or_default();
    policy.metadata.generation > policy.status.observed_generation
}

async fn check(core: &Arc<Core>, name: &str) -> Result<(), Problem> {
    let key = Key::new(GROUP, PLURAL, "", name);
    let Some(entry) = core.store.get(&key).filter(|it| is_unchecked(it)) else { return Ok(()) };
    let Some(mut call) = call(core, &key) else { return Ok(()) };
    let policy = entry.value();
    let resources = core.fresh();
    let found = typecheck::warnings(&resources, &policy).await;
    let mut checked = json!({});
    if !found.is_empty() {
        checked = json!({"expressionWarnings": found});
    }
    let applied = json!({
        "apiVersion": call.resource.api_version(), "kind": call.resource.kind,
        "metadata": {"name": name, "resourceVersion": entry.rev.to_string()},
        "status": {"observedGeneration": policy.pointer("/metadata/generation"), "typeChecking": checked},
    });
    call.subresource = "status".to_owned();
    let options = WriteOptions { force: true, ..options(MANAGER) };
    patch(&mut call, Language::Apply, &Bytes::from(applied.to_string()), &options).await.map(drop)
}
