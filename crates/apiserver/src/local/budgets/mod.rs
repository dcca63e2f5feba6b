//! PodDisruptionBudgets say how many of their pods may go: `pkg/controller/disruption` of upstream. Who asks them is
//! `pods/eviction`.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Map, Value, json};

use self::plan::{Found, plan};
use super::World;
use super::drive::drive;
use super::events::Recorder;
use super::reader::{Kind, Reader};
use super::workload::{controller, selector};
use super::write::set;
use crate::object::status::Problem;
use crate::store::{Event, Key};
use crate::verbs::meta;

const BUDGETS: &str = "poddisruptionbudgets";
const WATCHED: [(&str, &str); 6] = [
    ("policy", BUDGETS),
    ("", "pods"),
    ("apps", "replicasets"),
    ("apps", "deployments"),
    ("apps", "statefulsets"),
    ("", "replicationcontrollers"),
];
const CONDITION: &str = "DisruptionAllowed";

pub(super) async fn follow(world: Arc<World>) {
    let it = Keeper::new(&world);
    let first = || it.budgets.list(None).iter().map(|it| it.key()).collect();
    drive(&world.core, &WATCHED, first, |change| it.wakes(change), |key| it.look(key)).await;
}

struct Keeper<'a> {
    world: &'a World,
    budgets: Reader<PodDisruptionBudget>,
    sets: Reader<ReplicaSet>,
    deployments: Reader<Deployment>,
    stateful: Reader<StatefulSet>,
    controllers: Reader<ReplicationController>,
    by: Recorder,
}

impl<'a> Keeper<'a> {
    fn new(world: &'a World) -> Self {
        let core = &world.core;
        Self {
            world,
            budgets: Reader::new(core),
            sets: Reader::new(core),
            deployments: Reader::new(core),
            stateful: Reader::new(core),
            controllers: Reader::new(core),
            by: world.events.of(core, "controllermanager"),
        }
    }

    fn wakes(&self, change: &Event) -> Vec<Key> {
        let of = &change.entry.key;
        match &*of.resource {
            BUDGETS if change.deleted => Vec::new(),
            BUDGETS => vec![of.clone()],
            "pods" => {
                let all = self.budgets.list(Some(&of.namespace));
                let states = [Some(&*change.entry), change.prev.as_deref()].into_iter().flatten();
                let pods: Vec<_> =
                    if all.is_empty() { Vec::new() } else { states.filter_map(|it| self.world.pods.of(it)).collect() };
                all.iter().filter(|it| pods.iter().any(|pod| selects(it, pod))).map(|it| it.key()).collect()
            }
            // Whose pods they are, only the pods say.
            _ => self.budgets.list(Some(&of.namespace)).iter().map(|it| it.key()).collect(),
        }
    }

    async fn look(&self, of: Key) -> Result<Option<Timestamp>, Problem> {
        let Some(budget) = self.budgets.get(&of.namespace, &of.name) else { return Ok(None) };
        let mut pods = self.world.pods.list(Some(&of.namespace));
        pods.retain(|it| selects(&budget, it));
        let now = self.world.core.clock.now();
        let found = plan(&budget, &pods, |owner| self.scale(owner, &of.namespace), now);
        let status = budget.status.clone().unwrap_or_default();
        match found {
            Ok(found) => {
                if pods.is_empty() {
                    self.by.normal(&*budget, "NoPods", "No matching pods found");
                }
                if found.unmanaged {
                    let selector = budget.spec.as_ref().and_then(|it| it.selector.clone()).unwrap_or_default();
                    self.by.warning(&*budget, "UnmanagedPods", unmanaged(&selector));
                }
                for pod in &found.lingering {
                    let why = format!("Pod was expected by PDB {0}/{0} to be deleted but it wasn't", of.namespace);
                    self.by.warning(&**pod, "NotDeleted", why);
                }
                self.write(&budget, &found).await?;
                Ok(found.again)
            }
            Err(why) => {
                let message = format!("Failed to calculate the number of expected pods: {why}");
                self.by.warning(&*budget, "CalculateExpectedPodCountFailed", message);
                let now = self.world.core.now();
                let observed = status.observed_generation.unwrap_or_default();
                self.world
                    .update(&*budget, "status", |it| {
                        set(it, &["status", "disruptionsAllowed"], json!(0));
                        let status = meta::map(meta::map(it).entry("status").or_insert_with(|| json!({})));
                        condition(status, ("False", "SyncFailed", &why), observed, &now);
                    })
                    .await?;
                Ok(None)
            }
        }
    }

    async fn write(&self, budget: &PodDisruptionBudget, found: &Found) -> Result<(), Problem> {
        let now = self.world.core.now();
        let generation = budget.metadata.generation.unwrap_or_default();
        self.world
            .update(budget, "status", |it| {
                let times: BTreeMap<&str, String> =
                    found.disrupted.iter().map(|(name, at)| (name.as_str(), crate::core::time(*at))).collect();
                let times = if times.is_empty() { Value::Null } else { json!(times) };
                for (field, value) in [
                    ("currentHealthy", json!(found.healthy)),
                    ("desiredHealthy", json!(found.desired)),
                    ("disruptedPods", times),
                    ("disruptionsAllowed", json!(found.allowed)),
                    ("expectedPods", json!(found.expected)),
                    ("observedGeneration", json!(generation)),
                ] {
                    set(it, &["status", field], value);
                }
                settle_condition(meta::map(meta::map(it).entry("status").or_insert_with(|| json!({}))), &now);
            })
            .await
    }

    /// Who decides how many pods there are like the one that has this controller, and how many there are to be.
    fn scale(&self, by: &OwnerReference, namespace: &str) -> Result<Option<(String, i32)>, String> {
        let group = by.api_version.rsplit_once('/').map_or("", |it| it.0);
        let is = |uid: &str| uid == by.uid;
        Ok(match (group, by.kind.as_str()) {
            ("apps", "ReplicaSet") => self.sets.get(namespace, &by.name).filter(|it| is(it.uid())).and_then(|set| {
                let above = controller(&*set).filter(|it| it.kind == "Deployment");
                let Some(above) = above else {
                    return Some((by.uid.clone(), set.spec.as_ref()?.replicas.unwrap_or(1)));
                };
                let deployment = self.deployments.get(namespace, &above.name).filter(|it| it.uid() == above.uid)?;
                Some((above.uid.clone(), deployment.spec.as_ref()?.replicas.unwrap_or(1)))
            }),
            ("apps", "StatefulSet") => {
                let found = self.stateful.get(namespace, &by.name).filter(|it| is(it.uid()));
                found.and_then(|it| Some((by.uid.clone(), it.spec.as_ref()?.replicas.unwrap_or(1))))
            }
            ("", "ReplicationController") => {
                let found = self.controllers.get(namespace, &by.name).filter(|it| is(it.uid()));
                found.and_then(|it| Some((by.uid.clone(), it.spec.as_ref()?.replicas.unwrap_or(1))))
            }
            _ => return self.scale_of_any(by, namespace),
        })
    }

    fn scale_of_any(&self, by: &OwnerReference, namespace: &str) -> Result<Option<(String, i32)>, String> {
        let resources = self.world.core.registry.now();
        let Some(resource) = resources.of_kind(&by.api_version, &by.kind) else {
            return Err(format!("no matches for kind {:?} in version {:?}", by.kind, by.api_version));
        };
        let Some(scale) = &resource.scale else {
            return Err(format!("{} does not implement the scale subresource", resource.what().qualified()));
        };
        let Some(entry) = self.world.core.store.get(&resource.key(namespace, &by.name)) else { return Ok(None) };
        let object = entry.value();
        let at = scale.spec.iter().try_fold(&object, |at, part| at.get(part));
        let replicas = at.and_then(Value::as_i64).and_then(|it| it.try_into().ok()).unwrap_or(0);
        Ok((meta::uid(&object) == by.uid).then(|| (by.uid.clone(), replicas)))
    }
}

/// Whether the budget is for this pod, as far as its labels go.
pub(super) fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let wanted = budget.spec.as_ref().and_then(|it| it.selector.as_ref());
    wanted.and_then(selector).is_some_and(|it| it.matches(|key| pod.label(key)))
}

/// As Go prints the selector.
fn unmanaged(of: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector) -> String {
    let labels: Vec<String> = of.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions: Vec<String> = of
        .match_expressions
        .iter()
        .flatten()
        .map(|it| {
            let values = it.values.clone().unwrap_or_default().join(" ");
            format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", it.key, it.operator)
        })
        .collect();
    let (labels, expressions) = (labels.concat(), expressions.concat());
    let selector = format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    );
    format!(
        "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
    )
}

/// Brings the condition of a budget's status in line with what it allows.
pub(crate) fn settle_condition(status: &mut Map<String, Value>, now: &str) {
    let number = |field: &str| status.get(field).and_then(Value::as_i64).unwrap_or_default();
    let (allowed, observed) = (number("disruptionsAllowed"), number("observedGeneration"));
    let said = if allowed > 0 { ("True", "SufficientPods", "") } else { ("False", "InsufficientPods", "") };
    condition(status, said, observed, now);
}

/// Status, reason and message of the condition.
fn condition(status: &mut Map<String, Value>, said: (&str, &str, &str), observed: i64, now: &str) {
    let all = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(all) = all.as_array_mut() else { return };
    let before = all.iter_mut().find(|it| it.get("type").is_some_and(|it| it == CONDITION));
    let same = before.as_ref().filter(|it| it.get("status").is_some_and(|it| it == said.0));
    let since = same.and_then(|it| it.get("lastTransitionTime")).cloned().unwrap_or_else(|| json!(now));
    let new = json!({"type": CONDITION, "status": said.0, "observedGeneration": observed, "lastTransitionTime": since,
        "reason": said.1, "message": said.2});
    match before {
        Some(before) => *before = new,
        None => all.push(new),
    }
}
