//! Whom an image names to run as.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Of /etc/passwd and /etc/group of an image.
const LARGEST: u64 = 1 << 20;
const MOST_GROUPS: usize = 1024;

/// By numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups.
    pub(crate) groups: Vec<u32>,
    /// It was named, not numbered.
    pub(crate) name: Option<String>,
}

/// Reads `USER`, `USER:GROUP`, by names or numbers; nothing is root. `root`: the image's files.
pub(crate) fn look_up(root: &Path, text: &str) -> Result<User, String> {
    let passwd = read(root, "etc/passwd");
    let group = read(root, "etc/group");
    find(text, &passwd, &group)
}

fn find(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (who, of) = match text.trim().split_once(':') {
        Some((who, of)) => (who, of),
        None => (text.trim(), ""),
    };
    let who = if who.is_empty() { "0" } else { who };
    let number = who.parse::<u32>().ok();
    // NAME:PASSWORD:UID:GID:...
    let known = lines(passwd).find_map(|it| {
        let (uid, gid) = (it.get(2)?.parse::<u32>().ok()?, it.get(3)?.parse::<u32>().ok()?);
        let name = it.first()?.to_string();
        (name == who || number == Some(uid)).then_some((name, uid, gid))
    });
    let (name, uid, gid) = match (known, number) {
        (Some((name, uid, gid)), _) => (Some(name), uid, gid),
        (None, Some(uid)) => (None, uid, 0),
        (None, None) => return Err(format!("unable to find user {who}: no matching entries in passwd file")),
    };
    // NAME:PASSWORD:GID:MEMBERS
    let gid_of = |it: &[&str]| it.get(2).and_then(|it| it.parse::<u32>().ok());
    let gid = match of {
        "" => gid,
        _ => match of.parse() {
            Ok(gid) => gid,
            Err(_) => lines(group)
                .find(|it| it.first() == Some(&of))
                .and_then(|it| gid_of(&it))
                .ok_or_else(|| format!("unable to find group {of}: no matching entries in group file"))?,
        },
    };
    let member = |it: &Vec<&str>| {
        let members = it.get(3).map(|it| it.split(',')).into_iter().flatten();
        name.as_deref().is_some_and(|name| members.into_iter().any(|it| it == name))
    };
    let mut groups: Vec<_> = match of {
        "" => {
            lines(group).filter(member).filter_map(|it| gid_of(&it)).filter(|it| *it != gid).take(MOST_GROUPS).collect()
        }
        // Who names a group is in no other.
        _ => Vec::new(),
    };
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid, gid, groups, name: number.is_none().then(|| who.to_owned()) })
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|it| !it.starts_with('#')).map(|it| it.split(':').collect())
}

/// A file of the image, whatever links it is behind; nothing where there is none.
fn read(root: &Path, path: &str) -> String {
    let open = || {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        // Not waiting for somebody to write to a pipe of that name.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)
    };
    let Ok(file) = open().map(File::from) else { return String::new() };
    let mut bytes = Vec::new();
    let plain = file.metadata().is_ok_and(|it| it.is_file());
    match plain && file.take(LARGEST).read_to_end(&mut bytes).is_ok() {
        true => String::from_utf8_lossy(&bytes).into_owned(),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_in_the_images_own_files() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# no user\napp:x:1000:2000::/home/app:/bin/sh\nbroken\n";
        let group = "root:x:0:\nwheel:x:10:root,app\napp:x:2000:app\nother:x:3000:app\n";
        let user = |uid, gid, groups: &[u32], name: Option<&str>| {
            Ok(User { uid, gid, groups: groups.to_vec(), name: name.map(Into::into) })
        };
        for (text, expected) in [
            ("", user(0, 0, &[10], None)),
            ("app", user(1000, 2000, &[10, 3000], Some("app"))),
            ("1000", user(1000, 2000, &[10, 3000], None)),
            ("app:wheel", user(1000, 10, &[], Some("app"))),
            ("7:8", user(7, 8, &[], None)),
            ("7", user(7, 0, &[], None)),
            ("nobody", Err("unable to find user nobody: no matching entries in passwd file".into())),
            ("app:nobody", Err("unable to find group nobody: no matching entries in group file".into())),
            ("-1", Err("unable to find user -1: no matching entries in passwd file".into())),
        ] {
            assert_eq!(find(text, passwd, group), expected, "{text}");
        }
    }

    #[test]
    fn files_behind_links_are_those_of_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (root, secret) = (dir.path().join("root"), dir.path().join("secret"));
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(&secret, "app:x:7:7::/:/\n").unwrap();
        std::os::unix::fs::symlink(&secret, root.join("etc/passwd")).unwrap();
        assert!(look_up(&root, "app").is_err(), "a file outside was read");
        let inside = root.join(secret.strip_prefix("/").unwrap());
        std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
        std::fs::write(inside, "app:x:8:8::/:/\n").unwrap();
        assert_eq!(look_up(&root, "app").unwrap().uid, 8);
    }
}
