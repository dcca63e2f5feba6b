#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io;
use std::path::Path;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use kit::Clock;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{LONGEST, Log, LogOptions, Rotation, Stream, files};

const SMALL: Rotation = Rotation { size: 500, files: 3 };

fn open(dir: &Path, limits: Rotation) -> Log {
    Log::open(dir, 0, Clock::system(), limits).unwrap()
}

async fn text(log: &Log, options: LogOptions) -> String {
    let read: Vec<Bytes> = log.read(options).try_collect().await.unwrap();
    String::from_utf8(read.concat()).unwrap()
}

/// All files, the oldest first, without the times.
fn timeless(dir: &Path) -> Vec<String> {
    let mut found = files(dir).unwrap();
    found.sort_by_key(|(at, _)| at.rotated.unwrap_or(u64::MAX));
    let lines = |name| {
        let file = std::fs::read(dir.join(name)).unwrap();
        String::from_utf8_lossy(&file)
            .lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    };
    found.into_iter().map(|(_, name)| lines(name)).collect()
}

fn times(dir: &Path) -> Vec<String> {
    let file = std::fs::read(dir.join("0.log")).unwrap();
    String::from_utf8_lossy(&file).lines().map(|line| line.split_once(' ').unwrap().0.to_owned()).collect()
}

/// What a container may print: short lines, empty ones, and some that are very long.
fn printed() -> impl Strategy<Value = Vec<u8>> {
    let near = LONGEST - 2..LONGEST + 3;
    let line = prop_oneof![8 => 0..40_usize, 1 => near, 1 => Just(2 * LONGEST), 1 => Just(3 * LONGEST + 5)];
    let lines = prop::collection::vec((line, any::<bool>()), 0..12);
    lines.prop_map(|lines| {
        let text = |(at, (length, ends)): (usize, (usize, bool))| {
            let letter = b'a' + (at % 26) as u8;
            let mut line = vec![letter; length];
            line.extend(ends.then_some(b'\n'));
            line
        };
        lines.into_iter().enumerate().flat_map(text).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_same_bytes_make_the_same_log_however_they_are_split(
        bytes in printed(),
        splits in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        small in any::<bool>(),
    ) {
        let limits = if small { SMALL } else { Rotation::default() };
        let (whole, pieces) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let log = open(whole.path(), limits);
        log.write(Stream::Stdout, &bytes);
        log.close();
        let log = open(pieces.path(), limits);
        let mut ends: Vec<usize> = splits.iter().map(|it| it.index(bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let mut from = 0;
        for end in ends {
            log.write(Stream::Stdout, &bytes[from..end]);
            from = end;
        }
        prop_assert!(log.shared.lock().begun.iter().all(|it| it.len() <= LONGEST));
        log.close();
        prop_assert_eq!(timeless(whole.path()), timeless(pieces.path()));
        let read = log.tail(usize::MAX, usize::MAX).unwrap();
        let printed = String::from_utf8(bytes).unwrap();
        let same = if small { printed.ends_with(&read) } else { printed == read };
        prop_assert!(same, "{} instead of {}", read, printed);
    }
}

#[tokio::test]
async fn both_outputs_are_read_as_they_were_asked_for() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), Rotation::default());
    log.write(Stream::Stdout, b"one\ntw");
    log.write(Stream::Stderr, b"oops\n\xff\n");
    log.write(Stream::Stdout, b"o\nthree");
    assert_eq!(timeless(dir.path()).concat().lines().next(), Some("stdout F one"));
    log.close();
    assert_eq!(
        log.read(LogOptions::default()).try_collect::<Vec<_>>().await.unwrap().concat(),
        b"one\noops\n\xff\ntwo\nthree"
    );
    let stdout = LogOptions { stream: Some(Stream::Stdout), ..LogOptions::default() };
    assert_eq!(text(&log, stdout.clone()).await, "one\ntwo\nthree");
    let tail = |count| text(&log, LogOptions { tail: Some(count), ..stdout.clone() });
    assert_eq!((tail(0).await, tail(1).await, tail(2).await), (String::new(), "three".into(), "two\nthree".into()));
    assert_eq!((tail(4).await, tail(99).await), ("two\nthree".into(), "one\ntwo\nthree".into()));
    let limit = |limit| text(&log, LogOptions { limit: Some(limit), ..stdout.clone() });
    assert_eq!(
        (limit(1).await, limit(6).await, limit(99).await),
        ("o".into(), "one\ntw".into(), "one\ntwo\nthree".into())
    );

    let at = times(dir.path());
    let since = |at: &str| text(&log, LogOptions { since: Some(at.parse().unwrap()), ..stdout.clone() });
    assert_eq!((since(&at[0]).await, since(&at[1]).await), ("one\ntwo\nthree".into(), "two\nthree".into()));
    let stamped = text(&log, LogOptions { timestamps: true, ..stdout.clone() }).await;
    assert_eq!(stamped, format!("{} one\n{} two\n{} three", at[0], at[3], at[4]));
    assert_eq!(log.tail(4, 2).unwrap(), "hree");
    assert_eq!(log.tail(100, 1).unwrap(), "three");
}

#[tokio::test]
async fn a_very_long_line_takes_little_memory_and_has_one_time() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), Rotation::default());
    let long = "ä".repeat(LONGEST * 10);
    for piece in long.as_bytes().chunks(777) {
        log.write(Stream::Stderr, piece);
        assert!(log.shared.lock().begun.iter().all(|it| it.len() <= LONGEST));
    }
    log.write(Stream::Stderr, b"\nnext\n");
    let shown = text(&log, LogOptions { timestamps: true, ..LogOptions::default() }).await;
    let lines: Vec<&str> = shown.lines().map(|it| it.split_once(' ').unwrap().1).collect();
    assert_eq!(lines, [long.as_str(), "next"]);
    // A character that is cut is left out.
    assert_eq!((log.tail(8, 2).unwrap().as_str(), log.tail(7, 2).unwrap().as_str()), ("ä\nnext\n", "\nnext\n"));
}

#[tokio::test]
async fn who_follows_is_woken_past_every_rotation_until_the_end() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), SMALL);
    log.write(Stream::Stdout, b"long\nbefore\n");
    let mut following = Box::pin(log.read(LogOptions { follow: true, tail: Some(1), ..LogOptions::default() }));
    assert_eq!(following.next().await.unwrap().unwrap(), "before\n");
    for at in 0..200 {
        log.write(Stream::Stdout, format!("line {at}\n").as_bytes());
        assert_eq!(following.next().await.unwrap().unwrap(), format!("line {at}\n"));
    }
    assert!(following.next().now_or_never().is_none());
    log.write(Stream::Stdout, b"begun");
    log.close();
    log.write(Stream::Stdout, b"too late\n");
    assert_eq!(following.next().await.unwrap().unwrap(), "begun");
    assert!(following.next().await.is_none());
    let all = timeless(dir.path());
    assert_eq!((all.len(), all.iter().all(|it| it.len() <= 500)), (3, true));
    assert!(all.last().unwrap().ends_with("stdout P begun"));
}

#[tokio::test]
async fn a_slow_reader_is_told_what_it_missed_and_one_that_does_not_follow_ends() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), SMALL);
    log.write(Stream::Stdout, b"first\n");
    let reader = |follow| {
        let mut reader = Box::pin(log.read(LogOptions { follow, ..LogOptions::default() }));
        async move {
            assert_eq!(reader.next().await.unwrap().unwrap(), "first\n");
            reader
        }
    };
    let (slow, whole) = (reader(true).await, reader(false).await);
    for at in 0..1000 {
        log.write(Stream::Stdout, format!("line {at}\n").as_bytes());
    }
    log.close();
    let read: Vec<Bytes> = slow.try_collect().await.unwrap();
    let read = String::from_utf8(read.concat()).unwrap();
    // What was in the file that it had open, it has read.
    let (had, rest) = read.split_once(" bytes of this log were rotated away before they were read\n").unwrap();
    let (had, lost) = had.rsplit_once('\n').unwrap();
    assert!(had.starts_with("line 0\nline 1\n") && rest.ends_with("line 998\nline 999\n"), "{read}");
    let seen = had.lines().chain(rest.lines()).count();
    let line = |at: usize| format!("2026-11-21T10:00:00.123456789Z stdout F line {at}\n").len();
    let first: usize = rest.lines().next().unwrap().strip_prefix("line ").unwrap().parse().unwrap();
    let missed: usize = (had.lines().count()..first).map(line).sum();
    assert_eq!((lost.parse::<usize>().unwrap(), 1000 - seen), (missed, first - had.lines().count()));
    assert!(whole.try_collect::<Vec<Bytes>>().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn times_go_up_whatever_is_done_to_the_clock_and_a_log_is_gone_on_with() {
    let dir = TempDir::new().unwrap();
    let at = |time: &str| Clock::starting_at(time.parse::<Timestamp>().unwrap());
    let log = Log::open(dir.path(), 0, at("2026-11-21T10:00:00Z"), SMALL).unwrap();
    log.write(Stream::Stdout, b"one\n");
    log.write(Stream::Stdout, b"two\nwill be torn");
    drop(log);
    // As the writer left it that was killed.
    let file = dir.path().join("0.log");
    let torn = [std::fs::read(&file).unwrap(), b"2026-11-21T10:00:09.000000000Z stdout F to".to_vec()].concat();
    std::fs::write(&file, torn).unwrap();
    let log = Log::open(dir.path(), 0, at("1999-12-31T23:59:59Z"), SMALL).unwrap();
    log.write(Stream::Stdout, b"three\n");
    assert_eq!(
        times(dir.path()),
        ["2026-11-21T10:00:00.000000000Z", "2026-11-21T10:00:00.000000001Z", "2026-11-21T10:00:00.000000002Z"]
    );
    for _ in 0..100 {
        log.write(Stream::Stdout, b"more\n");
    }
    drop(log);
    let log = Log::open(dir.path(), 0, at("2000-01-01T00:00:00Z"), SMALL).unwrap();
    log.write(Stream::Stdout, b"last\n");
    let shown = text(&log, LogOptions { timestamps: true, ..LogOptions::default() }).await;
    assert!(shown.ends_with("Z more\n2026-11-21T10:00:00.000000103Z last\n"), "{shown}");
    assert!(shown.lines().is_sorted() && shown.lines().count() > 10, "{shown}");
}

#[tokio::test]
async fn the_last_two_attempts_are_kept() {
    let dir = TempDir::new().unwrap();
    for attempt in 0..4 {
        let log = Log::open(dir.path(), attempt, Clock::system(), SMALL).unwrap();
        for _ in 0..30 {
            log.write(Stream::Stdout, format!("attempt {attempt}\n").as_bytes());
        }
        log.close();
    }
    let mut attempts: Vec<u32> = files(dir.path()).unwrap().iter().map(|(at, _)| at.attempt).collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [2, 2, 2, 3, 3, 3]);
    let ended = |attempt| Log::ended(dir.path(), attempt, Clock::system());
    let previous = ended(2).unwrap();
    assert!(text(&previous, LogOptions { follow: true, ..LogOptions::default() }).await.ends_with("attempt 2\n"));
    assert_eq!(ended(1).map(drop).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(
        Log::ended(Path::new("/nowhere"), 0, Clock::system()).map(drop).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_the_log_says_so() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path(), Rotation::default());
    log.write(Stream::Stdout, b"one\nbegun ");
    log.shared.lock().file = Some(super::append(Path::new("/dev/full")).unwrap());
    log.write(Stream::Stdout, b"two\nthree\n");
    log.write(Stream::Stderr, b"four\n");
    assert_eq!(text(&log, LogOptions::default()).await, "one\n");
    log.shared.lock().file = None;
    log.write(Stream::Stdout, b"five\n");
    let shown = text(&log, LogOptions::default()).await;
    let why = "No space left on device (os error 28)";
    assert_eq!(shown, format!("one\n3 lines of this log could not be written: {why}\nfive\n"));
    // Where no new file can be made, the old one does not grow beyond its size either.
    std::fs::create_dir_all(dir.path().join("0.log.0/in the way")).unwrap();
    let line = [b"x".repeat(1000), b"\n".to_vec()].concat();
    for _ in 0..11 << 10 {
        log.write(Stream::Stdout, &line);
    }
    assert!(std::fs::metadata(dir.path().join("0.log")).unwrap().len() <= 10 << 20);
    std::fs::remove_dir_all(dir.path().join("0.log.0")).unwrap();
    log.write(Stream::Stdout, b"again\n");
    log.close();
    let end = log.tail(1000, 2).unwrap();
    assert!(end.contains(" lines of this log could not be written: ") && end.ends_with("\nagain\n"), "{end}");
}
