//! Volumes of claims that are file systems of their own.

use std::fs;

use super::*;

/// A place with a directory for volumes; `None` where no size can hold.
async fn open(what: &str) -> Option<(Place, PathBuf)> {
    let place = Place::open().await;
    let found = place.runtime.shared.engine.findings().await.iter().find(|it| it.name == "quota").unwrap();
    if !found.ok {
        eprintln!("skipped: {what}: {}", found.why);
        place.close().await;
        return None;
    }
    let at = place.dir.path().canonicalize().unwrap().join("volumes");
    fs::create_dir(&at).unwrap();
    Some((place, at))
}

fn directory(at: &Path, name: &str) -> PathBuf {
    let path = at.join(name);
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    path
}

/// The loop devices that have the image of a directory.
fn devices(directory: &Path) -> Vec<String> {
    let image = directory.join(crate::launcher::IMAGE).display().to_string();
    let all = fs::read_dir("/sys/block").unwrap().flatten();
    let has =
        all.filter(|it| fs::read_to_string(it.path().join("loop/backing_file")).is_ok_and(|it| it.trim() == image));
    has.map(|it| it.file_name().into_string().unwrap()).collect()
}

/// The kernel lets go of a device a moment after its last mount.
pub(super) async fn no_device(directory: &Path) {
    while !devices(directory).is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Whether this process may resize what is mounted.
fn grows() -> bool {
    let may = rustix::thread::capabilities(None).unwrap().effective;
    may.contains(rustix::thread::CapabilitySet::SYS_RESOURCE)
}

async fn pod(place: &Place, uid: &str, source: VolumeSource, mounts: &[(&str, &str, bool)]) {
    let volume = Volume { name: "v".into(), source, fs_group: None };
    place.pod(uid, |it| it.volumes = vec![volume]).await;
    let mount = |&(sub_path, path, read_only): &(&str, &str, bool)| Mount {
        volume: "v".into(),
        sub_path: sub_path.into(),
        path: path.into(),
        read_only,
    };
    let mounts = mounts.iter().map(mount).collect();
    place.start(uid, ContainerConfig { mounts, ..container("c", "exec sleep 1000") }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_holds_no_more_than_its_size_and_is_the_same_for_all_who_have_it() {
    let Some((place, at)) = open("the size of a volume").await else { return };
    let path = directory(&at, "claim");
    assert!(place.runtime.bounded(&path, Some(32 << 20)).await.unwrap());
    let disk = || VolumeSource::Disk(path.clone());
    let (one, two) = (
        pod(&place, "one", disk(), &[("", "/v", false), ("sub/dir", "/sub", false)]),
        pod(&place, "two", disk(), &[("", "/v", false), ("", "/ro", true)]),
    );
    futures::join!(one, two);
    assert_eq!(devices(&path).len(), 1, "two would destroy it");
    assert_eq!(
        place.exec("one", "c", "echo it > /sub/f; chown 1000 /sub/f; stat -c '%u %a' /v; ls -A /v").await.1,
        "0 777\nsub\n"
    );
    assert_eq!(
        place
            .exec("two", "c", "cat /v/sub/dir/f; stat -c %u /ro/sub/dir/f; touch /ro/x 2>/dev/null || echo no")
            .await
            .1,
        "it\n1000\nno\n"
    );
    let flags = place.exec("two", "c", "grep ' /v ' /proc/self/mounts").await.1;
    assert!(flags.contains("nosuid,nodev"), "{flags}");
    // Nobody sees it who has it not.
    let device = format!("/dev/{} ", devices(&path).first().unwrap());
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&device), "a mount of the host");
    let full = "head -c 64M /dev/zero > /v/big 2>/dev/null || echo full; stat -c %s /v/big";
    let (_, said) = place.exec("one", "c", full).await;
    let wrote: u64 = said.strip_prefix("full\n").unwrap().trim().parse().unwrap();
    assert!(wrote > 20 << 20 && wrote < 32 << 20, "{wrote}");

    // It grows under those who have it, and never becomes smaller.
    let total = async |uid: &str| -> u64 {
        place.exec(uid, "c", "df -B1 --output=size /v | tail -1").await.1.trim().parse().unwrap()
    };
    let before = total("one").await;
    assert!(place.runtime.bounded(&path, Some(300 << 20)).await.unwrap(), "grown or not, it is what it was");
    if grows() {
        let after = total("one").await;
        assert!(before < 32 << 20 && after > 250 << 20 && after < 300 << 20, "{before} {after}");
        assert_eq!(place.exec("two", "c", "head -c 64M /dev/zero > /v/big; stat -c %s /v/big").await.1, "67108864\n");
    } else {
        eprintln!("skipped: growing a file system that is mounted: only who has CAP_SYS_RESOURCE can");
    }
    let after = total("one").await;
    assert!(place.runtime.bounded(&path, Some(1 << 20)).await.unwrap());
    assert_eq!(total("two").await, after);

    // With the last of them it goes, and what was in it is there for the next one.
    place.runtime.remove("one").await.unwrap();
    assert_eq!((place.exec("two", "c", "cat /v/sub/dir/f").await.1, devices(&path).len()), ("it\n".to_owned(), 1));
    place.runtime.remove("two").await.unwrap();
    no_device(&path).await;
    pod(&place, "three", disk(), &[("sub/dir", "/v", false)]).await;
    assert_eq!(place.exec("three", "c", "cat /v/f").await.1, "it\n");
    // Without anybody who takes it away.
    place.runtime.end("three").await.unwrap();
    no_device(&path).await;
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_file_system_of_its_own_stays_a_directory() {
    let Some((place, at)) = open("what is no file system").await else { return };
    let runtime = &place.runtime;
    let path = directory(&at, "filled");
    fs::write(path.join("f"), "it").unwrap();
    assert!(!runtime.bounded(&path, Some(32 << 20)).await.unwrap());
    // A pod made it, not we.
    let path = directory(&at, "faked");
    fs::write(path.join(crate::launcher::IMAGE), "it").unwrap();
    assert!(!runtime.bounded(&path, Some(32 << 20)).await.unwrap());
    let path = directory(&at, "large");
    assert!(
        !runtime.bounded(&path, Some(100 << 40)).await.unwrap()
            && !runtime.bounded(&path, Some(u64::MAX)).await.unwrap()
    );
    // Nobody's own: it is one only if it was one.
    assert!(!runtime.bounded(&path, None).await.unwrap());
    let path = directory(&at, "used");
    pod(&place, "one", VolumeSource::Path(path.clone()), &[("", "/v", false)]).await;
    assert!(!runtime.bounded(&path, Some(32 << 20)).await.unwrap(), "its pod would write beside it");
    runtime.remove("one").await.unwrap();
    let both = futures::join!(runtime.bounded(&path, Some(32 << 20)), runtime.bounded(&path, Some(1)));
    assert!(both.0.unwrap() && both.1.unwrap() && runtime.bounded(&path, None).await.unwrap());
    place.close().await;
}
