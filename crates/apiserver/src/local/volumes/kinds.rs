//! Claims, volumes and classes as far as binding them needs to know them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::local::reader::Kind;
use crate::local::workload::pods;
use crate::object::quantity::Quantity;

/// Where a class stood before it had a field.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const STORAGE: &str = "storage";

pub(super) trait Claim {
    /// The class that it names: none is not the same as an empty one.
    fn class(&self) -> Option<&str>;
    /// The volume that it names or has; empty without one.
    fn volume(&self) -> &str;
    fn phase(&self) -> &str;
    fn request(&self) -> Quantity;
    fn capacity(&self) -> Quantity;
    /// How the volume that is made for it is called.
    fn own_volume(&self) -> String;
    fn is_block(&self) -> bool;
    fn attributes_class(&self) -> &str;
}

impl Claim for PersistentVolumeClaim {
    fn class(&self) -> Option<&str> {
        self.annotation(OLD_CLASS).or(self.spec.as_ref()?.storage_class_name.as_deref())
    }

    fn volume(&self) -> &str {
        self.spec.as_ref().and_then(|it| it.volume_name.as_deref()).unwrap_or_default()
    }

    fn phase(&self) -> &str {
        self.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default()
    }

    fn request(&self) -> Quantity {
        size(self.spec.as_ref().and_then(|it| it.resources.as_ref()?.requests.as_ref()))
    }

    fn capacity(&self) -> Quantity {
        size(self.status.as_ref().and_then(|it| it.capacity.as_ref()))
    }

    fn own_volume(&self) -> String {
        format!("pvc-{}", self.uid())
    }

    fn is_block(&self) -> bool {
        self.spec.as_ref().is_some_and(|it| it.volume_mode.as_deref() == Some("Block"))
    }

    fn attributes_class(&self) -> &str {
        self.spec.as_ref().and_then(|it| it.volume_attributes_class_name.as_deref()).unwrap_or_default()
    }
}

pub(super) trait Volume {
    fn class(&self) -> &str;
    fn phase(&self) -> &str;
    fn policy(&self) -> &str;
    fn capacity(&self) -> Quantity;
    fn access_modes(&self) -> &[String];
    fn is_block(&self) -> bool;
    fn attributes_class(&self) -> &str;
    /// Namespace, name and uid of the claim that has it or for which it is kept (then without a uid).
    fn claim(&self) -> Option<(&str, &str, &str)>;
    fn is_for(&self, claim: &PersistentVolumeClaim) -> bool;
}

impl Volume for PersistentVolume {
    fn class(&self) -> &str {
        let field = || self.spec.as_ref()?.storage_class_name.as_deref();
        self.annotation(OLD_CLASS).or_else(field).unwrap_or_default()
    }

    fn phase(&self) -> &str {
        self.status.as_ref().and_then(|it| it.phase.as_deref()).unwrap_or_default()
    }

    fn policy(&self) -> &str {
        self.spec.as_ref().and_then(|it| it.persistent_volume_reclaim_policy.as_deref()).unwrap_or_default()
    }

    fn capacity(&self) -> Quantity {
        size(self.spec.as_ref().and_then(|it| it.capacity.as_ref()))
    }

    fn access_modes(&self) -> &[String] {
        self.spec.as_ref().and_then(|it| it.access_modes.as_deref()).unwrap_or_default()
    }

    fn is_block(&self) -> bool {
        self.spec.as_ref().is_some_and(|it| it.volume_mode.as_deref() == Some("Block"))
    }

    fn attributes_class(&self) -> &str {
        self.spec.as_ref().and_then(|it| it.volume_attributes_class_name.as_deref()).unwrap_or_default()
    }

    fn claim(&self) -> Option<(&str, &str, &str)> {
        let it = self.spec.as_ref()?.claim_ref.as_ref()?;
        Some((
            it.namespace.as_deref().unwrap_or_default(),
            it.name.as_deref().unwrap_or_default(),
            it.uid.as_deref().unwrap_or_default(),
        ))
    }

    fn is_for(&self, claim: &PersistentVolumeClaim) -> bool {
        self.claim().is_some_and(|(namespace, name, uid)| {
            namespace == claim.namespace() && name == claim.name() && (uid.is_empty() || uid == claim.uid())
        })
    }
}

fn size(of: Option<&BTreeMap<String, Text>>) -> Quantity {
    of.and_then(|it| Quantity::parse(&it.get(STORAGE)?.0).ok()).unwrap_or_else(|| Quantity::whole(0))
}

/// The claims that a pod uses.
pub(super) fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    pod.spec.iter().flat_map(|it| it.volumes.iter().flatten()).filter_map(|it| {
        match (&it.persistent_volume_claim, &it.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", pod.name(), it.name)),
            (None, None) => None,
        }
    })
}

/// Whether it has yet to get a node.
pub(super) fn is_unscheduled(pod: &Pod) -> bool {
    pods::node(pod).is_none() && !pods::is_over(pod)
}
