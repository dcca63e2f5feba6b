//! What is to be done for a claim or a volume: `pkg/controller/volume/persistentvolume/pv_controller.go` of upstream, but for
//! what is provisioned: here one provisioner serves every class.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::kinds::{Claim, Volume};
use crate::local::events::Level;
use crate::local::reader::Kind;
use crate::local::workload::selector;

pub(in crate::local) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub(super) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub(super) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
pub(in crate::local) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Holds a volume of ours until its directory is gone.
pub(super) const FINALIZER: &str = "kubernetes.io/pv-controller";
/// Who provisions: the name under which upstream makes directories of disks.
pub(in crate::local) const PROVISIONER: &str = "kubernetes.io/host-path";

/// What is said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) level: Level,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Note {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Normal, reason, message: message.into() }
    }

    pub(super) fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { level: Level::Warning, reason, message: message.into() }
    }
}

/// What a claim is looked at beside.
pub(super) struct Position<'a> {
    /// In order of their names.
    pub(super) volumes: &'a [Arc<PersistentVolume>],
    /// The claim's, if there is one of its name.
    pub(super) class: Option<&'a StorageClass>,
    pub(super) default_class: Option<&'a str>,
    /// The pods that wait for it, in order of their names.
    pub(super) unscheduled: &'a [String],
    /// Whether disks can be made here.
    pub(super) provisions: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClaimStep {
    Rest,
    /// It waits.
    Pending(Option<Note>),
    /// It named no class, and there is a default one now.
    TakeClass(String),
    Bind(String),
    Provision,
    /// Its volume shall be as large as it asks for.
    Grow(String),
    Lose(Note),
}

pub(super) fn claim(claim: &PersistentVolumeClaim, at: &Position<'_>) -> ClaimStep {
    let named = || at.volumes.iter().find(|it| it.name() == claim.volume());
    if claim.annotation(BIND_COMPLETED).is_some() {
        return match named() {
            _ if claim.phase() == "Lost" => ClaimStep::Rest,
            _ if claim.volume().is_empty() => ClaimStep::Lose(Note::warning(
                "ClaimLost",
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            )),
            None => ClaimStep::Lose(Note::warning(
                "ClaimLost",
                "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
            )),
            Some(volume) => bound(claim, volume, at),
        };
    }
    if !claim.volume().is_empty() {
        return match named() {
            None => ClaimStep::Pending(None),
            Some(volume) => wished(claim, volume),
        };
    }
    let delayed = at.class.is_some_and(|it| it.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    if let Some(found) = best(claim, at.volumes, delayed) {
        return ClaimStep::Bind(found.name().to_owned());
    }
    match (claim.class(), at.default_class) {
        (None, Some(class)) => ClaimStep::TakeClass(class.to_owned()),
        _ if delayed && claim.annotation(SELECTED_NODE).is_none() => {
            ClaimStep::Pending(Some(first_consumer(at.unscheduled)))
        }
        (Some(""), _) => ClaimStep::Pending(Some(unclassed())),
        (class, _) if at.provisions => match unprovisionable(claim, class.unwrap_or_default()) {
            Some(why) => ClaimStep::Pending(Some(Note::warning("ProvisioningFailed", why))),
            None => ClaimStep::Provision,
        },
        (None, _) => ClaimStep::Pending(Some(unclassed())),
        (Some(class), _) => ClaimStep::Pending(Some(match at.class {
            None => Note::warning("ProvisioningFailed", format!("storageclass.storage.k8s.io {class:?} not found")),
            Some(class) => Note::normal(
                "ExternalProvisioning",
                format!(
                    "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
                    class.provisioner
                ),
            ),
        })),
    }
}

fn unclassed() -> Note {
    Note::normal("FailedBinding", "no persistent volumes available for this claim and no storage class is set")
}

fn first_consumer(pods: &[String]) -> Note {
    match pods {
        [] => Note::normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [one] => Note::normal("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
        many => Note::normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", many.join(","))),
    }
}

/// Why a directory is not what the claim wants.
fn unprovisionable(claim: &PersistentVolumeClaim, class: &str) -> Option<String> {
    if claim.spec.as_ref().is_some_and(|it| it.data_source.is_some()) {
        return Some(format!(
            "plugin {PROVISIONER:?} is not a CSI plugin. Only CSI plugin can provision a claim with a datasource"
        ));
    }
    claim.is_block().then(|| {
        format!(
            "Failed to provision volume with StorageClass {class:?}: {PROVISIONER} does not support block volume provisioning"
        )
    })
}

/// A claim that was bound before.
fn bound(claim: &PersistentVolumeClaim, volume: &PersistentVolume, at: &Position<'_>) -> ClaimStep {
    match volume.claim() {
        Some((.., uid)) if uid != claim.uid() => ClaimStep::Lose(Note::warning(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        )),
        Some(_) if claim.phase() == "Bound" && volume.phase() == "Bound" => {
            let grows = at.provisions
                && is_ours(volume)
                && claim.request() > claim.capacity()
                && at.class.is_some_and(|it| it.allow_volume_expansion == Some(true));
            if grows { ClaimStep::Grow(volume.name().to_owned()) } else { ClaimStep::Rest }
        }
        _ => ClaimStep::Bind(volume.name().to_owned()),
    }
}

/// A claim that names the volume that it wants.
fn wished(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> ClaimStep {
    let name = volume.name();
    if volume.claim().is_none() {
        return match mismatch(claim, volume) {
            None => ClaimStep::Bind(name.to_owned()),
            Some(why) => {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                ClaimStep::Pending(Some(Note::warning("VolumeMismatch", message)))
            }
        };
    }
    if volume.is_for(claim) {
        return ClaimStep::Bind(name.to_owned());
    }
    let message = format!("volume {name:?} already bound to a different claim.");
    ClaimStep::Pending(Some(Note::warning("FailedBinding", message)))
}

fn mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<String> {
    let why = if volume.is_deleting() {
        return Some(format!("the volume is marked for deletion {:?}", volume.name()));
    } else if volume.capacity() < claim.request() {
        "requested PV is too small"
    } else if volume.class() != claim.class().unwrap_or_default() {
        "storageClassName does not match"
    } else if volume.attributes_class() != claim.attributes_class() {
        "volumeAttributesClassName does not match"
    } else if volume.is_block() != claim.is_block() {
        "incompatible volumeMode"
    } else if !has_access(volume, claim) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(why.to_owned())
}

fn has_access(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref().and_then(|it| it.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|it| volume.access_modes().contains(it))
}

/// The volume that is the claim's already, else the smallest that will do, with as few access modes as possible. While a
/// claim waits for its first pod, only the former.
fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    delayed: bool,
) -> Option<&'a PersistentVolume> {
    let wanted = claim.spec.as_ref().and_then(|it| it.selector.as_ref());
    let labels = wanted.and_then(selector);
    if wanted.is_some() && labels.is_none() {
        return None;
    }
    let fits = |volume: &&'a Arc<PersistentVolume>| {
        (volume.claim().is_none() || volume.is_for(claim))
            && has_access(volume, claim)
            && volume.capacity() >= claim.request()
            && volume.is_block() == claim.is_block()
            && volume.attributes_class() == claim.attributes_class()
            && !volume.is_deleting()
    };
    let free = |volume: &&'a Arc<PersistentVolume>| {
        !delayed
            && volume.phase() == "Available"
            && volume.class() == claim.class().unwrap_or_default()
            && labels.as_ref().is_none_or(|it| it.matches(|key| volume.label(key)))
    };
    let own = volumes.iter().filter(fits).find(|it| it.is_for(claim));
    let found = own.or_else(|| {
        let all = volumes.iter().filter(fits).filter(free);
        all.min_by_key(|it| (it.access_modes().len(), it.capacity()))
    });
    found.map(|it| &**it)
}

/// Whether it was made here.
pub(super) fn is_ours(volume: &PersistentVolume) -> bool {
    volume.annotation(PROVISIONED_BY) == Some(PROVISIONER)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    Rest,
    Finalizers(Vec<String>),
    Phase(&'static str),
    /// Nobody has it any more: its directory goes, and then it does.
    Reclaim,
    Fail(Note),
    /// Its claim took another: it is free again. `true` when it was the loop that gave it to the claim.
    Unbind(bool),
    /// Of the volume and of the claim.
    Mismatch(Note, Note),
}

/// `claim` is the one that the volume names, if it is still there.
pub(super) fn volume(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    if let Some(finalizers) = finalizers(volume) {
        return VolumeStep::Finalizers(finalizers);
    }
    let phase = |wanted: &'static str| {
        if volume.phase() == wanted { VolumeStep::Rest } else { VolumeStep::Phase(wanted) }
    };
    let Some((.., wanted)) = volume.claim().filter(|it| !it.2.is_empty()) else {
        return phase("Available");
    };
    let deletes = volume.policy() == "Delete";
    let claim = match claim.filter(|it| it.uid() == wanted) {
        None => return reclaim(volume),
        Some(claim) => claim,
    };
    if claim.volume() == volume.name() {
        return phase("Bound");
    }
    if claim.volume().is_empty() {
        if volume.is_block() == claim.is_block() {
            return VolumeStep::Rest;
        }
        let (of_volume, of_claim) = (volume.name(), claim.name());
        return VolumeStep::Mismatch(
            Note::warning(
                "VolumeMismatch",
                format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {of_claim:?} due to incompatible volumeMode."
                ),
            ),
            Note::warning(
                "VolumeMismatch",
                format!(
                    "Cannot bind PersistentVolume {of_volume:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
                ),
            ),
        );
    }
    if volume.annotation(PROVISIONED_BY).is_some() && deletes {
        return reclaim(volume);
    }
    VolumeStep::Unbind(volume.annotation(BOUND_BY_CONTROLLER).is_some())
}

fn reclaim(volume: &PersistentVolume) -> VolumeStep {
    if !matches!(volume.phase(), "Released" | "Failed") {
        return VolumeStep::Phase("Released");
    }
    let failed = |reason, message: &str| match volume.phase() {
        "Failed" => VolumeStep::Rest,
        _ => VolumeStep::Fail(Note::warning(reason, message)),
    };
    match volume.policy() {
        "Retain" => VolumeStep::Rest,
        // Another's provisioner deletes what it made.
        "Delete" if volume.annotation(PROVISIONED_BY).is_some_and(|it| it != PROVISIONER) => VolumeStep::Rest,
        "Delete" => VolumeStep::Reclaim,
        "Recycle" => failed("VolumeFailedRecycle", "No recycler plugin found for the volume!"),
        _ => failed("VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy"),
    }
}

/// The finalizers that it should have, if it has others.
fn finalizers(volume: &PersistentVolume) -> Option<Vec<String>> {
    if !is_ours(volume) {
        return None;
    }
    let all = volume.metadata.finalizers.as_deref().unwrap_or_default();
    let has = all.iter().any(|it| it == FINALIZER);
    let should = volume.policy() == "Delete";
    match (has, should) {
        (false, true) if !volume.is_deleting() => {
            let mut all = all.to_vec();
            all.push(FINALIZER.to_owned());
            Some(all)
        }
        (true, false) => Some(all.iter().filter(|it| *it != FINALIZER).cloned().collect()),
        _ => None,
    }
}
