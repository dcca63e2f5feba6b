//! What is to be done for a StatefulSet, as `pkg/controller/statefulset` of upstream decides it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};

use super::claims;
use crate::local::reader::Kind;
use crate::local::workload::pods::{available_from, is_available, is_over, is_ready, phase};
use crate::local::workload::{from_template, share};

const REVISION: &str = "controller-revision-hash";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// More pods than these are not made of one set.
const MOST: i32 = 100_000;
/// Pods that are made by one plan: the others follow when these are there.
const AT_ONCE: usize = 500;

/// A revision of the set: its name, and the template that it has.
#[derive(Clone, Copy)]
pub(super) struct Revision<'a> {
    pub(super) name: &'a str,
    pub(super) template: &'a PodTemplateSpec,
}

/// What is looked at.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) set: &'a StatefulSet,
    pub(super) spec: &'a StatefulSetSpec,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) current: Revision<'a>,
    pub(super) update: Revision<'a>,
    pub(super) now: Timestamp,
}

#[derive(Debug)]
pub(super) enum Step {
    Create(Box<Pod>, i32),
    Delete(Arc<Pod>),
    /// Its claims are there, its identity and its volumes are right, and who owns the claims.
    Keep(Arc<Pod>, i32),
}

/// Steps are taken in this order, one after the other (`one_by_one`: what fails holds up the rest) or together.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) one_by_one: bool,
}

struct Replica<'a> {
    ordinal: i32,
    pod: Option<&'a Arc<Pod>>,
    /// Of the pod, or of the one that is made.
    revision: String,
}

/// The ordinal of a pod by its name. None when it is no pod of the set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &str) -> Option<i32> {
    let (parent, ordinal) = pod.rsplit_once('-')?;
    let is_number = !ordinal.is_empty() && ordinal.bytes().all(|it| it.is_ascii_digit());
    (parent == set.name() && is_number).then_some(ordinal)?.parse().ok()
}

impl<'a> View<'a> {
    fn start(&self) -> i32 {
        self.spec.ordinals.as_ref().and_then(|it| it.start).unwrap_or_default()
    }

    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1).clamp(0, MOST)
    }

    pub(super) fn is_surplus(&self, ordinal: i32) -> bool {
        ordinal < self.start() || ordinal.saturating_sub(self.start()) >= self.replicas()
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.spec.min_ready_seconds.unwrap_or_default(), self.now)
    }

    fn is_unavailable(&self, pod: Option<&Arc<Pod>>) -> bool {
        pod.is_none_or(|it| !self.is_available(it) || it.is_deleting())
    }

    fn partition(&self) -> Option<i32> {
        let rolling = self.spec.update_strategy.as_ref()?.rolling_update.as_ref()?;
        Some(rolling.partition.unwrap_or_default())
    }

    fn rolls(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|it| it.type_.as_deref()) != Some("OnDelete")
    }

    /// Which revision a new pod of an ordinal has: until an update reaches it, the old one.
    fn revision(&self, ordinal: i32) -> Revision<'a> {
        let old = match self.partition() {
            Some(partition) => partition,
            None if self.rolls() => self.set.status.as_ref().and_then(|it| it.current_replicas).unwrap_or_default(),
            None => 0,
        };
        if ordinal < self.start().saturating_add(old) { self.current } else { self.update }
    }

    fn made(&self, ordinal: i32) -> Pod {
        let revision = self.revision(ordinal);
        let mut pod = from_template(revision.template, self.set);
        let name = format!("{}-{ordinal}", self.set.name());
        pod.metadata.labels.get_or_insert_default().insert(REVISION.to_owned(), revision.name.to_owned());
        identify(&mut pod, &name, ordinal);
        self.mount(&mut pod, ordinal);
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(name);
        spec.subdomain = self.spec.service_name.clone().filter(|it| !it.is_empty());
        pod
    }

    /// The claims in the place of the template's volumes of the same names.
    fn mount(&self, pod: &mut Pod, ordinal: i32) {
        let templates = self.spec.volume_claim_templates.as_deref().unwrap_or_default();
        let claimed = templates.iter().map(|template| Volume {
            name: template.name().to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claims::name(self.set, template, ordinal),
                read_only: None,
            }),
            ..Volume::default()
        });
        let volumes = &mut pod.spec.get_or_insert_default().volumes;
        let others = volumes.take().unwrap_or_default();
        let others = others.into_iter().filter(|it| templates.iter().all(|template| template.name() != it.name));
        let all: Vec<Volume> = claimed.chain(others).collect();
        *volumes = Some(all).filter(|it| !it.is_empty());
    }

    pub(super) fn plan(&self) -> Plan {
        let one_by_one = self.spec.pod_management_policy.as_deref() != Some("Parallel");
        let mut plan = Plan { steps: Vec::new(), one_by_one };
        let found: BTreeMap<i32, &Arc<Pod>> =
            self.pods.iter().filter_map(|it| Some((ordinal(self.set, it.name())?, it))).collect();
        let replicas: Vec<Replica> = (0..self.replicas())
            .filter_map(|at| self.start().checked_add(at))
            .map(|ordinal| {
                let pod = found.get(&ordinal).copied();
                let revision = match pod {
                    Some(pod) => pod.label(REVISION).unwrap_or_default(),
                    None => self.revision(ordinal).name,
                };
                Replica { ordinal, pod, revision: revision.to_owned() }
            })
            .collect();
        let surplus: Vec<(i32, &Arc<Pod>)> =
            found.iter().rev().filter(|it| self.is_surplus(*it.0)).map(|(ordinal, pod)| (*ordinal, *pod)).collect();
        if self.set.is_deleting() {
            return plan;
        }
        if self.keep(&mut plan, &replicas) && self.shrink(&mut plan, &replicas, &surplus) && self.rolls() {
            self.roll(&mut plan, &replicas);
        }
        plan
    }

    /// Makes what is missing. False when nothing else may be done yet.
    fn keep(&self, plan: &mut Plan, replicas: &[Replica<'_>]) -> bool {
        let mut created = 0;
        for replica in replicas {
            let Some(pod) = replica.pod else {
                plan.steps.push(Step::Create(Box::new(self.made(replica.ordinal)), replica.ordinal));
                created += 1;
                if plan.one_by_one || created >= AT_ONCE {
                    return false;
                }
                continue;
            };
            if is_over(pod) {
                if !pod.is_deleting() {
                    plan.steps.push(Step::Delete(pod.clone()));
                }
                if plan.one_by_one {
                    return false;
                }
                continue;
            }
            let is_up = phase(pod) == "Running" && is_ready(pod) && self.is_available(pod);
            let waits = plan.one_by_one && (pod.is_deleting() || !is_up);
            if phase(pod) == "Pending" || !waits {
                plan.steps.push(Step::Keep(pod.clone(), replica.ordinal));
            }
            if waits {
                return false;
            }
        }
        true
    }

    /// Deletes what is too many, the last ordinal first. False when nothing else may be done yet.
    fn shrink(&self, plan: &mut Plan, replicas: &[Replica<'_>], surplus: &[(i32, &Arc<Pod>)]) -> bool {
        let first = replicas.iter().filter_map(|it| it.pod).chain(surplus.iter().rev().map(|it| it.1));
        let first_unavailable = first.into_iter().find(|it| self.is_unavailable(Some(it))).map(|it| it.uid());
        plan.steps.extend(surplus.iter().map(|(ordinal, pod)| Step::Keep((*pod).clone(), *ordinal)));
        for (_, pod) in surplus {
            if pod.is_deleting() {
                if plan.one_by_one {
                    return false;
                }
                continue;
            }
            let is_up = phase(pod) == "Running" && is_ready(pod) && self.is_available(pod);
            if plan.one_by_one && !is_up && first_unavailable != Some(pod.uid()) {
                return false;
            }
            plan.steps.push(Step::Delete((*pod).clone()));
            if plan.one_by_one {
                return false;
            }
        }
        true
    }

    /// Deletes pods of older revisions, the last ordinal first: they are made anew.
    fn roll(&self, plan: &mut Plan, replicas: &[Replica<'_>]) {
        let first = usize::try_from(self.partition().unwrap_or_default()).unwrap_or_default();
        let is_old = |it: &&Replica<'_>| it.revision != self.update.name && it.pod.is_some_and(|it| !it.is_deleting());
        let rolling = self.spec.update_strategy.as_ref().and_then(|it| it.rolling_update.as_ref());
        let targets = replicas.iter().skip(first).rev();
        if let Some(most) = rolling.and_then(|it| it.max_unavailable.as_ref()) {
            let most = share(most, self.replicas(), false).max(1);
            let most = usize::try_from(most).unwrap_or_default();
            let unavailable = replicas.iter().filter(|it| self.is_unavailable(it.pod)).count();
            let old = targets.filter(is_old).filter_map(|it| it.pod).take(most.saturating_sub(unavailable));
            plan.steps.extend(old.cloned().map(Step::Delete));
            return;
        }
        for target in targets {
            if is_old(&target) {
                plan.steps.extend(target.pod.cloned().map(Step::Delete));
                return;
            }
            if self.is_unavailable(target.pod) {
                return;
            }
        }
    }

    /// A pod with the identity and the volumes that it must have, if it has not.
    pub(super) fn mended(&self, pod: &Pod, ordinal: i32) -> Option<Pod> {
        let claims = self.spec.volume_claim_templates.iter().flatten();
        let volumes = || pod.spec.iter().flat_map(|it| it.volumes.iter().flatten());
        let mut claims = claims.map(|it| (it.name(), claims::name(self.set, it, ordinal)));
        let is_mounted = claims.all(|(name, claim)| {
            let mut claimed =
                volumes().filter(|it| it.name == name).filter_map(|it| it.persistent_volume_claim.as_ref());
            claimed.any(|it| it.claim_name == claim)
        });
        if pod.label(POD_NAME) == Some(pod.name()) && is_mounted {
            return None;
        }
        let mut mended = pod.clone();
        let name = pod.name().to_owned();
        identify(&mut mended, &name, ordinal);
        if !is_mounted {
            self.mount(&mut mended, ordinal);
        }
        Some(mended)
    }

    /// `collisions` as the history counts them.
    pub(super) fn status(&self, collisions: i32) -> StatefulSetStatus {
        let count = |fits: &dyn Fn(&Pod) -> bool| {
            i32::try_from(self.pods.iter().filter(|it| fits(it)).count()).unwrap_or(i32::MAX)
        };
        let runs = |pod: &Pod| phase(pod) == "Running" && is_ready(pod);
        let has = |pod: &Pod, revision: &str| !pod.is_deleting() && pod.label(REVISION) == Some(revision);
        let total = count(&|_| true);
        let ready = count(&runs);
        let updated = count(&|it| has(it, self.update.name));
        let mut current = (self.current.name, count(&|it| has(it, self.current.name)));
        let wanted = self.replicas();
        if self.rolls() && [total, ready, updated] == [wanted; 3] {
            current = (self.update.name, updated);
        }
        let some = |it: i32| Some(it).filter(|it| *it != 0);
        StatefulSetStatus {
            available_replicas: Some(count(&|it| runs(it) && self.is_available(it))),
            collision_count: Some(collisions),
            conditions: self.set.status.as_ref().and_then(|it| it.conditions.clone()),
            current_replicas: some(current.1),
            current_revision: Some(current.0.to_owned()),
            observed_generation: self.set.metadata.generation,
            ready_replicas: some(ready),
            replicas: total,
            update_revision: Some(self.update.name.to_owned()),
            updated_replicas: some(updated),
        }
    }

    /// When the next pod becomes available by having been ready for long enough.
    pub(super) fn next_available(&self) -> Option<Timestamp> {
        let seconds = self.spec.min_ready_seconds.unwrap_or_default();
        self.pods.iter().filter_map(|it| available_from(it, seconds)).filter(|it| *it > self.now).min()
    }
}

fn identify(pod: &mut Pod, name: &str, ordinal: i32) {
    pod.metadata.name = Some(name.to_owned());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.to_owned());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
}
