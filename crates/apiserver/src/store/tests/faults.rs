//! Every write of a file fails once: the process is killed in it, or it is refused, and so is all that goes as far.
//!
//! The system does it, by a limit on the size of files that is a little higher in every round: what the store writes
//! through SQLite is struck wherever it is, also while the store is made and while the log is written back at its end.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::*;

const CHILD: &str = "INSULA_TEST_STORE_FAULTS";
const TEST: &str = "store::tests::faults::nothing_acknowledged_is_lost_whichever_write_fails";
/// What the limit grows by: a page and a little, so never the same place in one.
const STEP: u64 = 9 * 512;
const WRITES: usize = 12;

/// Writes a little and says what became of it, to its end if it is left to live.
async fn write_a_little(dir: &Path) {
    let mut out = std::io::stdout();
    // Ends the line that the harness has begun.
    writeln!(out).unwrap();
    let tasks = Tasks::new(Shutdown::new());
    let store = match Store::open(&Data::Dir(dir.to_owned()), Clock::system(), &tasks) {
        Ok(store) => Opened { store, tasks },
        Err(_) => return,
    };
    let mut whole = true;
    for n in 0..WRITES {
        let key = key(&format!("o{}", n % 5));
        let last = store.get(&key);
        let (verb, expect, change) = match &last {
            Some(last) if n % 3 == 0 => ("-", Expect::Rev(last.rev), Change::Delete(last.value())),
            Some(last) => ("+", Expect::Rev(last.rev), Change::Put(object(&key, &"x".repeat(n * 300)))),
            None => ("+", Expect::Absent, Change::Put(object(&key, &"x".repeat(n * 300)))),
        };
        match store.write(key.clone(), expect, change).await {
            Ok(entry) => writeln!(out, "{verb} {} {}", entry.rev, key.name).unwrap(),
            Err(WriteError::Full | WriteError::Failed(_)) => whole = false,
            Err(error) => panic!("{error}"),
        }
    }
    close(store).await;
    if whole {
        writeln!(out, "whole").unwrap();
    }
}

/// Lets a child write, none of whose files may become larger than the limit.
fn child(dir: &Path, limit: u64, killed: bool) -> String {
    let trap = if killed { "" } else { "trap '' XFSZ;" };
    let blocks = limit / 512;
    let out = Command::new("sh")
        .args(["-c", &format!("{trap} ulimit -c 0; ulimit -f {blocks}; exec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([TEST, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .output()
        .unwrap();
    if !killed {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    String::from_utf8(out.stdout).unwrap()
}

/// The store is as it was when the last acknowledged write was done, or one that nobody heard of was.
async fn check(data: &Data, said: &str, before: u64, killed: bool) {
    let acknowledged: BTreeMap<u64, (bool, &str)> = said
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [verb @ ("+" | "-"), rev, name] => Some((rev.parse().unwrap(), (verb == "+", name))),
            _ => None,
        })
        .collect();
    let store = open(data);
    let newest = acknowledged.keys().next_back().copied().unwrap_or(before);
    let revision = store.revision();
    assert!(revision == newest || killed && revision == newest + 1, "{revision} after {newest}: {said}");
    let mut watch = store.watch_everything(0).unwrap();
    let mut live = BTreeMap::new();
    for rev in 1..=revision {
        let event = watch.next().await.unwrap();
        assert_eq!(event.rev, rev, "{said}");
        if rev > before && rev <= newest {
            assert_eq!(acknowledged[&rev], (!event.deleted, &*event.entry.key.name), "{said}");
        }
        match event.deleted {
            true => live.remove(&event.entry.key),
            false => live.insert(event.entry.key.clone(), event.entry.json.clone()),
        };
    }
    let shown: BTreeMap<_, _> = store.everything().0.iter().map(|it| (it.key.clone(), it.json.clone())).collect();
    assert_eq!(shown, live);
    assert_eq!(put(&store, &key("next"), "").await.rev, revision + 1);
    close(store).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_whichever_write_fails() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_a_little(Path::new(&dir)).await;
    }
    // A store that is made, and one that was there: its file is larger than all that is written before the log is
    // written back into it.
    let (grown, data) = dir();
    let store = open(&data);
    for n in 0..5 {
        put(&store, &key(&format!("o{n}")), &"y".repeat(40_000)).await;
    }
    close(store).await;
    let size = std::fs::metadata(grown.path().join("kubernetes.db")).unwrap().len();
    for (from, before, enough) in [(None, 0, 0), (Some(grown.path()), 5, size)] {
        for killed in [true, false] {
            let mut rounds = 0;
            loop {
                let (copy, data) = dir();
                if let Some(from) = from {
                    std::fs::copy(from.join("kubernetes.db"), copy.path().join("kubernetes.db")).unwrap();
                }
                let said = child(copy.path(), rounds * STEP, killed);
                check(&data, &said, before, killed).await;
                rounds += 1;
                if said.contains("whole") && rounds * STEP > enough {
                    break;
                }
                assert!(rounds < 1_000, "it never writes all: {said}");
            }
            assert!(rounds > 20, "only {rounds} rounds");
        }
    }
}
