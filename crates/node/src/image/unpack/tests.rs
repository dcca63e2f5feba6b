use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use ::tar::{Builder, EntryType, Header};
use proptest::prelude::*;

use super::*;

/// What a layer is made of, written by somebody else's writer.
#[derive(Clone)]
struct Entry(&'static str, EntryType, &'static str, u32);

fn file(path: &'static str, text: &'static str) -> Entry {
    Entry(path, EntryType::Regular, text, 0o644)
}

fn dir(path: &'static str) -> Entry {
    Entry(path, EntryType::Directory, "", 0o755)
}

fn link(path: &'static str, to: &'static str) -> Entry {
    Entry(path, EntryType::Symlink, to, 0o777)
}

fn hard(path: &'static str, to: &'static str) -> Entry {
    Entry(path, EntryType::Link, to, 0o644)
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for Entry(path, kind, text, mode) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        let mut data: &[u8] = &[];
        match kind {
            EntryType::Symlink | EntryType::Link => header.set_link_name_literal(text).unwrap(),
            EntryType::Regular => data = text.as_bytes(),
            _ => {}
        }
        header.set_size(data.len() as u64);
        // As it is: the writer's own way refuses what climbs.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn open(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

struct Scene {
    scratch: tempfile::TempDir,
    limits: Limits,
}

impl Scene {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir(scratch.path().join("root")).unwrap();
        std::fs::write(scratch.path().join("outside"), "untouched").unwrap();
        Self { scratch, limits: Limits { bytes: 1 << 20, entries: 200, reserve: 0 } }
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    /// Unpacks tars, one upon the other.
    fn layers(&self, layers: &[Vec<u8>]) -> Result<()> {
        let mut unpacker = Unpacker::new(&self.root(), &self.limits, crate::engine::is_root(), &|| false)?;
        layers.iter().try_for_each(|it| unpacker.layer(open(it), &Digest::of(it)))
    }

    fn entries(&self, layers: &[&[Entry]]) -> Result<()> {
        self.layers(&layers.iter().map(|it| archive(it)).collect::<Vec<_>>())
    }

    /// All paths below the root, with a file's text or a link's target.
    fn tree(&self) -> Vec<String> {
        fn walk(dir: &Path, above: &str, all: &mut Vec<String>) {
            let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|it| it.unwrap()).collect();
            entries.sort_by_key(|it| it.file_name());
            for it in entries {
                let path = format!("{above}{}", it.file_name().display());
                let kind = it.file_type().unwrap();
                if kind.is_dir() {
                    all.push(format!("{path}/"));
                    walk(&it.path(), &format!("{path}/"), all);
                } else if kind.is_symlink() {
                    all.push(format!("{path} -> {}", std::fs::read_link(it.path()).unwrap().display()));
                } else if kind.is_file() {
                    all.push(format!("{path}={}", std::fs::read_to_string(it.path()).unwrap()));
                } else {
                    all.push(format!("{path}?"));
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.root(), "", &mut all);
        assert_eq!(std::fs::read_to_string(self.scratch.path().join("outside")).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(self.scratch.path()).unwrap().count(), 2, "something was made outside");
        all
    }
}

#[test]
fn upper_layers_replace_hide_and_add_to_lower_ones() {
    let scene = Scene::new();
    let lower = [
        dir("./"),
        dir("etc/"),
        file("etc/a", "1"),
        file("etc/b", "2"),
        dir("var/"),
        file("var/x", "x"),
        dir("var/sub/"),
        file("var/sub/y", "y"),
        file("gone", ""),
        dir("tree/"),
        file("tree/leaf", "leaf"),
        link("lib", "usr/lib"),
        dir("usr/lib/"),
        dir("swap/"),
        file("swap/in", ""),
        file("other", "file"),
    ];
    let upper = [
        file("etc/.wh.a", ""),
        file("etc/c", "3"),
        // What this layer brings stays, on whichever side of the mark it stands.
        file("var/sub/new", "new"),
        file("var/.wh..wh.opq", ""),
        file("var/z", "z"),
        file(".wh.gone", ""),
        file(".wh.tree", ""),
        file(".wh.never-there", ""),
        file("no/such/.wh.dir", ""),
        file("lib/through-a-link", "lib"),
        file("deep/er/file", "made"),
        file("swap", "a file now"),
        dir("other/"),
        file("/absolute", "inside"),
        file(".wh..wh.plnk", "aufs' own"),
        hard("etc/d", "etc/c"),
        hard("etc/c", "etc/c"),
    ];
    scene.entries(&[&lower, &upper]).unwrap();
    assert_eq!(
        scene.tree(),
        [
            "absolute=inside",
            "deep/",
            "deep/er/",
            "deep/er/file=made",
            "etc/",
            "etc/b=2",
            "etc/c=3",
            "etc/d=3",
            "lib -> usr/lib",
            "other/",
            "swap=a file now",
            "usr/",
            "usr/lib/",
            "usr/lib/through-a-link=lib",
            "var/",
            "var/sub/",
            "var/sub/new=new",
            "var/z=z",
        ]
    );
    let inode = |path: &str| std::fs::metadata(scene.root().join(path)).unwrap().ino();
    assert_eq!(inode("etc/c"), inode("etc/d"));
    assert_eq!(std::fs::metadata(scene.root().join("etc/b")).unwrap().mtime(), 1_700_000_000);
}

#[test]
fn nothing_climbs_out() {
    let outside =
        |scene: &Scene| scene.scratch.path().join("outside").to_str().unwrap().to_owned().leak() as &'static str;
    type Made<'a> = &'a dyn Fn(&Scene) -> Vec<Entry>;
    let refused: [Made<'_>; 8] = [
        &|_| vec![file("../outside", "mine")],
        &|_| vec![file("a/../../outside", "mine")],
        &|_| vec![dir("a/"), hard("a/b", "../outside")],
        &|scene| vec![hard("a", outside(scene))],
        &|_| vec![file("../.wh.outside", "")],
        &|_| vec![file("a/.wh...", "")],
        &|_| vec![file("a/.wh.", "")],
        &|_| vec![file("a", ""), file("a/b", "")],
    ];
    for make in refused {
        let scene = Scene::new();
        let error = scene.entries(&[&[dir("a/")], &make(&scene)]).map_err(|error| kit::chain(&error));
        assert!(error.as_ref().is_err_and(|it| it.contains("the entry")), "{error:?}");
        scene.tree();
    }
    // Links lead to where they lead for those inside.
    let scene = Scene::new();
    let up: &'static str = outside(&scene);
    let within = [
        link("up", "../../../../../.."),
        file("up/made", "x"),
        link("abs", up),
        link("dots", ".."),
        file("dots/.wh.nothing", ""),
        link("proc", "/proc/self/root"),
        dir("dots/dots/d/"),
    ];
    scene.entries(&[&within]).unwrap();
    // A file where a link was is a file, and what the link leads to stays.
    scene.entries(&[&[file("abs", "mine")]]).unwrap();
    assert_eq!(
        scene.tree(),
        ["abs=mine", "d/", "dots -> ..", "made=x", "proc -> /proc/self/root", "up -> ../../../../../.."]
    );
    // The system's own directories are no way either: it must not even try.
    let error = scene.entries(&[&[file("proc/etc/hosts-of-a-test", "x")]]);
    assert!(error.is_err() || scene.root().join("proc").is_symlink());
    assert!(!Path::new("/etc/hosts-of-a-test").exists());
    let error = Scene::new().entries(&[&[link("loop", "loop"), file("loop/x", "")]]).unwrap_err().to_string();
    assert!(error.contains("links that lead nowhere"), "{error}");
}

#[test]
fn devices_are_left_out_and_rights_kept_as_far_as_they_are_safe() {
    let scene = Scene::new();
    let root = crate::engine::is_root();
    let layer = [
        Entry("null", EntryType::Char, "", 0o666),
        Entry("disk", EntryType::Block, "", 0o666),
        Entry("fifo", EntryType::Fifo, "", 0o640),
        Entry("su", EntryType::Regular, "#!", 0o4755),
        Entry("tmp/", EntryType::Directory, "", 0o1777),
        Entry("closed/", EntryType::Directory, "", 0o000),
        file("closed/within", "x"),
        Entry("secret", EntryType::Regular, "x", 0o000),
    ];
    scene.entries(&[&layer]).unwrap();
    assert!(!scene.root().join("null").exists() && !scene.root().join("disk").exists());
    let mode = |path: &str| std::fs::symlink_metadata(scene.root().join(path)).unwrap().permissions().mode() & 0o7777;
    assert!(std::fs::symlink_metadata(scene.root().join("fifo")).unwrap().file_type().is_fifo());
    assert_eq!([mode("fifo"), mode("tmp")], [0o640, 0o1777]);
    let expected = if root { [0o4755, 0o000, 0o000] } else { [0o755, 0o700, 0o600] };
    assert_eq!([mode("su"), mode("closed"), mode("secret")], expected);
}

#[test]
fn owners_and_capabilities_are_kept_by_root_and_what_an_overlay_obeys_by_nobody() {
    let mut builder = Builder::new(Vec::new());
    let long = format!("{}/file", "a-rather-long-name".repeat(10));
    let records: [(&str, &[u8]); 6] = [
        ("path", long.as_bytes()),
        ("uid", b"70000"),
        ("gid", b"12"),
        ("mtime", b"1700000000.25"),
        ("SCHILY.xattr.user.note", b"a\nb\0c"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut header = Header::new_ustar();
    header.set_path("short").unwrap();
    header.set_size(2);
    header.set_mode(0o600);
    header.set_cksum();
    builder.append(&header, b"hi".as_slice()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let scene = Scene::new();
    scene.layers(&[bytes]).unwrap();
    let path = scene.root().join(&long);
    let found = std::fs::metadata(&path).unwrap();
    assert_eq!((found.len(), found.mtime(), found.mtime_nsec()), (2, 1_700_000_000, 250_000_000));
    let expected = if crate::engine::is_root() {
        (70_000, 12)
    } else {
        (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    };
    assert_eq!((found.uid(), found.gid()), expected);
    let attribute = |name: &str| {
        let mut value = [0; 16];
        rustix::fs::getxattr(&path, name, &mut value).map(|length| value[..length].to_vec())
    };
    // Where the file system has none, there is nothing to see.
    if !matches!(attribute("user.note"), Err(Errno::OPNOTSUPP)) {
        assert_eq!(attribute("user.note").unwrap(), b"a\nb\0c");
        assert_eq!(attribute("user.overlay.opaque"), Err(Errno::NODATA));
    }
}

#[test]
fn an_image_has_bounds_and_what_is_damaged_is_said_to_be() {
    let told = |scene: &Scene, layers: &[Vec<u8>]| kit::chain(&scene.layers(layers).unwrap_err());
    let scene = Scene::new();
    let half: &'static str = "x".repeat(600 << 10).leak();
    let (one, two) = (archive(&[file("a", half)]), archive(&[file("b", half)]));
    assert!(told(&scene, &[one.clone(), two]).contains("more than 1 MiB"), "together they have more");

    let many: Vec<_> = (0..201).map(|_| file("same", "")).collect();
    assert!(told(&Scene::new(), &[archive(&many)]).contains("200 entries"));

    // Two links deep, names can be as long as one wants.
    let deep: &'static str = "d/".repeat(40).leak();
    let deeper: Vec<_> = (0..8)
        .flat_map(|n| {
            let (link_name, path): (&'static str, &'static str) =
                (format!("l{n}").leak(), format!("l{n}/{deep}").leak());
            let to: &'static str = if n == 0 { "." } else { format!("l{}/{deep}", n - 1).leak() };
            [link(link_name, to), dir(path)]
        })
        .collect();
    assert!(
        told(&Scene { limits: Limits { entries: 10_000, ..Scene::new().limits }, ..Scene::new() }, &[archive(&deeper)])
            .contains("too deep")
    );

    let mut full = Scene::new();
    full.limits.reserve = u64::MAX;
    assert!(told(&full, std::slice::from_ref(&one)).contains("kept free"));

    let mut unpacker = Unpacker::new(&scene.root(), &scene.limits, false, &|| false).unwrap();
    let other = Digest::of(b"other");
    let error = unpacker.layer(open(&archive(&[file("a", "b")])), &other).unwrap_err().to_string();
    assert!(error.contains(&format!("its image says {other}")), "{error}");

    let mut claims = archive(&[file("a", "b")]);
    claims[124..135].copy_from_slice(b"00000007777");
    assert!(told(&Scene::new(), &[claims.clone()]).contains("does not add up"));
    let mut header = Header::from_byte_slice(&claims[..512]).clone();
    header.set_cksum();
    claims[..512].copy_from_slice(header.as_bytes());
    assert!(told(&Scene::new(), &[claims]).contains("it is damaged"), "it says more than it has");

    let mut huge = Header::new_gnu();
    huge.set_entry_type(EntryType::XHeader);
    huge.set_size(10 << 30);
    huge.set_cksum();
    assert!(told(&Scene::new(), &[huge.as_bytes().to_vec()]).contains("too long a name"));

    let ending =
        Unpacker::new(&scene.root(), &scene.limits, false, &|| true).unwrap().layer(open(&one), &Digest::of(&one));
    assert!(matches!(ending, Err(UnpackError::Ending)));
}

#[test]
fn layers_are_packed_in_any_of_the_three_ways() {
    use std::process::{Command, Stdio};
    let plain = archive(&[file("a", "text")]);
    for program in ["cat", "gzip", "zstd"] {
        let child = Command::new(program)
            .args(["-c"].iter().skip(usize::from(program == "cat")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            println!("skipped: there is no {program}");
            continue;
        };
        child.stdin.take().unwrap().write_all(&plain).unwrap();
        let packed = child.wait_with_output().unwrap().stdout;
        let scene = Scene::new();
        let mut unpacker = Unpacker::new(&scene.root(), &scene.limits, false, &|| false).unwrap();
        unpacker.layer(open(&packed), &Digest::of(&plain)).unwrap();
        assert_eq!(scene.tree(), ["a=text"], "{program}");
        let cut = &packed[..packed.len() - 5];
        assert!(unpacker.layer(open(cut), &Digest::of(&plain)).is_err(), "{program}");
    }
    // In two frames, with one between them that is to be skipped; raw blocks need no compressor.
    let frame = |bytes: &[u8]| {
        let header = ((bytes.len() as u32) << 3 | 1).to_le_bytes();
        [&[0x28, 0xb5, 0x2f, 0xfd, 0x60], &((bytes.len() - 256) as u16).to_le_bytes()[..], &header[..3], bytes].concat()
    };
    let skip = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let packed = [frame(&plain[..700]), skip, frame(&plain[700..])].concat();
    let scene = Scene::new();
    scene_layer(&scene, &packed, &plain).unwrap();
    assert_eq!(scene.tree(), ["a=text"]);
}

fn scene_layer(scene: &Scene, packed: &[u8], plain: &[u8]) -> Result<()> {
    Unpacker::new(&scene.root(), &scene.limits, false, &|| false)?.layer(open(packed), &Digest::of(plain))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn rubbish_does_no_more_than_fail(at in 0usize..6144, with in prop::collection::vec(any::<u8>(), 1..60), valid in any::<bool>()) {
        let layer = [dir("a/"), file("a/b", "text"), link("l", "a"), hard("h", "a/b"), file("l/.wh.b", ""), file("a/.wh..wh.opq", "")];
        let mut bytes = archive(&layer);
        for (to, from) in bytes.iter_mut().skip(at).zip(with) {
            *to = from;
        }
        if valid {
            // Behind sums that are right, what is strange in a header is looked at.
            for block in bytes.chunks_mut(512).filter(|it| it[156] != 0) {
                let mut header = Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let scene = Scene::new();
        let _ = scene.layers(&[bytes]);
        // Nothing outside was made or changed; whatever is there can go again.
        prop_assert_eq!(std::fs::read_dir(scene.scratch.path()).unwrap().count(), 2);
        prop_assert_eq!(std::fs::read_to_string(scene.scratch.path().join("outside")).unwrap(), "untouched");
        prop_assert!(scene.scratch.close().is_ok());
    }
}
