//! What the model is told of what came of a call, bounded. Pure.

use std::fmt::Write;
use std::time::Duration;

use sandbox::{Content, Done, Exit};

use super::ask::TIMEOUT_MOST;
use crate::tools::Output;

/// Bytes of a command's output.
pub(super) const OUTPUT: usize = 32 << 10;
/// Bytes of a file, as in Sympozium's agent-runner.
pub(super) const READ: usize = 8 << 10;
/// Bytes of a listing.
const LISTED: usize = 16 << 10;

pub(super) fn executed(done: &Done, timeout: Duration) -> Output {
    let mut text = String::new();
    let left_out = done.total.saturating_sub(done.output.len() as u64);
    if left_out > 0 {
        let whole = match &done.full {
            Some(Ok((path, size))) if *size == done.total => format!("all of it is in {path}"),
            Some(Ok((path, size))) => format!("its first {size} bytes are in {path}"),
            Some(Err(why)) => format!("it could not be kept in a file: {why}"),
            None => "it was not kept".to_owned(),
        };
        let _ = writeln!(text, "[the first {left_out} of {} bytes are left out; {whole}]", done.total);
    }
    text.push_str(&plain(&done.output));
    let end = match done.exit {
        Exit::Code(0) if done.total > 0 => None,
        Exit::Code(0) => Some("exit code 0, no output".to_owned()),
        Exit::Code(code) => Some(format!("exit code {code}")),
        Exit::TimedOut => Some(format!(
            "killed with all that it started: it took longer than its timeout of {} s; at most {} s can be asked for, and \
             what takes longer can be started in the background",
            timeout.as_secs(),
            TIMEOUT_MOST.as_secs()
        )),
        Exit::OutOfMemory => Some("exit code 137: a process was killed, for the sandbox is out of memory".to_owned()),
        Exit::OverQuota(size) => Some(format!(
            "killed with all that it started: the workspace has grown to {size} bytes, which is over its quota; remove files"
        )),
    };
    if let Some(end) = end {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let _ = write!(text, "[{end}]");
    }
    Output { text, failed: done.exit != Exit::Code(0) }
}

/// A file from its `offset`th line.
pub(super) fn read(content: &Content, offset: u64) -> Output {
    let mut bytes = content.bytes.as_slice();
    if !content.more {
        let text = plain(&String::from_utf8_lossy(bytes));
        let empty =
            if offset > 1 { format!("[the file has no line {offset}]") } else { "[the file is empty]".to_owned() };
        return Output { text: if text.is_empty() { empty } else { text }, failed: false };
    }
    let of = content.size.map(|size| format!(" of {size}")).unwrap_or_default();
    let note = match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => {
            bytes = bytes.get(..=end).unwrap_or_default();
            let next = offset.saturating_add(bytes.iter().filter(|byte| **byte == b'\n').count() as u64);
            format!("[{}{of} bytes, up to line {}; go on with offset {next}]", bytes.len(), next.saturating_sub(1))
        }
        None => format!("\n[{}{of} bytes, all of line {offset}; use execute_command to see more of it]", bytes.len()),
    };
    Output { text: plain(&String::from_utf8_lossy(bytes)) + &note, failed: false }
}

pub(super) fn wrote(path: &str, content: &str) -> Output {
    Output { text: format!("wrote {} bytes to {path}", content.len()), failed: false }
}

/// What is in a directory: the kind of each entry, as execd has it, its size and its path.
pub(super) fn listed<'a>(directory: &str, entries: impl ExactSizeIterator<Item = (&'a str, u64, &'a str)>) -> Output {
    let count = entries.len();
    let mut text = String::new();
    for (seen, (kind, size, path)) in entries.enumerate() {
        let name = path.strip_prefix(directory.trim_end_matches('/')).unwrap_or(path).trim_start_matches('/');
        // A name may hold anything, line ends too.
        let name = if name.chars().any(char::is_control) { format!("{name:?}") } else { name.to_owned() };
        let line = match kind {
            "directory" => format!("{name}/\n"),
            "file" => format!("{name}  ({size} bytes)\n"),
            kind => format!("{name}  ({kind})\n"),
        };
        if text.len() + line.len() > LISTED {
            let _ = write!(text, "[and {} more]", count - seen);
            break;
        }
        text.push_str(&line);
    }
    if count == 0 {
        text.push_str("[the directory is empty]");
    }
    Output { text, failed: false }
}

/// Without what no provider takes.
fn plain(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(exit: Exit, output: &str, total: u64, full: Option<Result<(String, u64), String>>) -> Done {
        Done { exit, output: output.to_owned(), total, full }
    }

    #[test]
    fn a_commands_end_is_told_and_what_is_left_out_is_named() {
        let kept = |size| Some(Ok(("/workspace/.outputs/x.txt".to_owned(), size)));
        let table = [
            (done(Exit::Code(0), "hello\n", 6, None), false, "hello\n"),
            (done(Exit::Code(0), "", 0, None), false, "[exit code 0, no output]"),
            (done(Exit::Code(3), "no\n", 3, None), true, "no\n[exit code 3]"),
            (
                done(Exit::Code(0), "end\n", 100, kept(100)),
                false,
                "[the first 96 of 100 bytes are left out; all of it is in /workspace/.outputs/x.txt]\nend\n",
            ),
            (
                done(Exit::Code(0), "end\n", 100, kept(50)),
                false,
                "[the first 96 of 100 bytes are left out; its first 50 bytes are in /workspace/.outputs/x.txt]\nend\n",
            ),
            (
                done(Exit::Code(0), "a\0b\n", 100, Some(Err("no space".to_owned()))),
                false,
                "[the first 96 of 100 bytes are left out; it could not be kept in a file: no space]\na\u{fffd}b\n",
            ),
        ];
        for (done, failed, text) in table {
            let told = executed(&done, Duration::from_secs(30));
            assert_eq!((told.failed, told.text.as_str()), (failed, text));
        }
        let late = executed(&done(Exit::TimedOut, "so far\n", 7, None), Duration::from_secs(30));
        assert!(late.failed && late.text.starts_with("so far\n[killed") && late.text.contains("30 s"), "{}", late.text);
        let hungry = executed(&done(Exit::OutOfMemory, "", 0, None), Duration::from_secs(30));
        assert!(hungry.text.contains("out of memory"));
    }

    #[test]
    fn a_file_is_told_in_pieces_that_follow_each_other() {
        let content = |bytes: &str, more, size| Content { bytes: bytes.as_bytes().to_vec(), more, size };
        let table = [
            (content("a\nb\n", false, Some(4)), 1, "a\nb\n"),
            (content("", false, Some(0)), 1, "[the file is empty]"),
            (content("", false, None), 9, "[the file has no line 9]"),
            (content("a\nb\ncut", true, Some(99)), 1, "a\nb\n[4 of 99 bytes, up to line 2; go on with offset 3]"),
            (content("c\ncut", true, None), 3, "c\n[2 bytes, up to line 3; go on with offset 4]"),
            (
                content("long", true, Some(99)),
                1,
                "long\n[4 of 99 bytes, all of line 1; use execute_command to see more of it]",
            ),
        ];
        for (content, offset, text) in table {
            assert_eq!(read(&content, offset).text, text);
        }
    }

    #[test]
    fn a_listing_is_bounded_and_one_entry_is_one_line() {
        let entries = [
            ("directory", 4096, "/workspace/src"),
            ("file", 12, "/workspace/a.sh"),
            ("symlink", 3, "/workspace/link"),
            ("file", 0, "/workspace/odd\nname"),
        ];
        let told = listed("/workspace", entries.into_iter());
        assert_eq!(told.text, "src/\na.sh  (12 bytes)\nlink  (symlink)\n\"odd\\nname\"  (0 bytes)\n");
        assert_eq!(listed("/", [("directory", 0, "/etc")].into_iter()).text, "etc/\n");
        assert_eq!(listed("/tmp", [].into_iter()).text, "[the directory is empty]");
        let names: Vec<_> = (0..5000).map(|i| format!("/tmp/{i:0>200}")).collect();
        let told = listed("/tmp", names.iter().map(|name| ("file", 1, name.as_str())));
        assert!(told.text.len() < LISTED + 100 && told.text.ends_with(" more]"), "{}", told.text.len());
    }
}
