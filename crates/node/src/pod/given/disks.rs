//! Volumes that are directories of this machine: those of claims, and of the host.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::Api;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::objects::{ObjectKind, Objects, Seen, bounded, not_found};
use super::ownership;
use super::quantity::value;
use super::security::Allowed;
use crate::engine::Ids;
use crate::launcher::make_in;

/// The claim that a volume names, or, of an ephemeral volume, stands for.
pub(super) fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(it) = &volume.persistent_volume_claim {
        return Some(it.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name))
}

/// A volume of a claim.
#[derive(Debug)]
pub(super) struct Bound {
    /// The PersistentVolume.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// It is one of our directories, and may be a file system of its own.
    pub(super) ours: bool,
    /// Bytes that it was made for.
    pub(super) size: Option<u64>,
    /// For one pod at a time.
    pub(super) alone: bool,
}

/// Why it cannot be mounted: a kubelet says it in different ways.
#[derive(Debug)]
pub(super) enum Unbound {
    /// The claim makes no sense yet.
    Claim(String),
    /// The volume cannot be set up: its name, and why.
    Volume(String, String),
}

/// The directory of a claim that is bound.
pub(super) async fn claimed(
    objects: &Objects,
    pod: &Pod,
    volume: &Volume,
    claim: &str,
    seen: &mut Seen,
) -> Result<(PersistentVolumeClaim, PersistentVolume), Unbound> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let wrong = |why: String| Unbound::Claim(format!("error processing PVC {namespace}/{claim}: {why}"));
    let names = [claim.to_owned()].into();
    let found = objects.get::<PersistentVolumeClaim>(ObjectKind::Claim, namespace, &names, seen).await;
    let fetch = |why: String| wrong(format!("failed to fetch PVC from API server: {why}"));
    let pvc = found.map_err(fetch)?.remove(claim).ok_or_else(|| fetch(not_found(ObjectKind::Claim, claim)))?;
    let protected = pvc.metadata.finalizers.iter().flatten().any(|it| it == "kubernetes.io/pvc-protection");
    if pvc.metadata.deletion_timestamp.is_some() && !protected {
        return Err(wrong("PVC is being deleted".to_owned()));
    }
    if pvc.status.as_ref().and_then(|it| it.phase.as_deref()) != Some("Bound") {
        return Err(wrong("PVC is not bound".to_owned()));
    }
    if volume.ephemeral.is_some() {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut owners = pvc.metadata.owner_references.iter().flatten();
        if !owners.any(|it| it.controller == Some(true) && it.uid == uid) {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            return Err(Unbound::Claim(format!(
                "PVC {namespace}/{claim} was not created for pod {namespace}/{name} (pod is not owner)"
            )));
        }
    }
    let Some(name) = pvc.spec.as_ref().and_then(|it| it.volume_name.clone()).filter(|it| !it.is_empty()) else {
        return Err(wrong("PVC has empty pvc.Spec.VolumeName".to_owned()));
    };
    let pv = bounded(Api::<PersistentVolume>::all(objects.client().clone()).get(&name)).await;
    let pv = pv.map_err(|why| wrong(format!("failed to fetch PV {name} from API server: {why}")))?;
    let of = pv.spec.as_ref().and_then(|it| it.claim_ref.as_ref());
    let Some(of) = of else {
        return Err(wrong(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        )));
    };
    let (ours, theirs) = (pvc.metadata.uid.clone().unwrap_or_default(), of.uid.clone().unwrap_or_default());
    if ours != theirs {
        return Err(wrong(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {theirs} does not point to claim.UID {ours}"
        )));
    }
    let mode = pv.spec.as_ref().and_then(|it| it.volume_mode.as_deref()).unwrap_or("Filesystem");
    if mode != "Filesystem" {
        return Err(Unbound::Claim(format!(
            "volume {} has volumeMode {mode}, but is specified in volumeMounts",
            volume.name
        )));
    }
    Ok((pvc, pv))
}

/// The directory of a PersistentVolume: one of ours, below `ours`, is made when it is not there.
pub(super) fn bound(pv: &PersistentVolume, ours: &Path, allowed: &Allowed, ids: &Ids) -> Result<Bound, Unbound> {
    let name = pv.metadata.name.clone().unwrap_or_default();
    let spec = pv.spec.as_ref();
    let wrong = |why: String| Unbound::Volume(name.clone(), why);
    let local = spec
        .and_then(|it| it.local.as_ref())
        .map(|it| HostPathVolumeSource { path: it.path.clone(), type_: Some("Directory".to_owned()) });
    let Some(source) = local.or_else(|| spec.and_then(|it| it.host_path.clone())) else {
        let why = format!("failed to get Plugin from volumeSpec for volume {name:?} err=no volume plugin matched");
        return Err(Unbound::Claim(format!("{why}: this node mounts directories only")));
    };
    let path = Path::new(&source.path);
    let (path, is_ours) = if is_below(path, ours) && path != ours {
        let made = directory(path, ours, ids);
        let made = made.map_err(|error| wrong(format!("cannot make the directory {}: {error}", path.display())))?;
        // What is deeper a pod may have made.
        let is_ours = made.parent().is_some_and(|it| ours.canonicalize().is_ok_and(|ours| it == ours));
        (made, is_ours)
    } else {
        (host(&source, allowed).map_err(wrong)?, false)
    };
    let size = if is_ours { provisioned(pv) } else { None };
    let alone = spec.and_then(|it| it.access_modes.as_ref()).is_some_and(|it| it == &["ReadWriteOncePod"]);
    Ok(Bound { name, path, ours: is_ours, size, alone })
}

/// The bytes of a volume that was made for a claim: nobody's own is changed.
fn provisioned(pv: &PersistentVolume) -> Option<u64> {
    const BY: (&str, &str) = ("pv.kubernetes.io/provisioned-by", "kubernetes.io/host-path");
    if pv.metadata.annotations.as_ref()?.get(BY.0)? != BY.1 {
        return None;
    }
    let capacity = pv.spec.as_ref()?.capacity.as_ref()?.get("storage")?;
    value(capacity).and_then(|it| u64::try_from(it).ok()).filter(|it| *it > 0)
}

/// Makes a directory below ours, and says where it really is: nowhere else.
fn directory(path: &Path, ours: &Path, ids: &Ids) -> io::Result<PathBuf> {
    if !path.exists() {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        ownership::own(path, None, ids)?;
    }
    let (real, ours) = (path.canonicalize()?, ours.canonicalize()?);
    if real.starts_with(&ours) && real != ours && real.is_dir() {
        return Ok(real);
    }
    Err(io::Error::other(format!("it is no directory below {}", ours.display())))
}

fn is_below(path: &Path, dir: &Path) -> bool {
    path.is_absolute() && path.starts_with(dir) && !path.components().any(|it| it == Component::ParentDir)
}

/// A path of the host, if it is one that pods may have. Links are resolved before it is looked at.
pub(super) fn host(source: &HostPathVolumeSource, allowed: &Allowed) -> Result<PathBuf, String> {
    let text = source.path.as_str();
    let path = Path::new(text);
    if path.components().any(|it| it == Component::ParentDir) {
        return Err(format!("invalid HostPath `{text}`: must not contain '..'"));
    }
    let refused = || {
        format!(
            "hostPath {text:?} is refused on this node: `insula up --allow-host-path DIRECTORY` allows what is below it"
        )
    };
    let roots: Vec<_> = allowed.host_paths.iter().filter_map(|it| it.canonicalize().ok()).collect();
    let within = |it: &Path| roots.iter().any(|root| it.starts_with(root));
    let io = |error: io::Error| format!("cannot use hostPath {text:?}: {error}");
    // The part that is there decides before anything is made.
    let there = path.ancestors().find_map(|it| Some((it, it.canonicalize().ok()?))).filter(|_| path.is_absolute());
    let Some((above, there)) = there.filter(|(_, it)| within(it)) else { return Err(refused()) };
    // A container may change what is below meanwhile: nothing is made by way of a link that leads out.
    let make = |is_dir: bool| -> Result<(), String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat2(CWD, &there, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let root = root.map_err(|error| io(error.into()))?;
        let rest = path.strip_prefix(above).unwrap_or(path);
        if !is_dir && rest.components().count() > 1 {
            return Err(io(io::ErrorKind::NotFound.into()));
        }
        match make_in(&root, rest, is_dir, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
            Ok(_) => Ok(()),
            Err(Errno::XDEV) => Err(refused()),
            Err(error) => Err(io(error.into())),
        }
    };
    let kind = source.type_.as_deref().unwrap_or_default();
    let missing = !path.exists();
    match kind {
        "DirectoryOrCreate" | "" if missing => make(true)?,
        "FileOrCreate" if missing => make(false)?,
        _ => {}
    }
    let found = path.metadata().ok().map(|it| it.file_type());
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(test);
    let (fits, what) = match kind {
        "" => (true, ""),
        "DirectoryOrCreate" | "Directory" => (is(fs::FileType::is_dir), "directory"),
        "FileOrCreate" | "File" => (is(fs::FileType::is_file), "file"),
        "Socket" => (is(FileTypeExt::is_socket), "socket file"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "block device"),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    if !fits {
        return Err(format!("hostPath type check failed: {text} is not a {what}"));
    }
    let real = path.canonicalize().map_err(io)?;
    if within(&real) { Ok(real) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_of_the_host_are_those_that_are_allowed_and_of_the_kind_that_is_wanted() {
        let at = tempfile::tempdir().unwrap();
        let root = at.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("allowed/d")).unwrap();
        fs::create_dir_all(root.join("other")).unwrap();
        fs::write(root.join("allowed/f"), "").unwrap();
        symlink(root.join("other"), root.join("allowed/out")).unwrap();
        symlink(root.join("allowed/d"), root.join("in")).unwrap();
        symlink(root.join("other/made"), root.join("allowed/dangling")).unwrap();
        let allowed = Allowed { host_paths: vec![root.join("allowed")], ..Allowed::default() };
        let refused = "is refused on this node: `insula up --allow-host-path DIRECTORY` allows what is below it";
        let table = [
            ("allowed/d", "Directory", Ok("allowed/d")),
            ("allowed/d", "", Ok("allowed/d")),
            ("allowed", "Directory", Ok("allowed")),
            ("in", "Directory", Ok("allowed/d")),
            ("allowed/f", "File", Ok("allowed/f")),
            ("allowed/new/er", "DirectoryOrCreate", Ok("allowed/new/er")),
            ("allowed/new/f", "FileOrCreate", Ok("allowed/new/f")),
            ("allowed/unset", "", Ok("allowed/unset")),
            ("allowed/f", "Directory", Err("is not a directory")),
            ("allowed/none", "File", Err("is not a file")),
            ("allowed/none/f", "FileOrCreate", Err("entity not found")),
            ("allowed/dangling", "DirectoryOrCreate", Err(refused)),
            ("allowed/f", "Socket", Err("is not a socket file")),
            ("allowed/f", "Odd", Err("Odd is an invalid volume type")),
            ("other", "Directory", Err(refused)),
            ("allowedly", "", Err(refused)),
            ("allowed/out", "Directory", Err(refused)),
            ("allowed/out/made", "DirectoryOrCreate", Err(refused)),
            ("allowed/../other", "Directory", Err("must not contain '..'")),
        ];
        for (path, kind, is) in table {
            let source =
                HostPathVolumeSource { path: root.join(path).display().to_string(), type_: Some(kind.to_owned()) };
            let found = host(&source, &allowed);
            match is {
                Ok(is) => assert_eq!(found, Ok(root.join(is)), "{path}"),
                Err(is) => assert!(found.as_ref().is_err_and(|it| it.ends_with(is)), "{path}: {found:?}"),
            }
            assert!(host(&source, &Allowed::default()).is_err());
        }
        assert!(!root.join("other/made").exists() && !root.join("allowedly").exists());
    }

    #[test]
    fn claims_are_directories_below_ours() {
        let at = tempfile::tempdir().unwrap();
        let ours = at.path().canonicalize().unwrap().join("claims");
        fs::create_dir(&ours).unwrap();
        symlink(at.path(), ours.join("out")).unwrap();
        let pv = |spec: serde_json::Value| {
            serde_json::from_value::<PersistentVolume>(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap()
        };
        let local = |path: &Path| pv(json!({"local": {"path": path}, "accessModes": ["ReadWriteOncePod"]}));
        let found = bound(&local(&ours.join("x")), &ours, &Allowed::default(), &Ids::Own { count: 1 }).unwrap();
        assert_eq!((found.path, found.alone, found.name.as_str()), (ours.join("x"), true, "pv"));
        assert!(ours.join("x").is_dir());
        for path in [ours.clone(), ours.join("out"), ours.join("../x"), at.path().join("y")] {
            assert!(
                matches!(
                    bound(&local(&path), &ours, &Allowed::default(), &Ids::Own { count: 1 }),
                    Err(Unbound::Volume(..))
                ),
                "{path:?}"
            );
        }
        let other = pv(json!({"nfs": {"server": "s", "path": "/"}}));
        match bound(&other, &ours, &Allowed::default(), &Ids::Own { count: 1 }) {
            Err(Unbound::Claim(why)) => assert!(why.contains("no volume plugin matched"), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes_are_those_of_volumes_that_were_made_for_claims() {
        let at = tempfile::tempdir().unwrap();
        let ours = at.path().canonicalize().unwrap().join("volumes");
        fs::create_dir_all(ours.join("one/deeper")).unwrap();
        fs::create_dir_all(at.path().join("host")).unwrap();
        symlink(ours.join("one"), ours.join("link")).unwrap();
        let allowed = Allowed { host_paths: vec![at.path().join("host")], ..Allowed::default() };
        let made = json!({"pv.kubernetes.io/provisioned-by": "kubernetes.io/host-path"});
        let other = json!({"pv.kubernetes.io/provisioned-by": "else"});
        // Whether it is ours, and its bytes.
        let table = [
            (ours.join("one"), made.clone(), "1Gi", (true, Some(1 << 30))),
            (ours.join("new"), made.clone(), "100Ti", (true, Some(100 << 40))),
            (ours.join("one"), made.clone(), "-1", (true, None)),
            (ours.join("one"), other, "1Gi", (true, None)),
            (ours.join("one"), json!({}), "1Gi", (true, None)),
            (ours.join("link"), made.clone(), "1Gi", (true, Some(1 << 30))),
            (ours.join("one/deeper"), made.clone(), "1Gi", (false, None)),
            (at.path().join("host"), made, "1Gi", (false, None)),
        ];
        for (path, annotations, size, is) in table {
            let pv: PersistentVolume = serde_json::from_value(json!({
                "metadata": {"name": "v", "annotations": annotations},
                "spec": {"capacity": {"storage": size}, "hostPath": {"path": path}},
            }))
            .unwrap();
            let bound = bound(&pv, &ours, &allowed, &Ids::Own { count: 1 }).unwrap();
            assert_eq!((bound.ours, bound.size), is, "{}", path.display());
        }
    }
}
