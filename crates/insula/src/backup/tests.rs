use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use flate2::Compression;
use flate2::write::GzEncoder;
use ledger::{Ledger, Location};

use super::tar::{Head, Kind, Writer};
use super::*;

fn stamp() -> Stamp {
    let created_at = "2026-03-26T12:00:00Z".parse().unwrap();
    Stamp { format: FORMAT, layout: home::LAYOUT, version: "0.0.0".into(), created_at, workspaces: true }
}

fn pressed(tar: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(tar).unwrap();
    out.finish().unwrap()
}

/// A whole archive, from its stamp on.
fn archive(stamp: &str, entries: &[(Head, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.append(&Head::new(STAMP, Kind::File, stamp.len() as u64), &mut stamp.as_bytes()).unwrap();
    for (head, data) in entries {
        // One that says that it is longer than it is has been begun.
        let _ = writer.append(head, &mut &**data);
    }
    pressed(&writer.finish().unwrap())
}

fn unpack(archive: &[u8], into: &Path) -> String {
    restore::unpack(archive, into, true, &|| true).map_or_else(|error| kit::chain(&error), |_| "restored".into())
}

fn directory(path: &str) -> (Head, &'static [u8]) {
    (Head { mode: 0o755, ..Head::new(path, Kind::Directory, 0) }, b"")
}

fn file(path: &str) -> (Head, &'static [u8]) {
    (Head::new(path, Kind::File, 5), b"evil\n")
}

/// What is in a directory: paths with kinds, modes, times and contents.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let (time, content) = match () {
            () if found.is_symlink() => (0, fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()),
            () if found.is_dir() => {
                left.extend(fs::read_dir(&path).unwrap().map(|it| it.unwrap().path()));
                (0, Vec::new())
            }
            () => (found.mtime(), fs::read(&path).unwrap()),
        };
        all.insert(path.strip_prefix(root).unwrap().to_owned(), (found.mode(), time, content));
    }
    all
}

#[tokio::test]
async fn all_that_a_directory_has_is_there_again_but_what_no_archive_can_hold() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("data");
    fs::create_dir(&dir).unwrap();
    let tasks = Tasks::new(Shutdown::new());
    let options = apiserver::Options {
        data: apiserver::Data::Dir(dir.clone()),
        clock: Clock::system(),
        tasks: tasks.clone(),
        kubelets: None,
        audit: None,
        volumes: None,
    };
    let _server = apiserver::ApiServer::open(options).await.unwrap();
    let _ledger = Ledger::open(Location::File(dir.join("ledger.db")), Clock::system()).unwrap();
    fs::write(dir.join("api-key"), "key").unwrap();
    fs::write(dir.join("kubernetes.address"), "127.0.0.1:1").unwrap();

    let all = dir.join(WORKSPACES);
    let one = all.join("default/me/0123");
    fs::create_dir_all(one.join("n".repeat(200)).join("m".repeat(200))).unwrap();
    fs::create_dir_all(all.join(".removed/x")).unwrap();
    fs::write(one.join("n".repeat(200)).join("plain"), "text").unwrap();
    fs::write(one.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8\nat all")), "").unwrap();
    fs::set_permissions(one.join("n".repeat(200)), fs::Permissions::from_mode(0o500)).unwrap();
    symlink("/usr/bin/python3", one.join("absolute")).unwrap();
    symlink("../".repeat(60), one.join("climbing")).unwrap();
    let holes = File::create(one.join("holes")).unwrap();
    holes.set_len(5 << 30).unwrap();
    for at in [1 << 20, 3 << 30] {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"data", at).unwrap();
    }
    rustix::fs::mknodat(rustix::fs::CWD, one.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();

    let mut packed = Vec::new();
    let told = pack::pack(&dir, &stamp(), &mut packed, scratch.path(), &|| true).unwrap();
    assert_eq!((told.left_out, told.files, told.changed), (1, 3, 0));
    let (path, why) = told.first_left_out.unwrap();
    assert!(path.ends_with("pipe") && why.contains("pipe"), "{path} {why}");
    assert!(packed.len() < 4 << 20, "holes are not packed: {}", packed.len());

    let into = scratch.path().join("into");
    fs::create_dir(&into).unwrap();
    assert_eq!(unpack(&packed, &into), "restored");
    assert!(fs::metadata(into.join("workspaces/default/me/0123/holes")).unwrap().blocks() < 1 << 14);
    for path in [&one, &into.join("workspaces/default/me/0123")] {
        let holes = path.join("holes");
        let found = File::open(&holes).unwrap();
        for at in [1 << 20, 3 << 30] {
            let mut data = [0; 5];
            std::os::unix::fs::FileExt::read_exact_at(&found, &mut data, at).unwrap();
            assert_eq!(&data, b"data\0");
        }
        assert_eq!(found.metadata().unwrap().len(), 5 << 30);
        fs::remove_file(holes).unwrap();
    }
    fs::remove_file(one.join("pipe")).unwrap();
    fs::remove_dir_all(all.join(".removed")).unwrap();
    assert_eq!(tree(&into.join("workspaces/default")), tree(&all.join("default")));
    assert_eq!(tree(&into.join(KEYS)), tree(&dir.join(KEYS)));
    assert_eq!(fs::read(into.join("api-key")).unwrap(), b"key");
    for name in ["kubernetes.db", "ledger.db", "pki/ca.key"] {
        let mode = fs::metadata(into.join(name)).map(|it| it.mode() & 0o777);
        assert!(mode.as_ref().is_ok_and(|mode| mode & 0o077 == 0) || name.starts_with("pki"), "{name}: {mode:?}");
    }

    let stopped = pack::pack(&dir, &stamp(), &mut Vec::new(), scratch.path(), &|| false);
    assert!(stopped.is_err());
    let whole = packed.len();
    for (bytes, words) in [
        (&packed[..whole - 1], "ends early"),
        (&packed[..whole / 2], "ends early"),
        (&[&packed[..], b"more"].concat(), "something follows"),
    ] {
        let into = tempfile::tempdir().unwrap();
        let said = unpack(bytes, into.path());
        assert!(said.contains(words), "{said}");
    }
    let mut damaged = packed.clone();
    damaged[whole / 2] ^= 0x10;
    let into = tempfile::tempdir().unwrap();
    assert_ne!(unpack(&damaged, into.path()), "restored");
    tasks.end().await;
}

#[test]
fn an_archive_that_is_none_or_newer_is_named_as_that() {
    let json = serde_json::to_value(stamp()).unwrap();
    let with = |name: &str, value: serde_json::Value| {
        let mut json = json.clone();
        json[name] = value;
        archive(&json.to_string(), &[])
    };
    for (bytes, words) in [
        (b"PK\x03\x04 is something else".to_vec(), "no backup of Insula"),
        (Vec::new(), "ends early"),
        (pressed(&[b'x'; 2048]), "no backup of Insula"),
        (archive("not json", &[]), "no backup of Insula"),
        (archive("{}", &[]), "no backup of Insula"),
        (with("format", 2.into()), "newer version, 0.0.0 (its format is 2, this program knows 1)"),
        (with("layout", 900.into()), "newer version, 0.0.0 (its layout is 900"),
        (archive(&json.to_string(), &[]), "it has no kubernetes.db"),
    ] {
        let into = tempfile::tempdir().unwrap();
        let said = unpack(&bytes, into.path());
        assert!(said.contains(words), "{said}");
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0);
    }
}

#[test]
fn nothing_is_written_outside_or_through_a_link_or_beyond_what_is_free() {
    let outside = tempfile::tempdir().unwrap();
    let json = serde_json::to_string(&stamp()).unwrap();
    let link = |path: &str| (Head::new(path, Kind::Link(outside.path().as_os_str().as_bytes().to_vec()), 0), &b""[..]);
    let workspace = || ["workspaces", "workspaces/a", "workspaces/a/b", "workspaces/a/b/c"].map(directory).to_vec();
    let below = |more: &[(Head, &'static [u8])]| [&workspace()[..], more].concat();
    let mut huge = file("workspaces/a/b/c/huge");
    (huge.0.size, huge.0.extents) = (1 << 60, vec![(0, 1 << 60)]);
    let mut marked = file("workspaces/a/b/c/other");
    marked.0.marked = true;
    for (entries, words) in [
        (vec![file("../evil")], "leads somewhere else"),
        (vec![file("/etc/evil")], "leads somewhere else"),
        (below(&[file("workspaces/a/b/c/../../../../evil")]), "leads somewhere else"),
        (below(&[file("workspaces/a/b/c/./evil")]), "leads somewhere else"),
        (vec![file("layout")], "nothing that a backup has"),
        (vec![file("bin/evil")], "nothing that a backup has"),
        (vec![file("workspaces")], "nothing that a backup has"),
        (below(&[file("workspaces/a/b/evil")]), "nothing that a backup has"),
        (vec![link("pki")], "nothing that a backup has"),
        (vec![directory("workspaces"), link("workspaces/a")], "nothing that a backup has"),
        (vec![directory("pki"), link("pki/ca.crt")], "nothing that a backup has"),
        (below(&[link("workspaces/a/b/c/l"), file("workspaces/a/b/c/l/evil")]), "below something that is no directory"),
        (below(&[link("workspaces/a/b/c/l"), file("workspaces/a/b/c/l")]), "is there twice"),
        (below(&[link("workspaces/a/b/c/l"), directory("workspaces/a/b/c/l")]), "is there twice"),
        (vec![file("workspaces/a/b/c/evil")], "in no directory of the archive"),
        (below(&[huge]), "MiB that are free"),
        (below(&[marked]), "is no workspace"),
        (vec![(Head::new("api-key", Kind::File, 1 << 20), &[0; 1 << 20])], "nothing that a backup has"),
    ] {
        let into = tempfile::tempdir().unwrap();
        let said = unpack(&archive(&json, &entries), into.path());
        assert!(said.contains(words), "{:?}: {said}", entries.last().map(|it| shown(&it.0.path)));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
    // Kinds that the writer does not know: a hard link, a device, a long name of GNU's.
    for kind in [b'1', b'3', b'4', b'6', b'L', b'S'] {
        let mut tar = Vec::new();
        let mut writer = Writer::new(&mut tar);
        writer.append(&Head::new(STAMP, Kind::File, json.len() as u64), &mut json.as_bytes()).unwrap();
        writer.append(&file("api-key").0, &mut &b"evil\n"[..]).unwrap();
        let at = 512 + json.len().next_multiple_of(512);
        tar[at + 156] = kind;
        let sum: u32 = (tar[at..at + 148].iter().chain(&tar[at + 156..at + 512])).map(|it| u32::from(*it)).sum();
        tar[at + 148..at + 154].copy_from_slice(format!("{:06o}", sum + 8 * 32).as_bytes());
        tar.extend([0; 1024]);
        let into = tempfile::tempdir().unwrap();
        let said = unpack(&pressed(&tar), into.path());
        assert!(said.contains("neither file, directory nor link"), "{said}");
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
