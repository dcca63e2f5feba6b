//! The environment of commands, and the words in paths that it fills.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;

pub(crate) type Env = BTreeMap<OsString, OsString>;

/// Names the file whose entries every command gets; the SDKs' `set_env` appends to it.
pub(crate) const FILE: &str = "EXECD_ENVS";
/// Where that file is when the environment does not say: the place of OpenSandbox's own images.
pub(crate) const DEFAULT_FILE: &str = "/opt/opensandbox/.env";
/// More than this of the file is not read.
const LIMIT: u64 = 1 << 20;

/// Adds the entries of the file that `env` names. A file that is absent or no regular file adds nothing.
pub(crate) fn add_file(env: &mut Env) {
    let path = env.entry(FILE.into()).or_insert_with(|| DEFAULT_FILE.into()).clone();
    // Nonblocking, because the path may be a FIFO's by now.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let Ok(file) = opened else { return };
    let mut text = Vec::new();
    if file.metadata().is_ok_and(|about| about.is_file()) && file.take(LIMIT).read_to_end(&mut text).is_ok() {
        env.extend(entries(&text));
    }
}

/// `KEY='v'` is literal and may span lines, `KEY="v"` knows `\\ \" \$ \n \r \t`, `KEY=v` ends with its line. Later
/// entries come later, so that they win. What is none of these is passed over.
fn entries(text: &[u8]) -> Vec<(OsString, OsString)> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        rest = rest.trim_ascii_start();
        let line = rest.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let entry = line.strip_prefix(b"export ").unwrap_or(line).trim_ascii_start();
        let Some(at) = entry.iter().position(|&byte| byte == b'=') else {
            rest = after_line(rest);
            continue;
        };
        let (key, _) = entry.split_at(at);
        let start = line.len() - entry.len() + at + 1;
        let value_on = rest.get(start..).unwrap_or_default();
        let (value, left) = value(value_on);
        rest = after_line(left);
        if is_name(key) && !value.contains(&0) {
            found.push((OsString::from_vec(key.to_vec()), OsString::from_vec(value)));
        }
    }
    found
}

/// The value at the start of `text`, and what follows it.
fn value(text: &[u8]) -> (Vec<u8>, &[u8]) {
    match text.split_first() {
        Some((b'\'', quoted)) => match quoted.iter().position(|&byte| byte == b'\'') {
            Some(end) => (quoted.split_at(end).0.to_vec(), quoted.get(end + 1..).unwrap_or_default()),
            None => (quoted.to_vec(), &[]),
        },
        Some((b'"', quoted)) => {
            let mut value = Vec::new();
            let mut rest = quoted;
            loop {
                match rest {
                    [b'\\', escaped, after @ ..] => {
                        match escaped {
                            b'n' => value.push(b'\n'),
                            b'r' => value.push(b'\r'),
                            b't' => value.push(b'\t'),
                            b'\\' | b'"' | b'$' => value.push(*escaped),
                            other => value.extend([b'\\', *other]),
                        }
                        rest = after;
                    }
                    [b'"', after @ ..] => return (value, after),
                    [byte, after @ ..] => {
                        value.push(*byte);
                        rest = after;
                    }
                    [] => return (value, &[]),
                }
            }
        }
        _ => {
            let end = text.iter().position(|&byte| byte == b'\n').unwrap_or(text.len());
            let (line, rest) = text.split_at(end);
            (line.trim_ascii().to_vec(), rest)
        }
    }
}

fn after_line(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|&byte| byte == b'\n').map_or(text.len(), |at| at + 1);
    text.get(end..).unwrap_or_default()
}

/// Whether a shell would take it as a variable's name.
pub(crate) fn is_name(key: &[u8]) -> bool {
    key.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
        && key.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// Fills a leading `~` with HOME and `$NAME`, `${NAME}` with the environment's. An unknown name stays as it is written
/// (a file may be called so) and is the `Err`, for whoever must not go on with it.
pub(crate) fn expand(path: &[u8], env: &Env) -> Result<OsString, OsString> {
    let mut out = Vec::with_capacity(path.len());
    let mut unknown = false;
    let mut rest = path;
    if path.first() == Some(&b'~') && matches!(path.get(1), None | Some(b'/')) {
        out.extend_from_slice(env.get(OsStr::new("HOME")).map_or(b"/root".as_slice(), |home| home.as_bytes()));
        rest = path.get(1..).unwrap_or_default();
    }
    while let Some((byte, after)) = rest.split_first() {
        if *byte != b'$' {
            out.push(*byte);
            rest = after;
            continue;
        }
        let (name, left) = if after.first() == Some(&b'{') {
            let inside = after.get(1..).unwrap_or_default();
            match inside.iter().position(|&byte| byte == b'}') {
                Some(end) => (inside.get(..end).unwrap_or_default(), inside.get(end + 1..).unwrap_or_default()),
                None => (&[][..], after),
            }
        } else {
            let end =
                after.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_').unwrap_or(after.len());
            after.split_at(end)
        };
        if !is_name(name) {
            out.push(b'$');
            rest = after;
            continue;
        }
        match env.get(OsStr::from_bytes(name)) {
            Some(value) => out.extend_from_slice(value.as_bytes()),
            None => {
                unknown = true;
                out.extend_from_slice(rest.get(..rest.len() - left.len()).unwrap_or_default());
            }
        }
        rest = left;
    }
    let out = OsString::from_vec(out);
    if unknown { Err(out) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        pairs.iter().map(|(key, value)| (OsString::from(key), OsString::from(value))).collect()
    }

    #[test]
    fn a_file_of_entries_is_read_as_the_sdks_write_it() {
        let text = b"# a comment\nA=1\nexport B = no\nODD='x $HOME  \"z\" \\ y'\nTWO='first\nsecond'\nQ=\"it's \\\"q\\\"\\n\\$x \\d\" # rest\n9X=no\n\
                     rubbish\nEMPTY=\nA='2'\nOPEN='never closed\n";
        let got: Env = entries(text).into_iter().collect();
        let want = [
            ("A", "2"),
            ("ODD", "x $HOME  \"z\" \\ y"),
            ("TWO", "first\nsecond"),
            ("Q", "it's \"q\"\n$x \\d"),
            ("EMPTY", ""),
            ("OPEN", "never closed\n"),
        ];
        assert_eq!(got, env(&want));
    }

    #[test]
    fn paths_are_filled_and_unknown_names_stay() {
        let env = env(&[("HOME", "/home/a"), ("X", "x y")]);
        assert_eq!(expand(b"~/$X/${X}z/$", &env).unwrap(), "/home/a/x y/x yz/$");
        assert_eq!(expand(b"~bob/a~", &env).unwrap(), "~bob/a~");
        assert_eq!(expand(b"/a/$NOPE/${NOPE}${", &env).unwrap_err(), "/a/$NOPE/${NOPE}${");
        assert_eq!(expand(b"/tmp/a$-b${1}", &env).unwrap(), "/tmp/a$-b${1}");
    }

    proptest! {
        #[test]
        fn whatever_set_env_writes_comes_back(value in "[^\0]{0,60}") {
            // As the SDK writes it: literal, or escaped where a single quote is inside.
            let line = if value.contains('\'') {
                let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t");
                format!("K=\"{escaped}\"\n")
            } else {
                format!("K='{value}'\n")
            };
            prop_assert_eq!(entries(line.as_bytes()), vec![(OsString::from("K"), OsString::from(value))]);
        }

        #[test]
        fn rubbish_neither_loops_nor_panics(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = entries(&text);
            let _ = expand(&text, &Env::new());
        }
    }
}
