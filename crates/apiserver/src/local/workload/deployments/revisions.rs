//! Which ReplicaSet was when: what `kubectl rollout history` and `undo` read.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::json;

use super::{Loop, Rollout, annotate, size};
use crate::http::json::put;
use crate::local::reader::Kind;
use crate::object::status::Problem;

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The history of one is at most so long, in bytes.
const HISTORY_MAX: usize = 2000;
/// What a ReplicaSet does not get of its Deployment's annotations.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    super::DESIRED,
    super::MOST,
    "deprecated.deployment.rollback.to",
];

pub(super) fn of<T: Kind>(it: &T) -> i64 {
    it.annotation(REVISION).and_then(|it| it.parse().ok()).unwrap_or_default()
}

/// The number of a ReplicaSet that comes after these.
pub(super) fn next(old: &[Arc<ReplicaSet>]) -> i64 {
    old.iter().map(|it| of(&**it)).max().unwrap_or_default().saturating_add(1)
}

/// The Deployment's annotations that its ReplicaSet gets.
pub(super) fn passed_on(it: &Deployment) -> BTreeMap<String, String> {
    let all = it.metadata.annotations.iter().flatten();
    all.filter(|it| !OWN.contains(&it.0.as_str())).map(|(name, value)| (name.clone(), value.clone())).collect()
}

impl Loop {
    /// Gives the new ReplicaSet and the Deployment their revision, and the one the annotations of the other. True when
    /// anything was written.
    pub(super) async fn revise(&self, rollout: &Rollout<'_>) -> Result<bool, Problem> {
        let Some(new) = &rollout.new else { return Ok(false) };
        let (had, revision) = (of(&**new), next(&rollout.old));
        let mut annotations = passed_on(rollout.it);
        annotations.retain(|name, value| new.annotation(name) != Some(value));
        if had < revision {
            annotations.insert(REVISION.to_owned(), revision.to_string());
            if had > 0 {
                annotations.insert(HISTORY.to_owned(), history(new.annotation(HISTORY), had));
            }
        }
        let min_ready = |it: Option<i32>| it.unwrap_or_default();
        let own = min_ready(new.spec.as_ref().and_then(|it| it.min_ready_seconds));
        let wanted = min_ready(rollout.spec.min_ready_seconds);
        if !annotations.is_empty() || own != wanted {
            let mut change = annotate(&annotations);
            if own != wanted {
                put(&mut change, "spec", json!({"minReadySeconds": wanted}));
            }
            self.world.change(&**new, change).await?;
            return Ok(true);
        }
        let told = new.annotation(REVISION);
        if rollout.it.annotation(REVISION) == told {
            return Ok(false);
        }
        let told = told.map(|it| (REVISION.to_owned(), it.to_owned()));
        self.world.change(rollout.it, annotate(&told.into_iter().collect())).await?;
        Ok(true)
    }

    /// Deletes the oldest ReplicaSets that have no pods, all but as many as are to be kept.
    pub(super) async fn forget_oldest(&self, rollout: &Rollout<'_>) -> Result<(), Problem> {
        let Some(limit) = rollout.spec.revision_history_limit.and_then(|it| usize::try_from(it).ok()) else {
            return Ok(());
        };
        let mut old: Vec<&Arc<ReplicaSet>> = rollout.old.iter().filter(|it| !it.is_deleting()).collect();
        old.sort_by_key(|it| of(&***it));
        let many = old.len().saturating_sub(limit);
        let empty = |it: &&&Arc<ReplicaSet>| {
            let status = it.status.as_ref();
            let seen = status.and_then(|it| it.observed_generation) >= it.metadata.generation;
            size(it) == 0 && seen && status.is_none_or(|it| it.replicas == 0)
        };
        for set in old.iter().take(many).filter(empty) {
            self.world.delete(&***set).await?;
        }
        Ok(())
    }
}

/// The revisions that a ReplicaSet had, with one more.
fn history(before: Option<&str>, last: i64) -> String {
    let mut all: Vec<String> = before.iter().flat_map(|it| it.split(',')).map(str::to_owned).collect();
    all.retain(|it| !it.is_empty());
    all.push(last.to_string());
    while all.join(",").len() > HISTORY_MAX {
        all.remove(0);
    }
    all.join(",")
}
