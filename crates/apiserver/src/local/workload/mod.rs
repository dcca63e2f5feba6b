//! What the controllers share that make pods, and the controllers.
//!
//! They read what is (through a [`Reader`]; a write is seen by every reader before it returns, so nobody has to remember what
//! he is about to see), decide by a pure function, and act through [`World`].

pub(super) mod cronjobs;
pub(super) mod daemonsets;
pub(super) mod deployments;
mod history;
pub(super) mod jobs;
pub(super) mod pods;
pub(super) mod replicas;
pub(super) mod statefulsets;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::events::Recorder;
use super::reader::{Kind, Reader, key};
use super::{Meta, World, call, merge, options};
use crate::http::json::put;
use crate::object::selector::Labels;
use crate::object::status::Problem;
use crate::store::{Entry, Event, Key};
use crate::verbs::scale::selector_text;
use crate::verbs::{create, update};

/// Whose work this is in a cluster.
pub(super) const MANAGER: &str = "kube-controller-manager";
/// Pods that are made or deleted at once, at most.
const BATCH: usize = 128;

/// The selector; nothing is selected by what is none.
pub(super) fn selector(of: &LabelSelector) -> Option<Labels> {
    Labels::parse(&selector_text(&serde_json::to_value(of).ok()?)).ok()
}

fn matches<T: Kind>(selector: &Labels, object: &T) -> bool {
    selector.matches(|name| object.label(name))
}

/// The owner that controls it.
pub(super) fn controller<T: Kind>(of: &T) -> Option<&OwnerReference> {
    of.metadata().owner_references.iter().flatten().find(|it| it.controller == Some(true))
}

pub(super) fn is_controlled_by<T: Kind, O: Kind>(it: &T, owner: &O) -> bool {
    controller(it).is_some_and(|by| by.uid == owner.uid())
}

/// The reference by which this one controls others.
pub(super) fn reference<O: Kind>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::API_VERSION.to_owned(),
        kind: O::KIND.to_owned(),
        name: owner.name().to_owned(),
        uid: owner.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Which owners have to look because of a change of what they may own: those that control it, or did; and of what nobody
/// controls, those that select it.
pub(super) fn owners<O: Kind, T: Kind>(
    of: &Reader<T>,
    owners: &Reader<O>,
    change: &Event,
    selector: impl Fn(&O) -> Option<Labels>,
) -> Vec<Key> {
    let now = of.of(&change.entry);
    let before = change.prev.as_deref().and_then(|it| of.of(it));
    let controllers = [&now, &before].into_iter().flatten().filter_map(|it| controller(&**it));
    let group = |it: &OwnerReference| it.api_version.rsplit_once('/').map_or("", |it| it.0).to_owned();
    let mut due: Vec<Key> = controllers
        .filter(|it| it.kind == O::KIND && group(it) == O::GROUP)
        .map(|it| key::<O>(&change.entry.key.namespace, &it.name))
        .collect();
    due.dedup();
    if let Some(orphan) = now.filter(|it| controller(&**it).is_none() && !change.deleted) {
        let all = owners.list(Some(orphan.namespace()));
        due.extend(all.iter().filter(|it| selector(it).is_some_and(|it| matches(&it, &*orphan))).map(|it| it.key()));
    }
    due
}

/// What the owner controls among the objects of a kind in its namespace: matching orphans are adopted, and what no longer
/// matches is let go.
pub(super) async fn claim<O: Kind, T: Kind>(
    world: &World,
    of: &Reader<T>,
    owner: &O,
    selector: &Labels,
) -> Result<Vec<Arc<T>>, Problem> {
    claim_those(world, of, owner, selector, None, |_| true).await
}

/// [`claim`] of those among them that are `wanted`; what is adopted gets a finalizer, too.
pub(super) async fn claim_those<O: Kind, T: Kind>(
    world: &World,
    of: &Reader<T>,
    owner: &O,
    selector: &Labels,
    finalizer: Option<&str>,
    wanted: impl Fn(&T) -> bool,
) -> Result<Vec<Arc<T>>, Problem> {
    let mut claimed = Vec::new();
    for it in of.list(Some(owner.namespace())) {
        let fits = matches(selector, &*it) && wanted(&it);
        match controller(&*it) {
            Some(by) if by.uid != owner.uid() => {}
            Some(_) if fits => claimed.push(it),
            Some(_) if owner.is_deleting() => {}
            Some(_) => {
                let all = it.metadata().owner_references.iter().flatten();
                let left: Vec<&OwnerReference> = all.filter(|it| it.uid != owner.uid()).collect();
                let left = if left.is_empty() { Value::Null } else { json!(left) };
                match own(world, &*it, left, None).await {
                    Err(problem) if problem.code == 404 => {}
                    done => done?,
                }
            }
            None if fits && !it.is_deleting() && !owner.is_deleting() && is_there(world, owner) => {
                let all = it.metadata().owner_references.iter().flatten().cloned();
                let all: Vec<OwnerReference> = all.chain([reference(owner)]).collect();
                match own(world, &*it, json!(all), finalizer).await {
                    Err(problem) if problem.code == 404 => {}
                    done => {
                        done?;
                        claimed.extend(of.get(it.namespace(), it.name()));
                    }
                }
            }
            None => {}
        }
    }
    Ok(claimed)
}

/// Whether it is still the one that was read, and stays.
fn is_there<O: Kind>(world: &World, owner: &O) -> bool {
    world.core.store.get(&owner.key()).is_some_and(|it| {
        let now = Meta::of(&it);
        now.uid == owner.uid() && !now.is_deleting()
    })
}

/// Sets the owners of an object, if it still is as it was read.
async fn own<T: Kind>(world: &World, it: &T, owners: Value, finalizer: Option<&str>) -> Result<(), Problem> {
    let mut metadata =
        json!({"ownerReferences": owners, "uid": it.uid(), "resourceVersion": it.metadata().resource_version});
    if let Some(finalizer) = finalizer {
        let before = it.metadata().finalizers.iter().flatten().map(String::as_str).filter(|it| *it != finalizer);
        put(&mut metadata, "finalizers", json!(before.chain([finalizer]).collect::<Vec<_>>()));
    }
    merge(&world.core, &it.key(), "", json!({"metadata": metadata}), MANAGER).await
}

/// The pod that a template describes, for an owner: with a generated name and no namespace yet.
pub(super) fn from_template<O: Kind>(template: &PodTemplateSpec, owner: &O) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name())),
            namespace: Some(owner.namespace().to_owned()),
            labels: from.labels,
            annotations: from.annotations,
            finalizers: from.finalizers,
            owner_references: Some(vec![reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

impl World {
    /// Creates an object as a controller does.
    pub(super) async fn create<T: Kind + Serialize>(&self, object: &T) -> Result<Arc<Entry>, Problem> {
        let gone = || Problem::internal("the kind is not served");
        let mut call = call(&self.core, &key::<T>(object.namespace(), "")).ok_or_else(gone)?;
        let value = as_json(object)?;
        let made = create::create(&mut call, value, &options(MANAGER)).await?;
        match made.object {
            crate::verbs::Object::Stored(entry) => Ok(entry),
            crate::verbs::Object::Made(_) => Err(Problem::internal("the object was not stored")),
        }
    }

    /// Creates a pod of the owner's, and says so in its events.
    pub(super) async fn create_pod<O: Kind>(&self, by: &Recorder, owner: &O, pod: &Pod) -> Result<Arc<Entry>, Problem> {
        let made = self.create(pod).await;
        match &made {
            Ok(made) => by.normal(owner, "SuccessfulCreate", format!("Created pod: {}", made.key.name)),
            // Nobody reads it there.
            Err(problem) if is_terminating(problem) => {}
            Err(problem) => by.warning(owner, "FailedCreate", format!("Error creating: {}", problem.message)),
        }
        made
    }

    /// Deletes a pod of the owner's, if it still is the one that was read, and says so in its events. One that is gone
    /// already is as good.
    pub(super) async fn delete_pod<O: Kind>(&self, by: &Recorder, owner: &O, pod: &Pod) -> Result<(), Problem> {
        match self.delete(pod).await {
            Ok(true) => by.normal(owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name())),
            Ok(false) => {}
            Err(problem) => {
                by.warning(owner, "FailedDelete", format!("Error deleting: {}", problem.message));
                return Err(problem);
            }
        }
        Ok(())
    }

    /// Deletes an object, if it still is the one that was read. False when it was gone.
    pub(super) async fn delete<T: Kind>(&self, object: &T) -> Result<bool, Problem> {
        self.delete_one(&object.key(), object.uid()).await
    }

    /// Changes an object by a merge patch, if it still is as it was read.
    pub(super) async fn change<T: Kind>(&self, object: &T, mut change: Value) -> Result<(), Problem> {
        let metadata = crate::verbs::meta::of(&mut change);
        metadata.insert("resourceVersion".into(), json!(object.metadata().resource_version));
        merge(&self.core, &object.key(), "", change, MANAGER).await
    }

    /// Replaces the status of an object, if it still is as it was read.
    pub(super) async fn set_status<T: Kind>(&self, object: &T, status: &impl Serialize) -> Result<(), Problem> {
        self.set_status_as(MANAGER, object, status).await
    }

    /// Says a condition in the status of a pod.
    pub(super) async fn set_condition(&self, manager: &str, pod: &Pod, condition: PodCondition) -> Result<(), Problem> {
        let mut status = pod.status.clone().unwrap_or_default();
        let conditions = status.conditions.get_or_insert_default();
        match conditions.iter_mut().find(|it| it.type_ == condition.type_) {
            Some(old) => *old = condition,
            None => conditions.push(condition),
        }
        let mut status = as_json(&status)?;
        // The type leaves it out; upstream does not.
        for it in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if it.get("lastProbeTime").is_none() {
                put(it, "lastProbeTime", Value::Null);
            }
        }
        self.set_status_as(manager, pod, &status).await
    }

    async fn set_status_as<T: Kind>(&self, manager: &str, object: &T, status: &impl Serialize) -> Result<(), Problem> {
        let current = self.unchanged(object)?;
        let Some(mut call) = call(&self.core, &current.key) else { return Ok(()) };
        call.subresource = "status".into();
        let mut value = current.value();
        put(&mut value, "status", as_json(status)?);
        update::update(&mut call, value, &options(manager)).await.map(drop)
    }
}

fn as_json(it: &impl Serialize) -> Result<Value, Problem> {
    serde_json::to_value(it).map_err(|error| Problem::internal(&error.to_string()))
}

/// A count, or a share of a total, rounded up or down.
pub(super) fn share(of: &IntOrString, total: i32, up: bool) -> i32 {
    match of {
        IntOrString::Int(count) => *count,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            let product = percent.saturating_mul(total.into());
            let share = if up { product.saturating_add(99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// Whether it could not be made because its namespace is going: nothing is to be said of that.
pub(super) fn is_terminating(problem: &Problem) -> bool {
    problem.details.iter().flat_map(|it| &it.causes).any(|it| it.reason == "NamespaceTerminating")
}

/// Does `count` things in batches that double as long as all goes well: what cannot be done is not tried often. Returns
/// what was done, and what went wrong first.
pub(super) async fn slow_start<T, F>(count: usize, make: impl Fn(usize) -> F) -> (Vec<T>, Option<Problem>)
where
    F: Future<Output = Result<T, Problem>>,
{
    let (mut done, mut next, mut batch) = (Vec::new(), 0, 1);
    while next < count {
        let end = count.min(next + batch);
        let mut wrong = None;
        for result in join_all((next..end).map(&make)).await {
            match result {
                Ok(it) => done.push(it),
                Err(problem) => wrong = wrong.or(Some(problem)),
            }
        }
        if wrong.is_some() {
            return (done, wrong);
        }
        (next, batch) = (end, (batch * 2).min(BATCH));
    }
    (done, None)
}

/// Ten characters at most that are the same for what is the same, and can stand in names and labels; `collisions` makes
/// others of them.
pub(super) fn short_hash(of: &impl Serialize, collisions: Option<i32>) -> String {
    let text = serde_json::to_string(of).unwrap_or_default();
    let salt = collisions.map(|it| format!("#{it}")).unwrap_or_default();
    let digest = Sha256::digest(format!("{text}{salt}"));
    readable(digest.iter().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte)))
}

/// A hash in letters that make no words, as upstream writes it.
fn readable(hash: u32) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digits = hash.to_string();
    digits.bytes().filter_map(|it| ALPHABET.get(usize::from(it) % ALPHABET.len())).map(|it| char::from(*it)).collect()
}
