//! PersistentVolumeClaims get their volumes: those that are there, or directories of this machine, whatever class they
//! name. Volumes that nobody claims any more are kept or go, as their policy says.

mod disk;
pub(super) mod ephemeral;
mod kinds;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use self::disk::Disk;
use self::kinds::{Claim, Volume, claims_of, is_unscheduled};
pub(super) use self::plan::{BIND_COMPLETED, PROVISIONER, SELECTED_NODE};
use self::plan::{BOUND_BY_CONTROLLER, ClaimStep, FINALIZER, Note, PROVISIONED_BY, Position, VolumeStep};
use super::World;
use super::drive::drive;
use super::events::{Recorder, reference};
use super::reader::{Kind, Reader, key};
use super::write::set;
use crate::object::status::Problem;
use crate::store::{Event, Key};
use crate::verbs::meta;

const CLAIMS: &str = "persistentvolumeclaims";
const VOLUMES: &str = "persistentvolumes";
const CLASSES: (&str, &str) = ("storage.k8s.io", "storageclasses");
pub(super) const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const OLD_DEFAULT_CLASS: &str = "storageclass.beta.kubernetes.io/is-default-class";
/// What a claim says of who provisions for it.
const BY: [&str; 2] = ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];

/// Binds and provisions. `volumes` is where directories are made; without it only what is there is bound.
pub(super) async fn follow(world: Arc<World>, volumes: Option<PathBuf>) {
    let it = Binder::new(&world, volumes);
    let watched = [("", CLAIMS), ("", VOLUMES), CLASSES, ("", "pods")];
    drive(&world.core, &watched, || it.all(), |change| it.wakes(change), |key| it.look(key)).await;
}

struct Binder<'a> {
    world: &'a World,
    claims: Reader<PersistentVolumeClaim>,
    volumes: Reader<PersistentVolume>,
    classes: Reader<StorageClass>,
    disk: Option<Disk>,
    by: Recorder,
    grower: Recorder,
    /// Claims without a volume, to be looked at again when there is one or a class.
    waiting: Mutex<BTreeSet<Key>>,
    /// What was said last of an object: nothing is said again because something else has changed.
    said: Mutex<HashMap<Key, Note>>,
}

impl<'a> Binder<'a> {
    fn new(world: &'a World, volumes: Option<PathBuf>) -> Self {
        let core = &world.core;
        Self {
            world,
            claims: Reader::new(core),
            volumes: Reader::new(core),
            classes: Reader::new(core),
            disk: volumes.map(Disk::new),
            by: world.events.of(core, "persistentvolume-controller"),
            grower: world.events.of(core, "volume_expand"),
            waiting: Mutex::default(),
            said: Mutex::default(),
        }
    }

    fn all(&self) -> Vec<Key> {
        let volumes = self.volumes.list(None);
        volumes.iter().map(|it| it.key()).chain(self.claims.list(None).iter().map(|it| it.key())).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn said(&self) -> MutexGuard<'_, HashMap<Key, Note>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakes(&self, change: &Event) -> Vec<Key> {
        let of = &change.entry.key;
        match &*of.resource {
            CLAIMS => {
                let states = [Some(&*change.entry), change.prev.as_deref()].into_iter().flatten();
                let claims = states.filter_map(|it| self.claims.of(it));
                let volumes = claims.flat_map(|it| [it.volume().to_owned(), it.own_volume()]);
                let volumes = volumes.filter(|it| !it.is_empty()).map(|it| key::<PersistentVolume>("", &it));
                volumes.chain([of.clone()]).collect()
            }
            VOLUMES => {
                let mut due = vec![of.clone()];
                if let Some(volume) = self.volumes.of(&change.entry) {
                    match volume.claim() {
                        Some((namespace, name, _)) => due.push(key::<PersistentVolumeClaim>(namespace, name)),
                        None => due.extend(self.waiting().iter().cloned()),
                    }
                }
                due
            }
            "pods" => {
                let waiting = self.waiting();
                if !waiting.iter().any(|it| it.namespace == of.namespace) {
                    return Vec::new();
                }
                let pod = self.world.pods.of(&change.entry);
                let claims = pod.iter().flat_map(|it| claims_of(it));
                claims
                    .map(|it| key::<PersistentVolumeClaim>(&of.namespace, &it))
                    .filter(|it| waiting.contains(it))
                    .collect()
            }
            _ => self.waiting().iter().cloned().collect(),
        }
    }

    async fn look(&self, of: Key) -> Result<Option<Timestamp>, Problem> {
        if *of.resource == *VOLUMES {
            match self.volumes.get("", &of.name) {
                Some(volume) => self.volume(&volume).await?,
                None => drop(self.said().remove(&of)),
            }
            return Ok(None);
        }
        self.waiting().remove(&of);
        match self.claims.get(&of.namespace, &of.name) {
            Some(claim) => self.claim(&claim).await?,
            None => drop(self.said().remove(&of)),
        }
        Ok(None)
    }

    async fn claim(&self, claim: &PersistentVolumeClaim) -> Result<(), Problem> {
        let named = [claim.volume().to_owned(), claim.own_volume()];
        let mut volumes: Vec<_> = named.iter().filter_map(|it| self.volumes.get("", it)).collect();
        if volumes.is_empty() && claim.volume().is_empty() {
            volumes = self.volumes.list(None);
        }
        let class = claim.class().and_then(|it| self.classes.get("", it));
        let default = self.default_class().filter(|_| claim.class().is_none());
        let unscheduled: Vec<String> = if claim.volume().is_empty() { self.unscheduled(claim) } else { Vec::new() };
        let position = Position {
            volumes: &volumes,
            class: class.as_deref(),
            default_class: default.as_deref(),
            unscheduled: &unscheduled,
            provisions: self.disk.is_some(),
        };
        match plan::claim(claim, &position) {
            ClaimStep::Rest => {}
            ClaimStep::Pending(note) => {
                self.waiting().insert(claim.key());
                if let Some(note) = note {
                    self.say(claim, note);
                }
                self.claim_phase(claim, "Pending").await?;
            }
            ClaimStep::Lose(note) => {
                self.waiting().insert(claim.key());
                if self.claim_phase(claim, "Lost").await? {
                    self.say(claim, note);
                }
            }
            ClaimStep::TakeClass(name) => {
                let spec = |it: &mut Value| set(it, &["spec", "storageClassName"], json!(name));
                self.world.update(claim, "", spec).await?;
            }
            ClaimStep::Bind(name) => {
                if let Some(volume) = self.volumes.get("", &name) {
                    self.bind(claim, volume).await?;
                }
            }
            ClaimStep::Provision => self.provision(claim, class.as_deref()).await?,
            ClaimStep::Grow(name) => {
                if let Some(volume) = self.volumes.get("", &name) {
                    self.grow(claim, &volume).await?;
                }
            }
        }
        Ok(())
    }

    /// The newest of the classes that say they are it.
    fn default_class(&self) -> Option<String> {
        let is = |it: &&Arc<StorageClass>| {
            [DEFAULT_CLASS, OLD_DEFAULT_CLASS].iter().any(|key| it.annotation(key) == Some("true"))
        };
        let all = self.classes.list(None);
        let newest =
            all.iter().rev().filter(is).max_by_key(|it| it.metadata.creation_timestamp.as_ref().map(|it| it.0));
        newest.map(|it| it.name().to_owned())
    }

    fn unscheduled(&self, claim: &PersistentVolumeClaim) -> Vec<String> {
        let pods = self.world.pods.list(Some(claim.namespace()));
        let waits = pods.iter().filter(|it| is_unscheduled(it) && claims_of(it).any(|it| it == claim.name()));
        waits.map(|it| it.name().to_owned()).collect()
    }

    fn say<T: Kind>(&self, about: &T, note: Note) {
        let before = self.said().insert(about.key(), note.clone());
        if before.as_ref() != Some(&note) {
            self.by.say(reference(about), note.level, note.reason, "", note.message);
        }
    }

    /// Puts a claim that has no volume into a phase. Whether it was in another.
    async fn claim_phase(&self, claim: &PersistentVolumeClaim, phase: &str) -> Result<bool, Problem> {
        let status = claim.status.as_ref();
        let has_left = status.is_some_and(|it| it.capacity.is_some() || it.access_modes.is_some());
        if claim.phase() == phase && !has_left {
            return Ok(false);
        }
        self.world
            .update(claim, "status", |it| {
                let status = meta::map(meta::map(it).entry("status").or_insert_with(|| json!({})));
                for field in ["accessModes", "capacity"] {
                    status.shift_remove(field);
                }
                status.insert("phase".into(), json!(phase));
            })
            .await?;
        Ok(claim.phase() != phase)
    }

    /// Makes both sides say that they belong together, the volume's first.
    async fn bind(&self, claim: &PersistentVolumeClaim, mut volume: Arc<PersistentVolume>) -> Result<(), Problem> {
        if volume.claim() != Some((claim.namespace(), claim.name(), claim.uid())) {
            let chosen = !volume.is_for(claim);
            self.world
                .update(&*volume, "", |it| {
                    set(it, &["spec", "claimRef"], reference(claim));
                    if chosen {
                        set(it, &["metadata", "annotations", BOUND_BY_CONTROLLER], json!("yes"));
                    }
                })
                .await?;
            volume = self.volumes.get("", volume.name()).ok_or_else(|| gone(&*volume))?;
        }
        let of_volume = async {
            match volume.phase() {
                "Bound" => Ok(()),
                _ => self.volume_phase(&volume, "Bound", "").await,
            }
        };
        let (of_claim, of_volume) = futures::join!(self.bind_claim(claim, &volume), of_volume);
        of_volume?;
        of_claim?;
        let claim = self.claims.get(claim.namespace(), claim.name()).ok_or_else(|| gone(claim))?;
        let modes = claim.status.as_ref().and_then(|it| it.access_modes.as_deref()).unwrap_or_default();
        if claim.phase() != "Bound" || modes != volume.access_modes() {
            self.world
                .update(&*claim, "status", |it| {
                    set(it, &["status", "accessModes"], json!(volume.access_modes()));
                    if claim.phase() != "Bound" {
                        let capacity = volume.spec.as_ref().and_then(|it| it.capacity.as_ref());
                        set(it, &["status", "capacity"], json!(capacity));
                        set(it, &["status", "phase"], json!("Bound"));
                    }
                })
                .await?;
        }
        self.said().remove(&claim.key());
        Ok(())
    }

    async fn bind_claim(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Problem> {
        let chosen = claim.volume() != volume.name();
        let made = claim.own_volume() == volume.name() && plan::is_ours(volume);
        let mut notes: Vec<(&str, &str)> = vec![(BIND_COMPLETED, "yes")];
        notes.extend(chosen.then_some((BOUND_BY_CONTROLLER, "yes")));
        notes.extend(BY.iter().filter(|_| made).map(|it| (*it, PROVISIONER)));
        notes.retain(|it| claim.annotation(it.0).is_none());
        if !chosen && notes.is_empty() {
            return Ok(());
        }
        self.world
            .update(claim, "", |it| {
                set(it, &["spec", "volumeName"], json!(volume.name()));
                for (key, value) in notes {
                    set(it, &["metadata", "annotations", key], json!(value));
                }
            })
            .await
    }

    /// Makes a directory and a volume of it, for this claim alone.
    async fn provision(&self, claim: &PersistentVolumeClaim, class: Option<&StorageClass>) -> Result<(), Problem> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let name = claim.own_volume();
        let path = match disk.make(&name).await {
            Ok(path) => path,
            Err(error) => {
                let class = claim.class().unwrap_or_default();
                let why = format!("Failed to provision volume with StorageClass {class:?}: {error}");
                self.say(claim, Note::warning("ProvisioningFailed", why.clone()));
                return Err(Problem::internal(&why));
            }
        };
        let of = key::<PersistentVolume>("", &name);
        let wanted = claim.spec.as_ref();
        let policy = class.and_then(|it| it.reclaim_policy.as_deref()).unwrap_or("Delete");
        let mut volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {
                "name": name,
                "annotations": {
                    "kubernetes.io/createdby": "hostpath-dynamic-provisioner", BOUND_BY_CONTROLLER: "yes",
                    PROVISIONED_BY: PROVISIONER,
                },
            },
            "spec": {
                "capacity": wanted.and_then(|it| it.resources.as_ref()?.requests.as_ref()),
                "accessModes": wanted.and_then(|it| it.access_modes.as_ref()),
                "claimRef": reference(claim),
                "hostPath": {"path": path, "type": ""},
                "persistentVolumeReclaimPolicy": policy,
                "storageClassName": claim.class().unwrap_or_default(),
                "volumeMode": "Filesystem",
            },
        });
        if policy == "Delete" {
            set(&mut volume, &["metadata", "finalizers"], json!([FINALIZER]));
        }
        match self.world.make(&of, volume).await {
            Err(problem) if problem.reason != "AlreadyExists" => return Err(problem),
            _ => {}
        }
        let message = format!("Successfully provisioned volume {name} using {PROVISIONER}");
        self.by.normal(claim, "ProvisioningSucceeded", message);
        match self.volumes.get("", &name) {
            Some(volume) => self.bind(claim, volume).await,
            None => Ok(()),
        }
    }

    /// A directory is as large as it is said to be.
    async fn grow(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Result<(), Problem> {
        let wanted = claim.spec.as_ref().and_then(|it| it.resources.as_ref()?.requests.as_ref()?.get("storage"));
        if volume.capacity() < claim.request() {
            self.world.update(volume, "", |it| set(it, &["spec", "capacity", "storage"], json!(wanted))).await?;
        }
        self.world.update(claim, "status", |it| set(it, &["status", "capacity", "storage"], json!(wanted))).await?;
        self.grower.normal(claim, "VolumeResizeSuccessful", "Resize volume succeeded");
        Ok(())
    }

    async fn volume(&self, volume: &PersistentVolume) -> Result<(), Problem> {
        let claim = volume.claim().and_then(|it| self.claims.get(it.0, it.1));
        match plan::volume(volume, claim.as_deref()) {
            VolumeStep::Rest => Ok(()),
            VolumeStep::Finalizers(all) => self.world.update(volume, "", |it| meta::set_finalizers(it, &all)).await,
            VolumeStep::Phase(phase) => self.volume_phase(volume, phase, "").await,
            VolumeStep::Reclaim => self.reclaim(volume).await,
            VolumeStep::Fail(note) => self.fail(volume, note).await,
            VolumeStep::Unbind(wholly) => {
                self.world
                    .update(volume, "", |it| {
                        if !wholly {
                            return set(it, &["spec", "claimRef", "uid"], Value::Null);
                        }
                        set(it, &["spec", "claimRef"], Value::Null);
                        set(it, &["metadata", "annotations", BOUND_BY_CONTROLLER], Value::Null);
                    })
                    .await
            }
            VolumeStep::Mismatch(of_volume, of_claim) => {
                self.say(volume, of_volume);
                if let Some(claim) = claim {
                    self.say(&*claim, of_claim);
                }
                Ok(())
            }
        }
    }

    async fn volume_phase(&self, volume: &PersistentVolume, phase: &str, message: &str) -> Result<(), Problem> {
        self.world
            .update(volume, "status", |it| {
                set(it, &["status", "phase"], json!(phase));
                set(it, &["status", "message"], if message.is_empty() { Value::Null } else { json!(message) });
            })
            .await
    }

    async fn fail(&self, volume: &PersistentVolume, note: Note) -> Result<(), Problem> {
        if volume.phase() != "Failed" {
            self.volume_phase(volume, "Failed", &note.message).await?;
            self.say(volume, note);
        }
        Ok(())
    }

    /// Removes a volume with what is in it.
    async fn reclaim(&self, volume: &PersistentVolume) -> Result<(), Problem> {
        let name = volume.name();
        let path = volume.spec.as_ref().and_then(|it| Some(it.host_path.as_ref()?.path.as_str()));
        let removed = match (&self.disk, path) {
            (Some(disk), Some(path)) => disk.remove(name, path).await,
            _ => {
                let why = "no deletable volume plugin matched";
                Err(refused(&format!("error getting deleter volume plugin for volume {name:?}: {why}")))
            }
        };
        if let Err(error) = removed {
            self.fail(volume, Note::warning("VolumeFailedDelete", error.to_string())).await?;
            // What is not ours never will be; what cannot be removed now may be later.
            return match error.kind() {
                io::ErrorKind::InvalidInput => Ok(()),
                _ => Err(Problem::internal(&error.to_string())),
            };
        }
        self.world.delete(volume).await?;
        let Some(left) = self.volumes.get("", name) else { return Ok(()) };
        let mut finalizers = left.metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|it| it != FINALIZER);
        if left.metadata.finalizers.as_ref().is_some_and(|it| it.len() > finalizers.len()) {
            self.world.update(&*left, "", |it| meta::set_finalizers(it, &finalizers)).await?;
        }
        Ok(())
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn gone<T: Kind>(it: &T) -> Problem {
    let key = it.key();
    Problem::not_found(crate::object::status::What::new(&key.group, &key.resource), &key.name)
}
