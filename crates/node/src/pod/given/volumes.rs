//! A pod's volumes, made and brought up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume as Wanted};

use super::disks::{self, Unbound};
use super::objects::{ObjectKind, Seen, locked};
use super::ownership::Group;
use super::payload::{self, Named, Owner, Payload, Sources};
use super::{Inner, Record, VolumeError, atomic, ownership, quantity, resources, security, tokens};
use crate::engine::Ids;
use crate::pod::kubelet::plain;
use crate::pod::types::{Volume, VolumeSource};

/// Every container that a pod has or had.
pub(super) fn containers(pod: &Pod) -> Vec<Container> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(plain);
    spec.init_containers.iter().flatten().chain(&spec.containers).cloned().chain(ephemeral).collect()
}

/// The volumes that containers use. Others are nobody's, and may be wrong.
fn used(pod: &Pod) -> Vec<&Wanted> {
    let containers = containers(pod);
    let mounts = containers.iter().flat_map(|it| it.volume_mounts.iter().flatten()).map(|it| it.name.as_str());
    let devices = containers.iter().flat_map(|it| it.volume_devices.iter().flatten()).map(|it| it.name.as_str());
    let names: BTreeSet<_> = mounts.chain(devices).collect();
    let all = pod.spec.iter().flat_map(|it| it.volumes.iter().flatten());
    all.filter(|it| names.contains(it.name.as_str())).collect()
}

/// Whether nobody may write to it, whatever a mount says.
pub(super) fn is_read_only(volume: &Wanted) -> bool {
    let made = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some();
    made || volume.persistent_volume_claim.as_ref().and_then(|it| it.read_only) == Some(true)
}

/// Why one volume is not there.
enum Failure {
    /// What a kubelet cannot even begin with.
    Process(String),
    /// The whole message.
    Mount(String),
}

pub(super) async fn prepare(inner: &Inner, pod: &Pod, dir: &Path) -> Result<Vec<Volume>, VolumeError> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let used = used(pod);
    let mut named = Named::default();
    used.iter().for_each(|it| named.add(it));
    watch(inner, pod, &uid, &used, &named);
    let mut seen = Seen::new();
    let sources = read(inner, pod, &uid, named, &mut seen).await;
    let owner = Owner { user: security::common_user(pod), group: security::volumes_group(pod) };
    let mut made = Vec::new();
    let mut failures = Vec::new();
    for volume in used {
        let one = match &sources {
            Ok(sources) => one(inner, pod, &uid, dir, volume, sources, owner, &mut seen).await,
            Err(why) => Err(Failure::Mount(set_up(&volume.name, why))),
        };
        match one {
            Ok(source) => made.push(source),
            Err(failure) => failures.push((volume.name.clone(), failure)),
        }
    }
    let mut pods = locked(&inner.pods);
    let record = pods.entry(uid).or_insert_with(Record::new);
    record.given = seen;
    // Tokens may have to be renewed at another time.
    record.revised.send_replace(());
    drop(pods);
    if failures.is_empty() { Ok(made) } else { Err(told(failures)) }
}

fn set_up(volume: &str, why: &str) -> String {
    format!("MountVolume.SetUp failed for volume {volume:?} : {why}")
}

/// As a kubelet's events: one for each volume, and one for all those that it cannot begin with.
fn told(failures: Vec<(String, Failure)>) -> VolumeError {
    let (mut messages, mut begun, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let unmounted: Vec<_> = failures.iter().map(|it| it.0.clone()).collect();
    for (name, failure) in failures {
        match failure {
            Failure::Mount(message) => messages.push(message),
            Failure::Process(error) => {
                begun.push(name);
                errors.push(error);
            }
        }
    }
    if !begun.is_empty() {
        messages.push(format!(
            "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[], failed to process \
             volumes=[{}]: {}",
            unmounted.join(" "),
            begun.join(" "),
            errors.join("; "),
        ));
    }
    VolumeError { messages }
}

/// Watches what the volumes are made of, from before it is read.
fn watch(inner: &Inner, pod: &Pod, uid: &str, used: &[&Wanted], named: &Named) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims = used.iter().any(|it| disks::claim_of(pod, it).is_some());
    let kinds = [
        (ObjectKind::ConfigMap, !named.configs.is_empty()),
        (ObjectKind::Secret, !named.secrets.is_empty()),
        (ObjectKind::Claim, claims),
    ];
    let mut pods = locked(&inner.pods);
    let record = pods.entry(uid.to_owned()).or_insert_with(Record::new);
    for (kind, wanted) in kinds {
        let lacking = record.lacking.keys().any(|it| it.0 == kind);
        if wanted || lacking {
            let watched = record.watches.remove(&kind).map_or_else(|| inner.objects.watch(kind, namespace), |it| it.0);
            let mark = watched.mark();
            record.watches.insert(kind, (watched, mark));
        } else {
            record.watches.remove(&kind);
        }
    }
    record.revised.send_replace(());
}

async fn read(inner: &Inner, pod: &Pod, uid: &str, named: Named, seen: &mut Seen) -> Result<Sources, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let objects = &inner.objects;
    let configs = objects.get(ObjectKind::ConfigMap, namespace, &named.configs, seen).await?;
    let secrets = objects.get(ObjectKind::Secret, namespace, &named.secrets, seen).await?;
    let kept = locked(&inner.pods).get(uid).map(|it| it.tokens.clone()).unwrap_or_default();
    let (mut tokens, mut keep) = (BTreeMap::new(), BTreeMap::new());
    for key in named.tokens {
        let now = inner.clock.now();
        let token = tokens::token(objects.client(), pod, &key, kept.get(&key).cloned(), now).await;
        if let Ok(token) = &token {
            keep.insert(key.clone(), token.clone());
        }
        tokens.insert(key, token.map(|it| it.text));
    }
    if let Some(record) = locked(&inner.pods).get_mut(uid) {
        record.tokens = keep;
    }
    Ok(Sources { configs, secrets, tokens })
}

#[allow(clippy::too_many_arguments, reason = "all that one volume hangs on")]
async fn one(
    inner: &Inner,
    pod: &Pod,
    uid: &str,
    dir: &Path,
    volume: &Wanted,
    sources: &Sources,
    owner: Owner,
    seen: &mut Seen,
) -> Result<Volume, Failure> {
    let name = &volume.name;
    let failed = |why: String| Failure::Mount(set_up(name, &why));
    if !is_name(name) {
        return Err(failed(format!("invalid path: {name}")));
    }
    let at = dir.join("volumes").join(name);
    let volume_of = |source, fs_group| Volume { name: name.clone(), source, fs_group };
    if let Some(payload) = payload::of(volume, pod, sources, &inner.node, &owner) {
        let (payload, nested) = (payload.map_err(failed)?, nested(pod, name).map_err(failed)?);
        let (to, ids, now) = (at.clone(), inner.node.ids.clone(), inner.clock.now());
        blocking(move || files(&to, &payload, &nested, owner.group, &ids, now)).await.map_err(failed)?;
        return Ok(volume_of(VolumeSource::Path(at), None));
    }
    if let Some(empty) = &volume.empty_dir {
        return match empty.medium.as_deref().unwrap_or_default() {
            "" => {
                let (to, ids) = (at.clone(), inner.node.ids.clone());
                blocking(move || directory(&to, owner.group, &ids)).await.map_err(failed)?;
                Ok(volume_of(VolumeSource::Path(at), None))
            }
            "Memory" => {
                let size = resources::memory_volume(empty.size_limit.as_ref(), pod, &inner.node);
                Ok(volume_of(VolumeSource::Memory { size }, owner.group))
            }
            other => Err(failed(format!("this node has no emptyDir of medium {other:?}"))),
        };
    }
    if let Some(source) = &volume.host_path {
        let (source, allowed) = (source.clone(), inner.allowed.clone());
        let path = tokio::task::spawn_blocking(move || disks::host(&source, &allowed)).await;
        let path = path.unwrap_or_else(|error| Err(error.to_string())).map_err(failed)?;
        return Ok(volume_of(VolumeSource::Path(path), None));
    }
    if let Some(claim) = disks::claim_of(pod, volume) {
        let told = |it| match it {
            Unbound::Claim(why) => Failure::Process(why),
            Unbound::Volume(name, why) => Failure::Mount(set_up(&name, &why)),
        };
        let (_, pv) = disks::claimed(&inner.objects, pod, volume, &claim, seen).await.map_err(told)?;
        let (node, allowed) = (inner.node.clone(), inner.allowed.clone());
        let bound = tokio::task::spawn_blocking(move || disks::bound(&pv, &node.claims, &allowed, &node.ids)).await;
        let bound = bound.map_err(|error| failed(error.to_string()))?.map_err(told)?;
        if !take(inner, uid, &bound) {
            let why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
            return Err(Failure::Mount(set_up(&bound.name, why)));
        }
        let is_disk = sized(inner, uid, &bound).await.map_err(|why| Failure::Mount(set_up(&bound.name, &why)))?;
        if let Some(group) = owner.group.filter(|_| !is_read_only(volume)) {
            let context = pod.spec.as_ref().and_then(|it| it.security_context.as_ref());
            let lazy = context.and_then(|it| it.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
            give(inner, uid, &bound, is_disk, group, lazy).await.map_err(failed)?;
        }
        let source = if is_disk { VolumeSource::Disk(bound.path) } else { VolumeSource::Path(bound.path) };
        return Ok(volume_of(source, None));
    }
    if let Some(csi) = &volume.csi {
        let why = "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name";
        return Err(failed(format!("{why} {} not found in the list of registered CSI drivers", csi.driver)));
    }
    Err(Failure::Process(format!(
        "failed to get Plugin from volumeSpec for volume {name:?} err=no volume plugin matched"
    )))
}

/// As Kubernetes wants it of a volume's name; it is a directory's here.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-')
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Whether the pod may have it: it is not another's alone.
fn take(inner: &Inner, uid: &str, bound: &disks::Bound) -> bool {
    if !bound.alone {
        return true;
    }
    let mut pods = locked(&inner.pods);
    if pods.iter().any(|(of, record)| of != uid && record.alone.contains(&bound.name)) {
        return false;
    }
    pods.entry(uid.to_owned()).or_insert_with(Record::new).alone.insert(bound.name.clone());
    true
}

/// Whether the volume is a file system of its own, so that its size holds. Looked at once for each pod and size.
async fn sized(inner: &Inner, uid: &str, bound: &disks::Bound) -> Result<bool, String> {
    let Some(runtime) = inner.runtime.as_ref().filter(|_| bound.ours) else { return Ok(false) };
    let known = {
        let pods = locked(&inner.pods);
        let of = |it: &Record| it.sized.get(&bound.name).copied();
        match pods.get(uid).and_then(of).filter(|it| it.0 == bound.size) {
            Some((_, is_disk)) => return Ok(is_disk),
            // Another one is about to have the directory itself, or has it.
            None => pods.values().filter_map(of).any(|it| !it.1).then_some(false),
        }
    };
    let is_disk = match known {
        Some(it) => it,
        None => runtime.bounded(&bound.path, bound.size).await.map_err(|error| kit::chain(&error))?,
    };
    if let Some(record) = locked(&inner.pods).get_mut(uid) {
        record.sized.insert(bound.name.clone(), (bound.size, is_disk));
    }
    Ok(is_disk)
}

/// Gives a claim's files to the group, once for each pod.
async fn give(
    inner: &Inner,
    uid: &str,
    bound: &disks::Bound,
    is_disk: bool,
    group: u32,
    lazy: bool,
) -> Result<(), String> {
    let done = locked(&inner.pods).get(uid).is_some_and(|it| it.owned.contains(&bound.name));
    if done {
        return Ok(());
    }
    // Where this machine does not have the id, what pods have made stays as they made it.
    let group = Group::of(group, &inner.node.ids);
    if group == Group::Everybody {
        return Ok(());
    }
    let held = match inner.runtime.as_ref().filter(|_| is_disk) {
        Some(runtime) => Some(runtime.mounted(&bound.path, None, None).await.map_err(|error| kit::chain(&error))?),
        None => None,
    };
    // Nowhere else is it mounted for us.
    let path = match &held {
        Some(it) => PathBuf::from(format!("/proc/self/fd/{}/.", it.as_raw_fd())),
        None => bound.path.clone(),
    };
    blocking(move || {
        let _held = held;
        if lazy && ownership::is_given(&path, group)? {
            return Ok(());
        }
        ownership::give(&path, group, ownership::Mode::ReadWrite)
    })
    .await?;
    if let Some(record) = locked(&inner.pods).get_mut(uid) {
        record.owned.insert(bound.name.clone());
    }
    Ok(())
}

/// With what is above it: the pod's own directory is for nobody else.
fn make(dir: &Path, ids: &Ids) -> io::Result<()> {
    let volumes = dir.parent().unwrap_or(dir);
    if let Some(pod) = volumes.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(pod)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(volumes)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) => {}
        Ok(()) => {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777))?;
            ownership::own(dir, None, ids)?;
        }
    }
    Ok(())
}

fn directory(dir: &Path, group: Option<u32>, ids: &Ids) -> io::Result<()> {
    if dir.exists() {
        // What the pod's containers made in it is theirs.
        return Ok(());
    }
    let new = dir.with_extension("new");
    make(&new, ids)?;
    if let Some(group) = group.map(|it| Group::of(it, ids)) {
        ownership::give(&new, group, ownership::Mode::ReadWrite)?;
    }
    fs::rename(new, dir)
}

fn files(
    dir: &Path,
    payload: &Payload,
    nested: &[PathBuf],
    group: Option<u32>,
    ids: &Ids,
    now: jiff::Timestamp,
) -> io::Result<()> {
    make(dir, ids)?;
    for it in nested {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir.join(it))?;
    }
    atomic::write(dir, payload, group.map(|it| Group::of(it, ids)), ids, now).map(drop)
}

/// Where other volumes are mounted in this one: nobody can make a directory there later.
fn nested(pod: &Pod, volume: &str) -> Result<Vec<PathBuf>, String> {
    let mut all = Vec::new();
    for container in containers(pod) {
        let mounts = container.volume_mounts.unwrap_or_default();
        let paths: Vec<_> = mounts.iter().map(|it| normal(&it.mount_path)).collect();
        for (mount, at) in mounts.iter().zip(&paths).filter(|it| it.0.name == volume) {
            if mount.sub_path.as_ref().or(mount.sub_path_expr.as_ref()).is_some_and(|it| !it.is_empty()) {
                continue;
            }
            let mut below: Vec<_> =
                paths.iter().filter(|it| *it != at).filter_map(|it| it.strip_prefix(at).ok()).collect();
            below.sort();
            // In one that is nested already, it is the other volume's.
            let mut last: Option<&Path> = None;
            for it in below {
                if last.is_some_and(|last| it.starts_with(last)) {
                    continue;
                }
                if it.to_string_lossy().starts_with("..") {
                    return Err(format!("invalid container mount point {}", it.display()));
                }
                last = Some(it);
                all.push(it.to_path_buf());
            }
        }
    }
    Ok(all)
}

fn normal(path: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(it) => out.push(it),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

/// The empty directories that a pod was given on the disk.
pub(super) fn on_disk(pod: &Pod, dir: &Path) -> Vec<PathBuf> {
    let empty = |it: &&Wanted| it.empty_dir.as_ref().is_some_and(is_on_disk) && is_name(&it.name);
    used(pod).into_iter().filter(empty).map(|it| dir.join("volumes").join(&it.name)).collect()
}

fn is_on_disk(empty: &EmptyDirVolumeSource) -> bool {
    empty.medium.as_deref().unwrap_or_default().is_empty()
}

/// The volumes on the disk with a bound: name, directory, bytes, and the bound as it was written.
pub(super) fn limited(pod: &Pod, dir: &Path) -> Vec<(String, PathBuf, u64, String)> {
    let bound = |it: &&Wanted| {
        let limit = it.empty_dir.as_ref().filter(|it| is_on_disk(it))?.size_limit.as_ref()?;
        let most = quantity::value(limit).and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0)?;
        is_name(&it.name).then(|| (it.name.clone(), dir.join("volumes").join(&it.name), most, limit.0.clone()))
    };
    used(pod).iter().filter_map(bound).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mount_points_in_a_volume_are_made_once_and_not_outside() {
        let pod = |mounts: serde_json::Value| -> Pod {
            let mounts: Vec<_> =
                mounts.as_array().unwrap().iter().map(|it| json!({"name": it[0], "mountPath": it[1]})).collect();
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "volumeMounts": mounts}]}})).unwrap()
        };
        let paths = |it: &[&str]| Ok(it.iter().map(PathBuf::from).collect::<Vec<_>>());
        let all = json!([
            ["v", "/dir"],
            ["x", "/dir/nested"],
            ["x", "/dir/nested/other"],
            ["x", "/dir/nested-vol"],
            ["x", "/dirty"],
            ["x", "/dir/../out"],
            ["x", "/dir/a//b/."],
        ]);
        assert_eq!(nested(&pod(all), "v"), paths(&["a/b", "nested", "nested-vol"]));
        assert_eq!(nested(&pod(json!([["v", "/dir"]])), "v"), paths(&[]));
        let hidden = nested(&pod(json!([["v", "/dir"], ["x", "/dir/..data/x"]])), "v");
        assert_eq!(hidden, Err("invalid container mount point ..data/x".to_owned()));
    }

    #[test]
    fn failures_are_told_as_a_kubelet_tells_them() {
        let failures = vec![
            ("a".to_owned(), Failure::Mount(set_up("a", "secret \"x\" not found"))),
            ("b".to_owned(), Failure::Process("one".into())),
            ("c".to_owned(), Failure::Process("two".into())),
        ];
        assert_eq!(
            told(failures).messages,
            [
                "MountVolume.SetUp failed for volume \"a\" : secret \"x\" not found",
                "Unable to attach or mount volumes: unmounted volumes=[a b c], unattached volumes=[], failed to process \
                 volumes=[b c]: one; two",
            ]
        );
    }
}
