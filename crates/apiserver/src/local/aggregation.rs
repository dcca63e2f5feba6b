//! ClusterRoles that are made of others: `pkg/controller/clusterroleaggregation` of upstream.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::agenda::Agenda;
use super::{call, is_stale, options};
use crate::access::roles::GROUP;
use crate::core::Core;
use crate::object::selector::Labels;
use crate::object::status::Problem;
use crate::store::Entry;
use crate::verbs::WriteOptions;
use crate::verbs::patch::{Language, patch};
use crate::verbs::scale::selector_text;

/// Whose work this is in a cluster.
pub(crate) const AGGREGATOR: &str = "clusterrole-aggregation-controller";
const PLURAL: &str = "clusterroles";

pub(super) async fn follow(core: Arc<Core>) {
    let core = &core;
    let Ok(mut changes) = core.store.watch(GROUP, PLURAL, None, core.store.revision()) else { return };
    // All of them at once: one may be made of another.
    let mut agenda = Agenda::new(core.clock.clone());
    agenda.add([()]);
    loop {
        for all in agenda.take(1) {
            match gather(core).await {
                Ok(()) => {}
                Err(problem) if is_stale(&problem) => agenda.add([all]),
                Err(problem) => {
                    tracing::warn!(why = problem.message, "a role lacks what it is made of");
                    agenda.failed(all);
                }
            }
        }
        if agenda.is_due() {
            continue;
        }
        tokio::select! {
            change = changes.next() => match change {
                Some(_) => {
                    while changes.ready().is_some() {}
                    agenda.add([()]);
                }
                None => return,
            },
            () = agenda.again() => {}
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Role {
    rules: Option<Vec<Value>>,
    aggregation_rule: Option<Aggregation>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Aggregation {
    cluster_role_selectors: Option<Vec<Value>>,
}

fn parsed(entry: &Entry) -> Role {
    // What does not parse grants nothing and gathers nothing.
    serde_json::from_slice(&entry.json).unwrap_or_default()
}

async fn gather(core: &Arc<Core>) -> Result<(), Problem> {
    let all = core.store.list(GROUP, PLURAL, None, None, None).entries;
    let aggregates = |entry: &&Arc<Entry>| entry.json.windows(15).any(|it| it == b"aggregationRule");
    for entry in all.iter().filter(aggregates) {
        let role = parsed(entry);
        let selectors = role.aggregation_rule.and_then(|it| it.cluster_role_selectors).unwrap_or_default();
        if selectors.is_empty() {
            continue;
        }
        let mut rules: Vec<Value> = Vec::new();
        for selector in &selectors {
            let Ok(selector) = Labels::parse(&selector_text(selector)) else { continue };
            let chosen = |it: &&Arc<Entry>| {
                it.key != entry.key && selector.matches(|label| it.labels().get(label).map(String::as_str))
            };
            for rule in all.iter().filter(chosen).flat_map(|it| parsed(it).rules.unwrap_or_default()) {
                if !rules.contains(&rule) {
                    rules.push(rule);
                }
            }
        }
        if rules == role.rules.unwrap_or_default() {
            continue;
        }
        let Some(mut call) = call(core, &entry.key) else { return Ok(()) };
        let wanted = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "ClusterRole",
            "metadata": {"name": &*entry.key.name}, "rules": rules});
        let options = WriteOptions { force: true, ..options(AGGREGATOR) };
        patch(&mut call, Language::Apply, &Bytes::from(wanted.to_string()), &options).await?;
    }
    Ok(())
}
