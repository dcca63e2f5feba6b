//! The claims of a StatefulSet's pods, and who owns them by its retention policy.

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::local::reader::Kind;
use crate::local::workload::reference;

/// The claims that the pod of an ordinal has.
pub(super) fn of(set: &StatefulSet, spec: &StatefulSetSpec, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let templates = spec.volume_claim_templates.iter().flatten();
    let made = templates.map(|template| {
        let mut claim = template.clone();
        claim.metadata.name = Some(name(set, template, ordinal));
        claim.metadata.namespace = Some(set.namespace().to_owned());
        let labels = claim.metadata.labels.get_or_insert_default();
        labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
        claim.status = None;
        claim
    });
    made.collect()
}

pub(super) fn name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", template.name(), set.name())
}

/// What is deleted with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    deleted_with_set: bool,
    deleted_when_scaled: bool,
}

impl Retention {
    pub(super) fn of(spec: &StatefulSetSpec) -> Self {
        let policy = spec.persistent_volume_claim_retention_policy.as_ref();
        let deletes = |it: Option<&String>| it.is_some_and(|it| it == "Delete");
        Self {
            deleted_with_set: deletes(policy.and_then(|it| it.when_deleted.as_ref())),
            deleted_when_scaled: deletes(policy.and_then(|it| it.when_scaled.as_ref())),
        }
    }

    fn retains(self) -> bool {
        !self.deleted_with_set && !self.deleted_when_scaled
    }
}

fn names<T: Kind>(it: &OwnerReference, object: &T) -> bool {
    it.api_version == T::API_VERSION && it.kind == T::KIND && it.name == object.name()
}

/// Whether the claim is owned by an older pod of the name, with which it goes: a new one must not use it.
pub(super) fn is_stale(claim: &PersistentVolumeClaim, retention: Retention, pod: &Pod) -> bool {
    retention.deleted_when_scaled && has_stale(claim, pod)
}

fn has_stale<T: Kind>(claim: &PersistentVolumeClaim, object: &T) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.find(|it| names(it, object)).is_some_and(|it| it.uid != object.uid())
}

/// The owners that the claim of a pod shall have, if not those that it has. `scaled` is that the pod is too many.
pub(super) fn owners(
    claim: &PersistentVolumeClaim,
    retention: Retention,
    set: &StatefulSet,
    pod: &Pod,
    scaled: bool,
) -> Option<Vec<OwnerReference>> {
    if has_stale(claim, set) || has_stale(claim, pod) {
        // The garbage collector's affair.
        return None;
    }
    let all = claim.metadata.owner_references.clone().unwrap_or_default();
    let others: Vec<OwnerReference> = all.iter().filter(|it| !names(it, set) && !names(it, pod)).cloned().collect();
    let is_contested = is_contested(claim, retention, set, pod);
    let mut wanted = others;
    if !is_contested {
        if retention.deleted_when_scaled && scaled {
            wanted.push(reference(pod));
        } else if retention.deleted_with_set {
            wanted.push(reference(set));
        }
    }
    let uids = |of: &[OwnerReference]| {
        let mut uids: Vec<(String, bool)> = of.iter().map(|it| (it.uid.clone(), it.controller == Some(true))).collect();
        uids.sort();
        uids
    };
    (uids(&wanted) != uids(&all)).then_some(wanted)
}

/// Whether somebody else controls the claim, so that the policy is not for us to keep.
pub(super) fn is_contested(claim: &PersistentVolumeClaim, retention: Retention, set: &StatefulSet, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    !retention.retains() && owners.any(|it| !names(it, set) && !names(it, pod) && it.controller == Some(true))
}
