//! StatefulSets: pods with names of their own, made, updated and deleted in order, with claims that stay.

mod claims;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use serde_json::{Value, json};

use super::history::{self, Present};
use super::{claim, claim_those, is_terminating, owners, selector};
use crate::local::World;
use crate::local::drive::drive;
use crate::local::events::Recorder;
use crate::local::reader::{Kind, Reader};
use crate::object::status::Problem;
use crate::store::{Event, Key};
use claims::Retention;
use plan::{Plan, Revision, Step, View, ordinal};

/// How many steps are taken at once where order does not matter.
const AT_ONCE: usize = 64;

struct Sets {
    world: Arc<World>,
    sets: Reader<StatefulSet>,
    revisions: Reader<ControllerRevision>,
    claims: Reader<PersistentVolumeClaim>,
    by: Recorder,
}

pub(in crate::local) async fn follow(world: Arc<World>) {
    let core = &world.core.clone();
    let it = &Sets {
        sets: Reader::new(core),
        revisions: Reader::new(core),
        claims: Reader::new(core),
        by: world.events.of(core, "statefulset-controller"),
        world,
    };
    let first = || it.sets.list(None).iter().map(|it| it.key()).collect();
    drive(core, &[("apps", "statefulsets"), ("", "pods")], first, |change| it.wakes(change), |key| it.sync(key)).await;
}

impl Sets {
    fn wakes(&self, change: &Event) -> Vec<Key> {
        if *change.entry.key.resource == *"statefulsets" {
            return vec![change.entry.key.clone()];
        }
        owners(&self.world.pods, &self.sets, change, |set: &StatefulSet| selector(&set.spec.as_ref()?.selector))
    }

    async fn sync(&self, key: Key) -> Result<Option<Timestamp>, Problem> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else { return Ok(None) };
        let Some(spec) = &set.spec else { return Ok(None) };
        let Some(selector) = selector(&spec.selector) else { return Ok(None) };
        let mut revisions = claim(&self.world, &self.revisions, &*set, &selector).await?;
        let is_member = |pod: &Pod| ordinal(&set, pod.name()).is_some();
        let pods = claim_those(&self.world, &self.world.pods, &*set, &selector, None, is_member).await?;
        history::in_order(&mut revisions);
        // As it is stored: nothing may be lost of it.
        let stored = self.world.core.store.get(&key).map(|it| it.value()).unwrap_or_default();
        let data = history::snapshot(stored.pointer("/spec/template").unwrap_or(&Value::Null));
        let mut collisions = set.status.as_ref().and_then(|it| it.collision_count).unwrap_or_default();
        let labels = spec.template.metadata.as_ref().and_then(|it| it.labels.clone());
        let present = Present { data: &data, labels, hash_label: "controller.kubernetes.io/hash" };
        let update =
            history::current(&self.world, &self.revisions, &*set, &revisions, present, &mut collisions).await?;
        let named = set.status.as_ref().and_then(|it| it.current_revision.as_deref());
        let current = revisions.iter().find(|it| Some(it.name()) == named).unwrap_or(&update).clone();
        let old = history::template(&current).unwrap_or_else(|| spec.template.clone());
        let view = View {
            set: &set,
            spec,
            pods: &pods,
            current: Revision { name: current.name(), template: &old },
            update: Revision { name: update.name(), template: &spec.template },
            now: self.world.core.clock.now(),
        };
        let done = self.act(&view, view.plan()).await;
        // What was done is in the store by now.
        let mut after = self.world.pods.list(Some(&key.namespace));
        after.retain(|it| super::is_controlled_by(&**it, &*set) && is_member(it));
        let view = View { pods: &after, ..view };
        let status = view.status(collisions);
        if set.status.as_ref() != Some(&status) {
            self.world.set_status(&*set, &status).await?;
        }
        done?;
        let live = |it: &ControllerRevision| {
            let name = it.name();
            let is_of = |pod: &Arc<Pod>| pod.label("controller-revision-hash") == Some(name);
            name == current.name() || name == update.name() || pods.iter().any(is_of) || after.iter().any(is_of)
        };
        history::truncate(&self.world, &revisions, spec.revision_history_limit, live).await?;
        Ok(view.next_available())
    }

    async fn act(&self, view: &View<'_>, plan: Plan) -> Result<(), Problem> {
        if plan.one_by_one {
            for step in &plan.steps {
                self.step(view, step).await?;
            }
            return Ok(());
        }
        let mut wrong = None;
        for steps in plan.steps.chunks(AT_ONCE) {
            for done in join_all(steps.iter().map(|it| self.step(view, it))).await {
                wrong = wrong.or_else(|| done.err());
            }
        }
        wrong.map_or(Ok(()), Err)
    }

    async fn step(&self, view: &View<'_>, step: &Step) -> Result<(), Problem> {
        match step {
            Step::Create(pod, ordinal) => self.create(view, pod, *ordinal).await,
            Step::Delete(pod) => {
                let done = self.world.delete(&**pod).await;
                if !matches!(done, Ok(false)) {
                    self.say(view.set, "delete", pod, done.as_ref().err());
                }
                done.map(drop)
            }
            Step::Keep(pod, ordinal) => self.keep(view, pod, *ordinal).await,
        }
    }

    async fn create(&self, view: &View<'_>, pod: &Pod, ordinal: i32) -> Result<(), Problem> {
        let retention = Retention::of(view.spec);
        let wanted = claims::of(view.set, view.spec, ordinal);
        let there = wanted.iter().filter_map(|it| self.claims.get(it.namespace(), it.name()));
        if there.into_iter().any(|it| claims::is_stale(&it, retention, pod)) {
            return Err(Problem::internal("a claim still belongs to an earlier pod of the name, and goes with it"));
        }
        let made = match self.claim(view, pod, ordinal).await {
            Ok(()) => self.world.create(pod).await,
            Err(problem) => Err(problem),
        };
        match made {
            Ok(made) => {
                if let Some(made) = self.world.pods.of(&made) {
                    self.own(view, &made, ordinal).await?;
                }
                self.say(view.set, "create", pod, None);
                Ok(())
            }
            // Another one has its name: it is looked at again when that changes, or some time later.
            Err(problem) if problem.reason == "AlreadyExists" => Err(Problem { code: 500, ..problem }),
            Err(problem) if is_terminating(&problem) => Ok(()),
            Err(problem) => {
                self.say(view.set, "create", pod, Some(&problem));
                Err(problem)
            }
        }
    }

    async fn keep(&self, view: &View<'_>, pod: &Arc<Pod>, ordinal: i32) -> Result<(), Problem> {
        if super::pods::phase(pod) == "Pending" && !view.is_surplus(ordinal) {
            self.claim(view, pod, ordinal).await?;
        }
        self.own(view, pod, ordinal).await?;
        if let Some(mended) = view.mended(pod, ordinal).filter(|_| !view.is_surplus(ordinal)) {
            let volumes = mended.spec.as_ref().map(|it| &it.volumes);
            let change = json!({"metadata": {"labels": mended.metadata.labels}, "spec": {"volumes": volumes}});
            let done = self.world.change(&**pod, change).await;
            self.say(view.set, "update", pod, done.as_ref().err());
            done?;
        }
        Ok(())
    }

    /// Makes the claims of a pod that are not there.
    async fn claim(&self, view: &View<'_>, pod: &Pod, ordinal: i32) -> Result<(), Problem> {
        let set = view.set;
        for claim in claims::of(set, view.spec, ordinal) {
            let name = claim.name();
            match self.claims.get(claim.namespace(), name) {
                Some(it) if it.is_deleting() => {
                    return Err(Problem::internal(&format!("pvc {name} is being deleted")));
                }
                Some(_) => {}
                None => match self.world.create(&claim).await {
                    Ok(_) => {
                        let (pod, set_name) = (pod.name(), set.name());
                        let said = format!("create Claim {name} Pod {pod} in StatefulSet {set_name} success");
                        self.by.normal(set, "SuccessfulCreate", said);
                    }
                    Err(problem) if problem.reason == "AlreadyExists" => {}
                    Err(problem) if is_terminating(&problem) => return Err(problem),
                    Err(problem) => {
                        let (pod, set_name, why) = (pod.name(), set.name(), &problem.message);
                        let said =
                            format!("create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {why}");
                        self.by.warning(set, "FailedCreate", said);
                        return Err(Problem { message: format!("failed to create PVC {name}: {why}"), ..problem });
                    }
                },
            }
        }
        Ok(())
    }

    /// Gives the claims of a pod the owners that the retention policy asks for.
    async fn own(&self, view: &View<'_>, pod: &Pod, ordinal: i32) -> Result<(), Problem> {
        let (set, retention) = (view.set, Retention::of(view.spec));
        for template in view.spec.volume_claim_templates.iter().flatten() {
            let name = claims::name(set, template, ordinal);
            let Some(claim) = self.claims.get(set.namespace(), &name) else { continue };
            if let Some(owners) = claims::owners(&claim, retention, set, pod, view.is_surplus(ordinal)) {
                if claims::is_contested(&claim, retention, set, pod) {
                    let said = format!(
                        "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
                    );
                    self.by.warning(set, "ConflictingController", said);
                }
                let owners = if owners.is_empty() { Value::Null } else { json!(owners) };
                self.world.change(&*claim, json!({"metadata": {"ownerReferences": owners}})).await?;
            }
        }
        Ok(())
    }

    fn say(&self, set: &StatefulSet, verb: &str, pod: &Pod, problem: Option<&Problem>) {
        let (successful, failed) = match verb {
            "create" => ("SuccessfulCreate", "FailedCreate"),
            "delete" => ("SuccessfulDelete", "FailedDelete"),
            _ => ("SuccessfulUpdate", "FailedUpdate"),
        };
        let what = format!("{verb} Pod {} in StatefulSet {}", pod.name(), set.name());
        match problem {
            None => self.by.normal(set, successful, format!("{what} successful")),
            Some(problem) => self.by.warning(set, failed, format!("{what} failed error: {}", problem.message)),
        }
    }
}
