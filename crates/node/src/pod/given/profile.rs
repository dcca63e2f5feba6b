//! The filter of system calls that a container asks for by the name of a profile.

use std::io::Read;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::expand::quote;
use super::security::is_privileged;
use crate::guard::{self, Packed};

/// The profile that counts for a container.
pub(super) fn seccomp<'a>(pod: &'a Pod, container: &'a Container) -> Option<&'a SeccompProfile> {
    let own = container.security_context.as_ref().and_then(|it| it.seccomp_profile.as_ref());
    own.or_else(|| pod.spec.as_ref()?.security_context.as_ref()?.seccomp_profile.as_ref())
}

/// The name of a profile of this node's. Privileged containers are under none, as with containerd.
pub(super) fn named<'a>(pod: &'a Pod, container: &'a Container) -> Option<&'a str> {
    let profile = seccomp(pod, container).filter(|it| it.type_ == "Localhost" && !is_privileged(container))?;
    Some(profile.localhost_profile.as_deref().unwrap_or_default())
}

/// The filter in a file of `dir`; it may be a link to another one of them, and to nothing else.
pub(super) fn load(dir: &Path, name: &str) -> Result<Packed, String> {
    let wrong = |why: String| format!("cannot load seccomp profile {}: {why}", quote(name));
    let io = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "; profiles are files below `seccomp` in the data directory of `insula up`",
            _ => "",
        };
        wrong(format!("{error}{hint}"))
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, dir, flags, Mode::empty()).map_err(|error| io(error.into()))?;
    // What is no file must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(dir, name, flags, Mode::empty(), how).map_err(|error| io(error.into()))?;
    let mut text = String::new();
    let mut file = std::fs::File::from(file).take(guard::PROFILE + 1);
    file.read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > guard::PROFILE {
        return Err(wrong(format!("it is larger than {} KiB", guard::PROFILE >> 10)));
    }
    guard::profile(&text).map(|it| guard::pack(&it)).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn profiles_are_files_of_their_directory_and_nothing_else() {
        let at = tempfile::tempdir().unwrap();
        let dir = at.path().join("seccomp");
        assert!(load(&dir, "a.json").unwrap_err().ends_with("in the data directory of `insula up`"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;
        fs::write(dir.join("sub/a.json"), profile).unwrap();
        fs::write(at.path().join("outside.json"), profile).unwrap();
        fs::write(dir.join("bad.json"), "{").unwrap();
        fs::write(dir.join("binary"), [0xff; 9]).unwrap();
        fs::write(dir.join("large"), " ".repeat(guard::PROFILE as usize + 1)).unwrap();
        symlink("sub/a.json", dir.join("link.json")).unwrap();
        symlink(at.path().join("outside.json"), dir.join("out.json")).unwrap();
        rustix::fs::mknodat(CWD, dir.join("pipe"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(load(&dir, "sub/a.json"), load(&dir, "link.json"));
        assert!(load(&dir, "link.json").is_ok());
        let table = [
            ("none.json", "No such file or directory"),
            ("", "No such file or directory"),
            ("sub", "Is a directory"),
            ("out.json", "Invalid cross-device link"),
            ("../outside.json", "Invalid cross-device link"),
            ("bad.json", "it is no seccomp profile"),
            ("binary", "stream did not contain valid UTF-8"),
            ("large", "it is larger than 1024 KiB"),
            ("pipe", "it is no seccomp profile: EOF"),
        ];
        for (name, why) in table {
            let found = load(&dir, name).unwrap_err();
            assert!(found.starts_with(&format!("cannot load seccomp profile {name:?}: {why}")), "{found}");
        }
    }
}
