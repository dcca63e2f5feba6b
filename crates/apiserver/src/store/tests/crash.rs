//! Ends without warning: the process is killed, the log's tail is torn off.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use futures::future::join_all;

use super::*;

const CHILD: &str = "INSULA_TEST_STORE_DIR";

/// Writes until it is killed, and says what was acknowledged.
async fn write_for_ever(dir: &Path) {
    let store = open(&Data::Dir(dir.to_owned()));
    let mut out = std::io::stdout();
    for round in 0u64.. {
        let writes = (0..16).map(|n| {
            let store: &Store = &store;
            async move {
                let key = key(&format!("o{}", (round + n) % 40));
                match store.get(&key) {
                    Some(_) if n % 5 == 0 => ("-", delete(store, &key).await),
                    _ => ("+", put(store, &key, &"x".repeat(n as usize * 100)).await),
                }
            }
        });
        for (verb, entry) in join_all(writes).await {
            writeln!(out, "{verb} {} {}", entry.rev, entry.key.name).unwrap();
        }
    }
}

fn is_ours(line: &std::io::Result<String>) -> bool {
    line.as_ref().is_ok_and(|it| it.starts_with(['+', '-']))
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_kill() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_for_ever(Path::new(&dir)).await;
    }
    let (dir, data) = dir();
    let mut revision = 0;
    for lines in [1, 700, 40, 1500] {
        let test = "what_was_acknowledged_is_there_after_a_kill";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([&format!("store::tests::crash::{test}"), "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acknowledged = BTreeMap::new();
        // The harness says something first.
        let mut read = BufReader::new(child.stdout.take().unwrap()).lines().skip_while(|it| !is_ours(it));
        let mut note = |line: &str| {
            let [verb, rev, name] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            acknowledged.insert(rev.parse::<u64>().unwrap(), (verb == "+", name.to_owned()));
        };
        read.by_ref().take(lines).for_each(|line| note(&line.unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
        // A torn last line is no acknowledgement.
        let mut rest = read.map_while(Result::ok).collect::<Vec<_>>();
        rest.pop();
        rest.iter().for_each(|line| note(line));

        let store = open(&data);
        // No revision came twice over all of them, and the log has every acknowledged one as it was.
        let mut watch = store.watch_everything(0).unwrap();
        let mut seen = 0;
        while seen < store.revision() {
            let event = watch.next().await.unwrap();
            seen += 1;
            assert_eq!(event.rev, seen);
            if let Some((put, name)) = acknowledged.remove(&event.rev) {
                assert_eq!((!event.deleted, &*event.entry.key.name), (put, &*name));
            }
        }
        assert!(acknowledged.is_empty(), "lost: {acknowledged:?}");
        assert!(store.revision() > revision);
        revision = store.revision();
        close(store).await;
    }
}

#[tokio::test]
async fn a_log_torn_at_any_place_opens_as_it_was_at_some_revision() {
    let (torn, data) = dir();
    let store = open(&data);
    let mut history = vec![Vec::new()];
    for n in 0..12 {
        let a = key(&format!("o{}", n % 5));
        match store.get(&a) {
            Some(_) if n % 3 == 0 => delete(&store, &a).await,
            _ => put(&store, &a, &"x".repeat(n * 700)).await,
        };
        history.push(store.everything().0.iter().map(|it| it.json.clone()).collect::<Vec<_>>());
    }
    let read = |name: &str| std::fs::read(torn.path().join(name)).unwrap();
    let (db, wal) = (read("kubernetes.db"), read("kubernetes.db-wal"));
    assert!(db.len() + wal.len() > 4096 * 20);
    let mut found = std::collections::BTreeSet::new();
    for cut in (0..=wal.len()).step_by(1024).chain([wal.len()]) {
        let (copy, data) = dir();
        std::fs::write(copy.path().join("kubernetes.db"), &db).unwrap();
        std::fs::write(copy.path().join("kubernetes.db-wal"), &wal[..cut]).unwrap();
        let store = open(&data);
        let rev = store.revision();
        let live = store.everything().0.iter().map(|it| it.json.clone()).collect::<Vec<_>>();
        assert_eq!(live, history[rev as usize], "cut at {cut}");
        assert_eq!(put(&store, &key("next"), "").await.rev, rev + 1);
        found.insert(rev);
    }
    assert_eq!(found.len(), history.len(), "every revision is somewhere: {found:?}");
}
