//! What a Deployment says of itself.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Loop, Rollout, size};
use crate::local::reader::Kind;
use crate::object::status::Problem;

const PROGRESSING: &str = "Progressing";
const DONE: &str = "NewReplicaSetAvailable";
const LATE: &str = "ProgressDeadlineExceeded";

type Conditions = Vec<DeploymentCondition>;

fn find<'a>(all: &'a Conditions, kind: &str) -> Option<&'a DeploymentCondition> {
    all.iter().find(|it| it.type_ == kind)
}

/// Says a condition, unless the same is said already.
fn say(all: &mut Conditions, kind: &str, status: &str, reason: &str, message: String, now: Timestamp) {
    let before = find(all, kind);
    if before.is_some_and(|it| it.status == status && it.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = before.filter(|it| it.status == status).and_then(|it| it.last_transition_time.clone());
    all.retain(|it| it.type_ != kind);
    all.push(DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: since.or(Some(Time(now))),
    });
}

/// The numbers of the status.
pub(super) fn counts(rollout: &Rollout<'_>) -> DeploymentStatus {
    let some = |count: i32| Some(count).filter(|it| *it > 0);
    let told = |of: &dyn Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        rollout.all().filter_map(|it| it.status.as_ref()).map(of).fold(0, i32::saturating_add)
    };
    let available = told(&|it| it.available_replicas.unwrap_or_default());
    let wanted = rollout.all().map(|it| size(it)).fold(0, i32::saturating_add);
    let before = rollout.it.status.as_ref();
    DeploymentStatus {
        observed_generation: rollout.it.metadata.generation,
        replicas: some(told(&|it| it.replicas)),
        updated_replicas: rollout.new.as_ref().and_then(|it| some(it.status.as_ref()?.replicas)),
        ready_replicas: some(told(&|it| it.ready_replicas.unwrap_or_default())),
        available_replicas: some(available),
        unavailable_replicas: some(wanted.saturating_sub(available)),
        collision_count: before.and_then(|it| it.collision_count),
        conditions: before.and_then(|it| it.conditions.clone()),
        ..DeploymentStatus::default()
    }
}

pub(super) fn is_complete(rollout: &Rollout<'_>, told: &DeploymentStatus) -> bool {
    let count = |of: Option<i32>| of.unwrap_or_default();
    [told.updated_replicas, told.replicas, told.available_replicas]
        .into_iter()
        .all(|it| count(it) == rollout.replicas())
        && told.observed_generation >= rollout.it.metadata.generation
}

fn has_moved(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let count = |of: Option<i32>| of.unwrap_or_default();
    let old = |it: &DeploymentStatus| count(it.replicas).saturating_sub(count(it.updated_replicas));
    count(now.updated_replicas) > count(before.updated_replicas)
        || old(now) < old(before)
        || count(now.ready_replicas) > count(before.ready_replicas)
        || count(now.available_replicas) > count(before.available_replicas)
}

/// The status as it is now, and when it has to be looked at again although nothing changes.
fn status(rollout: &Rollout<'_>, now: Timestamp) -> (DeploymentStatus, Option<Timestamp>) {
    let mut told = counts(rollout);
    let before = rollout.it.status.clone().unwrap_or_default();
    let mut all = told.conditions.take().unwrap_or_default();
    if rollout.it.is_deleting() {
        told.conditions = Some(all).filter(|it| !it.is_empty());
        return (told, None);
    }
    let bounds = rollout.bounds();
    let enough = told.available_replicas.unwrap_or_default() >= bounds.least();
    let (status, reason, message) = match enough {
        true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    say(&mut all, "Available", status, reason, message.to_owned(), now);
    let mut late = None;
    let deadline = rollout.spec.progress_deadline_seconds.filter(|it| *it != i32::MAX);
    match deadline {
        None => all.retain(|it| it.type_ != PROGRESSING),
        Some(_) if rollout.spec.paused == Some(true) => {}
        Some(deadline) => {
            let what = match &rollout.new {
                Some(new) => format!("ReplicaSet {:?}", new.name()),
                None => format!("Deployment {:?}", rollout.it.name()),
            };
            if let Some(new) = rollout.new.as_ref().filter(|_| find(&all, PROGRESSING).is_none()) {
                let message = format!("Found new replica set {:?}", new.name());
                say(&mut all, PROGRESSING, "True", "FoundNewReplicaSet", message, now);
            }
            let progressing = find(&all, PROGRESSING).cloned();
            let reason = progressing.as_ref().and_then(|it| it.reason.clone()).unwrap_or_default();
            let after = SignedDuration::from_secs(deadline.into());
            let updated = progressing.as_ref().and_then(|it| it.last_update_time.as_ref()).map(|it| it.0);
            let end = updated.and_then(|it| it.checked_add(after).ok());
            let done = told.replicas == told.updated_replicas && reason == DONE;
            if !done {
                if is_complete(rollout, &told) {
                    say(&mut all, PROGRESSING, "True", DONE, format!("{what} has successfully progressed."), now);
                } else if has_moved(&before, &told) {
                    // It is said again, with the time.
                    let since = progressing.filter(|it| it.status == "True").and_then(|it| it.last_transition_time);
                    all.retain(|it| it.type_ != PROGRESSING);
                    say(&mut all, PROGRESSING, "True", "ReplicaSetUpdated", format!("{what} is progressing."), now);
                    if let (Some(since), Some(it)) = (since, all.last_mut()) {
                        it.last_transition_time = Some(since);
                    }
                } else if reason == LATE || end.is_some_and(|it| it < now) {
                    say(&mut all, PROGRESSING, "False", LATE, format!("{what} has timed out progressing."), now);
                }
            }
            let open = find(&all, PROGRESSING).filter(|it| !matches!(it.reason.as_deref(), Some(DONE | LATE)));
            let from = open.and_then(|it| it.last_update_time.as_ref());
            // A second later than the deadline: times are kept in whole seconds.
            let second = SignedDuration::from_secs(1);
            late = from.and_then(|it| it.0.checked_add(after).ok()?.checked_add(second).ok());
        }
    }
    let failure = rollout.new.iter().chain(&rollout.old).find_map(|set| {
        let all = set.status.as_ref()?.conditions.as_ref()?;
        all.iter().find(|it| it.type_ == "ReplicaFailure").cloned()
    });
    match failure {
        None => all.retain(|it| it.type_ != "ReplicaFailure"),
        Some(it) => {
            let (reason, message) = (it.reason.unwrap_or_default(), it.message.unwrap_or_default());
            say(&mut all, "ReplicaFailure", &it.status, &reason, message, now);
        }
    }
    told.conditions = Some(all).filter(|it| !it.is_empty());
    (told, late)
}

impl Loop {
    pub(super) async fn tell(&self, rollout: &Rollout<'_>) -> Result<Option<Timestamp>, Problem> {
        // What was done is seen: the ReplicaSets as they are now.
        let fresh = |set: &std::sync::Arc<_>| {
            let set: &k8s_openapi::api::apps::v1::ReplicaSet = set;
            self.sets.get(set.namespace(), set.name())
        };
        let now = self.deployments.get(rollout.it.namespace(), rollout.it.name());
        // Of another generation nothing was done yet.
        let same = |it: &std::sync::Arc<Deployment>| it.metadata.generation == rollout.it.metadata.generation;
        let Some(it) = now.filter(same) else { return Ok(None) };
        let rollout = Rollout {
            it: &it,
            spec: rollout.spec,
            new: rollout.new.as_ref().and_then(fresh),
            old: rollout.old.iter().filter_map(fresh).collect(),
        };
        let (status, late) = status(&rollout, self.world.core.clock.now());
        if Some(&status) != rollout.it.status.as_ref() {
            self.world.set_status(rollout.it, &status).await?;
        }
        Ok(late)
    }

    /// Says that it progresses, or why not.
    pub(super) async fn progress(
        &self,
        rollout: &Rollout<'_>,
        status: &str,
        reason: &str,
        message: String,
    ) -> Result<(), Problem> {
        let mut told = rollout.it.status.clone().unwrap_or_default();
        let all = told.conditions.get_or_insert_default();
        say(all, PROGRESSING, status, reason, message, self.world.core.clock.now());
        self.world.set_status(rollout.it, &told).await
    }

    /// Says that it is paused, or goes on. True when that was news.
    pub(super) async fn tell_paused(&self, rollout: &Rollout<'_>, paused: bool) -> Result<bool, Problem> {
        if rollout.spec.progress_deadline_seconds.is_none() {
            return Ok(false);
        }
        let all = rollout.it.status.as_ref().and_then(|it| it.conditions.clone()).unwrap_or_default();
        let reason = find(&all, PROGRESSING).and_then(|it| it.reason.as_deref());
        if reason == Some(LATE) {
            return Ok(false);
        }
        let said = reason == Some("DeploymentPaused");
        match (paused, said) {
            (true, false) => {
                self.progress(rollout, "Unknown", "DeploymentPaused", "Deployment is paused".to_owned()).await?;
            }
            (false, true) => {
                self.progress(rollout, "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned()).await?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
