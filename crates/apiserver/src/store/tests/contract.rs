//! What every store promises, in memory and on disk.

use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use futures::future::join_all;

use super::*;

/// Queues a write that cannot be done yet.
fn begin(write: &mut (impl Future + Unpin)) {
    let waiting = Pin::new(write).poll(&mut Context::from_waker(Waker::noop()));
    assert!(waiting.is_pending());
}

async fn both(check: impl AsyncFn(Opened)) {
    check(open(&Data::Memory)).await;
    let (_dir, data) = dir();
    check(open(&data)).await;
}

#[tokio::test]
async fn a_write_happens_only_if_the_key_is_as_expected() {
    both(async |store| {
        let key = key("a");
        let write = |expect, change| store.write(key.clone(), expect, change);
        let put = |data| Change::Put(object(&key, data));
        assert!(matches!(write(Expect::Rev(1), put("x")).await, Err(WriteError::Absent)));
        let first = write(Expect::Absent, put("one")).await.unwrap();
        assert!(
            matches!(write(Expect::Absent, put("x")).await, Err(WriteError::Exists { current }) if current.rev == 1)
        );
        let second = write(Expect::Rev(first.rev), put("two")).await.unwrap();
        let stale = write(Expect::Rev(first.rev), put("x")).await;
        assert!(matches!(stale, Err(WriteError::Conflict { current }) if current.rev == second.rev));
        let gone = write(Expect::Rev(second.rev), Change::Delete(object(&key, "last"))).await.unwrap();
        assert_eq!((first.rev, second.rev, gone.rev, store.revision()), (1, 2, 3, 3));
        assert!(store.get(&key).is_none());
        assert_eq!(write(Expect::Absent, put("again")).await.unwrap().rev, 4);
    })
    .await;
}

#[tokio::test]
async fn the_revision_is_inside_the_object_and_labels_are_beside_it() {
    both(async |store| {
        let object = json!({
            "kind": "ConfigMap",
            "metadata": {"name": "a", "resourceVersion": "77", "uid": "u", "labels": {"app": "x"}, "ä\"": "\u{1}"},
            "data": {"resourceVersion": "not this", "metadata": {}},
        });
        let mut want = object.clone();
        want["metadata"]["resourceVersion"] = "1".into();
        let entry = store.write(key("a"), Expect::Absent, Change::Put(object)).await.unwrap();
        assert_eq!(entry.value(), want);
        assert_eq!(entry.json, serde_json::to_vec(&want).unwrap());
        assert_eq!(entry.labels().get("app").unwrap(), "x");
        let bare = store.write(key("b"), Expect::Absent, Change::Put(json!({"metadata": {}}))).await.unwrap();
        assert_eq!(&bare.json[..], br#"{"metadata":{"resourceVersion":"2"}}"#);
        assert!(bare.labels().is_empty());
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused() {
    both(async |store| {
        let large = json!({"metadata": {}, "data": "x".repeat(MAX_OBJECT)});
        let refused = store.write(key("a"), Expect::Absent, Change::Put(large)).await.unwrap_err();
        assert!(matches!(refused, WriteError::TooLarge { size } if size > MAX_OBJECT), "{refused}");
        for (key, object) in [
            (key("a/b"), json!({"metadata": {}})),
            (key(""), json!({"metadata": {}})),
            (key("a"), json!({"metadata": 1})),
        ] {
            let refused = store.write(key, Expect::Absent, Change::Put(object)).await;
            assert!(matches!(refused, Err(WriteError::NotAnObject)));
        }
        assert_eq!(store.revision(), 0);
    })
    .await;
}

#[tokio::test]
async fn lists_are_in_order_of_key_and_in_pages_of_one_state() {
    both(async |store| {
        for (namespace, name) in [("b", "x"), ("a", "z"), ("b", "w"), ("a", "y"), ("ab", "v")] {
            put(&store, &Key::new("", "pods", namespace, name), "").await;
        }
        put(&store, &Key::new("apps", "pods", "a", "other"), "").await;
        assert_eq!(names(&store.list("", "pods", None, None, None)), ["y", "z", "v", "w", "x"]);
        assert_eq!(names(&store.list("", "pods", Some("a"), None, None)), ["y", "z"]);
        let page = store.list("", "pods", None, None, Some(2));
        assert_eq!((names(&page), page.rev, page.remaining), (vec!["y", "z"], 6, 3));
        // What happens between two pages is not on the second.
        put(&store, &Key::new("", "pods", "ab", "u"), "").await;
        delete(&store, &Key::new("", "pods", "b", "w")).await;
        let last = page.entries.last().map(|it| &it.key);
        let next = store.list_at(page.rev, "", "pods", None, last, Some(2)).await.unwrap();
        assert_eq!((names(&next), next.rev, next.remaining), (vec!["v", "w"], 6, 1));
        assert_eq!(names(&store.list("", "pods", None, None, None)), ["y", "z", "u", "v", "x"]);
        assert_eq!(store.list("none", "such", None, None, None).rev, 8);
    })
    .await;
}

#[tokio::test]
async fn a_watch_tells_what_happened_and_what_was_before() {
    both(async |store| {
        let a = key("a");
        let mut watch = store.watch("", "configmaps", Some("default"), 0).unwrap();
        put(&store, &a, "one").await;
        put(&store, &Key::new("", "configmaps", "other", "a"), "").await;
        put(&store, &Key::new("", "secrets", "default", "a"), "").await;
        put(&store, &a, "two").await;
        delete(&store, &a).await;
        let mut told = Vec::new();
        for _ in 0..3 {
            let event = watch.next().await.unwrap();
            let data = |it: &Entry| it.value()["data"]["k"].as_str().unwrap().to_owned();
            told.push((event.rev, data(&event.entry), event.prev.as_deref().map(data), event.deleted));
        }
        let text = |it: &str| it.to_owned();
        let want = [
            (1, text("one"), None, false),
            (4, text("two"), Some(text("one")), false),
            (5, text("two"), Some(text("two")), true),
        ];
        assert_eq!(told, want);
        // A bookmark moves on with what happens elsewhere, and not past what was not yet handed out.
        put(&store, &Key::new("", "secrets", "default", "b"), "").await;
        assert_eq!(watch.progress(), 6);
        put(&store, &a, "three").await;
        put(&store, &Key::new("", "secrets", "default", "c"), "").await;
        assert_eq!(watch.progress(), 6);
        assert_eq!(watch.next().await.unwrap().rev, 7);
        assert_eq!(watch.progress(), 8);
    })
    .await;
}

#[tokio::test]
async fn a_waiting_watcher_is_woken_by_a_write() {
    both(async |store| {
        let mut watch = store.watch("", "configmaps", None, 0).unwrap();
        let mut all = store.watch_everything(0).unwrap();
        let a = key("a");
        let (event, any, ()) = tokio::join!(watch.next(), all.next(), async {
            put(&store, &a, "").await;
        });
        assert_eq!((event.unwrap().rev, any.unwrap().rev), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_the_others_miss_nothing() {
    for data in [Data::Memory, dir().1] {
        let (_dir, data) = if matches!(data, Data::Memory) {
            (None, data)
        } else {
            let (dir, data) = dir();
            (Some(dir), data)
        };
        let store = open_window(&data, Window { events: 4, bytes: usize::MAX });
        let mut slow = store.watch("", "configmaps", None, 0).unwrap();
        let mut quick = store.watch("", "configmaps", None, 0).unwrap();
        let mut elsewhere = store.watch("", "secrets", None, 0).unwrap();
        for rev in 1..=9 {
            put(&store, &key("a"), "").await;
            assert_eq!(quick.next().await.unwrap().rev, rev);
        }
        assert!(slow.next().await.is_none());
        // One that had nothing to read is not slow.
        put(&store, &Key::new("", "secrets", "default", "a"), "").await;
        assert_eq!(elsewhere.next().await.unwrap().rev, 10);
        // It begins again where it was: on disk the log knows, in memory it is told that this is too old.
        match (store.watch("", "configmaps", None, 1), &data) {
            (Err(error), Data::Memory) => assert_eq!(error, TooOld { asked: 1, oldest: 6 }),
            (Ok(mut again), Data::Dir(_)) => {
                for rev in 2..=9 {
                    assert_eq!(again.next().await.unwrap().rev, rev);
                }
                assert_eq!(again.progress(), 10);
            }
            (found, _) => panic!("{:?}", found.err()),
        }
    }
}

#[tokio::test]
async fn writes_of_one_batch_are_judged_one_by_one() {
    let (_dir, data) = dir();
    let store = open(&data);
    let (a, b) = (key("a"), key("b"));
    put(&store, &a, "").await;
    let log = store.0.committer.hold();
    let write = |key: &Key, expect| store.write(key.clone(), expect, Change::Put(object(key, "")));
    let mut writes = join_all([
        write(&b, Expect::Absent),
        write(&b, Expect::Absent),
        write(&a, Expect::Rev(1)),
        write(&a, Expect::Rev(1)),
        write(&a, Expect::Rev(3)),
    ]);
    // All of them wait while the first is held up; then they are one batch or two.
    begin(&mut writes);
    drop(log);
    let found = writes.await.into_iter().map(|it| it.map(|it| it.rev)).collect::<Vec<_>>();
    assert!(
        matches!(found[..], [Ok(2), Err(WriteError::Exists { .. }), Ok(3), Err(WriteError::Conflict { .. }), Ok(4)]),
        "{found:?}"
    );
    let store = reopen(&data, store).await;
    assert_eq!((store.revision(), store.get(&a).unwrap().rev, store.get(&b).unwrap().rev), (4, 4, 2));
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers() {
    let (_dir, data) = dir();
    let store = open(&data);
    put(&store, &key("small"), "").await;
    store.0.committer.limit_pages(0);
    let large = |name: &str| {
        let key = key(name);
        let object = object(&key, &"x".repeat(100_000));
        store.write(key, Expect::Absent, Change::Put(object))
    };
    // In one batch: what does not fit takes nothing along that does.
    let log = store.0.committer.hold();
    let a = key("a");
    let mut writes = join_all([large("b"), large("c")]);
    let mut fits = Box::pin(store.write(a.clone(), Expect::Absent, Change::Put(object(&a, ""))));
    begin(&mut writes);
    begin(&mut fits);
    drop(log);
    for refused in writes.await {
        assert!(matches!(refused, Err(WriteError::Full)), "{refused:?}");
    }
    assert_eq!(fits.await.unwrap().rev, 2);
    assert_eq!(names(&store.list("", "configmaps", None, None, None)), ["a", "small"]);
    store.0.committer.limit_pages(1 << 20);
    assert_eq!(large("b").await.unwrap().rev, 3);
    let store = reopen(&data, store).await;
    assert_eq!((store.revision(), store.list("", "configmaps", None, None, None).entries.len()), (3, 3));
}

#[tokio::test]
async fn compaction_forgets_history_and_nothing_else() {
    let (_dir, data) = dir();
    let store = open_window(&data, Window { events: 2, bytes: usize::MAX });
    for name in ["a", "b", "a", "a", "c"] {
        put(&store, &key(name), "").await;
    }
    delete(&store, &key("b")).await;
    for _ in 0..3 {
        put(&store, &key("d"), "").await;
    }
    let mut behind = store.watch("", "configmaps", None, 2).unwrap();
    store.compact(6).await.unwrap();
    // Whoever was still reading what is now forgotten must begin again.
    assert!(behind.next().await.is_none());
    assert_eq!(store.watch("", "configmaps", None, 5).err().unwrap(), TooOld { asked: 5, oldest: 6 });
    assert_eq!(store.list_at(5, "", "configmaps", None, None, None).await.unwrap_err(), TooOld { asked: 5, oldest: 6 });
    assert_eq!(names(&store.list_at(6, "", "configmaps", None, None, None).await.unwrap()), ["a", "c"]);
    let store = reopen(&data, store).await;
    let mut watch = store.watch("", "configmaps", None, 6).unwrap();
    for (rev, prev) in [(7, None), (8, Some(7)), (9, Some(8))] {
        let event = watch.next().await.unwrap();
        assert_eq!((event.rev, event.prev.as_ref().map(|it| it.rev)), (rev, prev));
    }
    assert_eq!(names(&store.list("", "configmaps", None, None, None)), ["a", "c", "d"]);
    // Even when everything is deleted and compacted no revision comes again.
    for name in ["a", "c", "d"] {
        delete(&store, &key(name)).await;
    }
    store.compact(u64::MAX).await.unwrap();
    let store = reopen(&data, store).await;
    assert_eq!((store.revision(), put(&store, &key("a"), "").await.rev), (12, 13));
}

#[test]
fn history_is_kept_for_an_interval_and_never_without_bound() {
    for ((old, revision), want) in
        [((0, 0), 0), ((0, 50), 0), ((50, 80), 50), ((80, 80), 79), ((0, 150_000), 50_000), ((60_000, 150_000), 60_000)]
    {
        assert_eq!(compact::through(old, revision), want, "{old} of {revision}");
    }
}

#[tokio::test(start_paused = true)]
async fn old_history_is_forgotten_as_time_goes_by() {
    let (_dir, data) = dir();
    let tasks = Tasks::new(Shutdown::new());
    let window = Window { events: 1, bytes: usize::MAX };
    let clock = Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
    let store = Store::open_with(&data, clock.clone(), &tasks, window).unwrap();
    // The compaction begins here: writes that are done at once would not let it.
    tokio::task::yield_now().await;
    for _ in 0..5 {
        put(&store, &key("a"), "").await;
    }
    let later = |minutes: u64| clock.until(clock.now() + Duration::from_secs(60 * minutes));
    later(6).await;
    assert!(store.watch("", "configmaps", None, 0).is_ok());
    put(&store, &key("a"), "").await;
    later(6).await;
    while store.watch("", "configmaps", None, 4).is_ok() {
        later(1).await;
    }
    assert!(store.watch("", "configmaps", None, 5).is_ok());
    tasks.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_clock_stands_still_while_a_commit_runs() {
    let (_dir, data) = dir();
    let store = open(&data);
    tokio::select! {
        biased;
        () = tokio::time::sleep(Duration::from_secs(3600)) => panic!("time went by"),
        () = async { for n in 0..20 { put(&store, &key("a"), &n.to_string()).await; } } => {}
    }
}

#[tokio::test]
async fn nobody_else_may_read_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, data) = dir();
    let store = open(&data);
    put(&store, &key("a"), "secret").await;
    Snapshot::of(dir.path()).unwrap().write(&dir.path().join("copy.db"), &|| true).unwrap();
    for file in ["kubernetes.db", "kubernetes.db-wal", "copy.db"] {
        let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
}

/// Copies what is there now into a directory of its own.
fn copied(from: &tempfile::TempDir) -> (tempfile::TempDir, Data) {
    let (copy, data) = dir();
    Snapshot::of(from.path()).unwrap().write(&copy.path().join("kubernetes.db"), &|| true).unwrap();
    (copy, data)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_of_one_moment_however_long_its_copy_takes() {
    let (from, data) = dir();
    let store = open(&data);
    // More than the copy does in one step.
    for n in 0..24 {
        put(&store, &key(&format!("o{n}")), &"x".repeat(1 << 20)).await;
    }
    let snapshot = Snapshot::of(from.path()).unwrap();
    let (copy, copied) = dir();
    let to = copy.path().join("kubernetes.db");
    let steps = std::cell::Cell::new(0);
    let writes_go_on = || {
        steps.set(steps.get() + 1);
        let changed = key("o0");
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(put(&store, &changed, "later")));
        true
    };
    snapshot.write(&to, &writes_go_on).unwrap();
    assert!(steps.get() > 1, "the whole copy was one step");
    assert!(snapshot.write(&to, &|| true).is_err(), "a backup overwrote a file");
    let (other, _) = dir();
    let stopped = snapshot.write(&other.path().join("kubernetes.db"), &|| false);
    assert!(matches!(stopped, Err(BackupError::Stopped)));
    let copy = open(&copied);
    assert_eq!(copy.revision(), 24);
    assert_eq!(copy.everything().0.len(), 24);
    assert!(copy.get(&key("o0")).unwrap().json.len() > 1 << 20);
}

#[tokio::test]
async fn what_is_restored_gives_out_no_revision_of_its_original_again() {
    let (from, data) = dir();
    let store = open(&data);
    put(&store, &key("a"), "one").await;
    put(&store, &key("a"), "two").await;
    put(&store, &key("b"), "").await;
    delete(&store, &key("b")).await;
    let (copy, copied) = copied(&from);
    put(&store, &key("c"), "after the backup").await;
    restored(copy.path()).unwrap();
    let copy = open(&copied);
    assert_eq!(names(&copy.list("", "configmaps", None, None, None)), ["a"]);
    assert_eq!(copy.get(&key("a")).unwrap().rev, 2);
    // Who followed the original must list anew.
    assert!(copy.watch("", "configmaps", None, store.revision()).is_err());
    let from = copy.revision();
    let mut watch = copy.watch("", "configmaps", None, from).unwrap();
    let written = put(&copy, &key("a"), "three").await;
    assert!(written.rev > from && from > store.revision());
    assert_eq!(watch.next().await.unwrap().rev, written.rev);
    let copy = reopen(&copied, copy).await;
    assert_eq!(copy.revision(), written.rev);
    assert_eq!(put(&copy, &key("d"), "").await.rev, written.rev + 1);
}

#[tokio::test]
async fn a_damaged_or_newer_copy_is_not_restored() {
    let (from, data) = dir();
    let store = open(&data);
    for n in 0..50 {
        put(&store, &key(&format!("o{n}")), &"x".repeat(9000)).await;
    }
    let (damaged, _) = copied(&from);
    let path = damaged.path().join("kubernetes.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 8192].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(restored(damaged.path()), Err(OpenError::Corrupt { .. })));

    let (newer, _) = copied(&from);
    let db = rusqlite::Connection::open(newer.path().join("kubernetes.db")).unwrap();
    db.execute("UPDATE meta SET value = '7' WHERE name = 'schema_version'", []).unwrap();
    db.close().unwrap();
    assert!(matches!(restored(newer.path()), Err(OpenError::Newer { found: 7, .. })));
    assert!(matches!(Snapshot::of(newer.path()), Err(OpenError::Newer { found: 7, .. })));
}

#[tokio::test]
async fn what_was_killed_while_it_was_made_is_made_anew() {
    let (_guard, data) = dir();
    let Data::Dir(path) = &data else { unreachable!() };
    let killed = tempfile::tempdir().unwrap();
    let made = killed.path().join("kubernetes.db");
    let db = rusqlite::Connection::open(&made).unwrap();
    // More than its cache holds: it is on the disk before it is committed, and beside it how to undo it.
    db.execute_batch("PRAGMA cache_size = 1; BEGIN; CREATE TABLE meta(name, value);").unwrap();
    for _ in 0..50 {
        db.execute("INSERT INTO meta VALUES ('x', zeroblob(10000))", []).unwrap();
    }
    for name in ["kubernetes.db", "kubernetes.db-journal"] {
        std::fs::copy(killed.path().join(name), path.join(name)).unwrap();
    }
    let store = open(&data);
    put(&store, &key("a"), "").await;
    close(store).await;
}

#[tokio::test]
async fn what_cannot_be_opened_says_why_and_is_not_touched() {
    let refused = |data: &Data| Store::open(data, Clock::system(), &Tasks::new(Shutdown::new())).err().unwrap();
    let (held, data) = dir();
    let store = open(&data);
    assert!(matches!(refused(&data), OpenError::InUse { .. }));
    close(store).await;
    drop(held);

    let (newer, data) = dir();
    let path = newer.path().join("kubernetes.db");
    close(open(&data)).await;
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute("UPDATE meta SET value = '7' WHERE name = 'schema_version'", []).unwrap();
    db.close().unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(refused(&data), OpenError::Newer { found: 7, known: 1, .. }));
    assert_eq!(std::fs::read(&path).unwrap(), before);

    let (broken, data) = dir();
    let path = broken.path().join("kubernetes.db");
    std::fs::write(&path, "SQLite is what this is not. ".repeat(100)).unwrap();
    assert!(matches!(refused(&data), OpenError::Corrupt { .. }));
    let (lost, data) = dir();
    let store = open(&data);
    put(&store, &key("a"), "").await;
    close(store).await;
    let db = rusqlite::Connection::open(lost.path().join("kubernetes.db")).unwrap();
    db.execute("DELETE FROM log WHERE rev = 1", []).unwrap();
    db.close().unwrap();
    assert!(matches!(refused(&data), OpenError::Corrupt { why, .. } if why == "no value of /configmaps/default/a"));
    let (foreign, data) = dir();
    let db = rusqlite::Connection::open(foreign.path().join("kubernetes.db")).unwrap();
    db.execute("CREATE TABLE theirs(x)", []).unwrap();
    assert!(matches!(refused(&data), OpenError::Corrupt { .. }));
    assert!(matches!(refused(&Data::Dir(path)), OpenError::NotWritable { .. }));
}
