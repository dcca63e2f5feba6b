//! What the store does on this machine: durable creates by 1, 16 and 64 writers at once, and how long after the call a
//! watcher has the object, with 1 and 100 watchers and one that never reads. `cargo bench -p apiserver`.

// The store is no part of the crate's door, so it is compiled in here.
#[allow(dead_code, unused_imports, reason = "as above")]
#[path = "../src/count.rs"]
mod count;
#[allow(dead_code, unreachable_pub, unused_imports, reason = "the bench uses a part of it, outside of its crate")]
#[path = "../src/store/mod.rs"]
mod store;

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use kit::{Clock, Shutdown, Tasks};
use serde_json::{Value, json};
use store::{Change, Expect, Key, Snapshot, Store, WriteError};

/// The crate's own type of this name, as the store expects it.
pub enum Data {
    Memory,
    Dir(PathBuf),
}

const CREATES: usize = 20_000;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("{:40} {:>9} {:>9} {:>9} {:>9}", "", "per s", "p50 ms", "p95 ms", "p99 ms");
    report("bare SQLite, a durable row of 1 KiB", bare)?;
    for writers in [1, 16, 64] {
        report(&format!("durable create, 1 KiB, {writers} at once"), || runtime.block_on(creates(writers)))?;
    }
    for watchers in [1, 100] {
        report(&format!("create until {watchers} watchers have it"), || runtime.block_on(watched(watchers)))?;
    }
    let (open, list) = runtime.block_on(large())?;
    println!("{:40} {open:>9.1?}\n{:40} {list:>9.1?}", "open with 100,000 objects", "list 100,000 objects");
    Ok(())
}

/// The median of several rounds, each in a store of its own.
fn report(name: &str, round: impl Fn() -> Result<(f64, Vec<Duration>), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (rate, mut latencies) = round()?;
        latencies.sort();
        let at = |share: f64| {
            latencies.get((latencies.len() as f64 * share) as usize).map_or(f64::NAN, |it| 1e3 * it.as_secs_f64())
        };
        rounds.push([rate, at(0.5), at(0.95), at(0.99)]);
    }
    let median = |column: usize| {
        let mut all: Vec<f64> = rounds.iter().filter_map(|it| it.get(column).copied()).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    };
    println!("{name:40} {:>9.0} {:>9.3} {:>9.3} {:>9.3}", median(0), median(1), median(2), median(3));
    Ok(())
}

/// What this disk can do: nothing is durable sooner.
fn bare() -> Result<(f64, Vec<Duration>), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let db = rusqlite::Connection::open(dir.path().join("bare.db"))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute("CREATE TABLE rows(id INTEGER PRIMARY KEY, value BLOB)", [])?;
    let mut insert = db.prepare("INSERT INTO rows(value) VALUES (?)")?;
    let (row, begun) = ([b'x'; 1024], Instant::now());
    let mut latencies = Vec::new();
    for _ in 0..CREATES / 4 {
        let begun = Instant::now();
        insert.execute([&row[..]])?;
        latencies.push(begun.elapsed());
    }
    Ok((latencies.len() as f64 / begun.elapsed().as_secs_f64(), latencies))
}

struct Fresh {
    store: Store,
    tasks: Tasks,
    dir: tempfile::TempDir,
}

fn fresh() -> Result<Fresh, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let tasks = Tasks::new(Shutdown::new());
    let store = Store::open(&Data::Dir(dir.path().to_owned()), Clock::system(), &tasks)?;
    Ok(Fresh { store, tasks, dir })
}

fn object(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "uid": "00000000-0000-0000-0000-000000000000", "labels": {"app": "bench"}},
        "data": {"k": "x".repeat(1024)},
    })
}

async fn create(store: &Store, name: String) -> Result<Duration, WriteError> {
    let (key, object) = (Key::new("", "configmaps", "default", &*name), object(&name));
    let begun = Instant::now();
    store.write(key, Expect::Absent, Change::Put(object)).await?;
    Ok(begun.elapsed())
}

async fn creates(writers: usize) -> Result<(f64, Vec<Duration>), Box<dyn Error>> {
    let it = fresh()?;
    let each = if writers == 1 { CREATES / 4 } else { CREATES / writers };
    let begun = Instant::now();
    let (done, mut results) = tokio::sync::mpsc::channel(writers);
    for writer in 0..writers {
        let (store, done) = (it.store.clone(), done.clone());
        it.tasks.tenant("writer", async move {
            let mut latencies = Vec::with_capacity(each);
            for n in 0..each {
                latencies.push(create(&store, format!("o{writer}-{n}")).await);
            }
            let _ = done.send(latencies).await;
        });
    }
    drop(done);
    let mut latencies = Vec::new();
    while let Some(some) = results.recv().await {
        latencies.extend(some.into_iter().collect::<Result<Vec<_>, _>>()?);
    }
    let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
    it.tasks.end().await;
    Ok((rate, latencies))
}

/// From the call of the write until the last watcher has the event.
async fn watched(watchers: usize) -> Result<(f64, Vec<Duration>), Box<dyn Error>> {
    let it = fresh()?;
    let _stuck = it.store.watch("", "configmaps", None, 0)?;
    let (seen, mut all_seen) = tokio::sync::mpsc::channel(watchers);
    for _ in 0..watchers {
        let mut watch = it.store.watch("", "configmaps", None, 0)?;
        let seen = seen.clone();
        it.tasks.tenant("watcher", async move {
            while watch.next().await.is_some() && seen.send(Instant::now()).await.is_ok() {}
        });
    }
    let mut latencies = Vec::new();
    let begun = Instant::now();
    for n in 0..CREATES / 20 {
        let called = Instant::now();
        create(&it.store, format!("o{n}")).await?;
        let mut last = called;
        for _ in 0..watchers {
            last = last.max(all_seen.recv().await.ok_or("a watcher ended")?);
        }
        latencies.push(last - called);
    }
    Ok((latencies.len() as f64 / begun.elapsed().as_secs_f64(), latencies))
}

async fn large() -> Result<(Duration, Duration), Box<dyn Error>> {
    let Fresh { store, tasks, dir } = fresh()?;
    for chunk in 0..1_000 {
        try_join_all((0..100).map(|n| create(&store, format!("o{chunk}-{n}")))).await?;
    }
    let begun = Instant::now();
    let listed = store.list("", "configmaps", None, None, None);
    let list = begun.elapsed();
    assert_eq!(listed.entries.len(), 100_000);
    let copy = tempfile::tempdir()?;
    Snapshot::of(dir.path())?.write(&copy.path().join("kubernetes.db"), &|| true)?;
    tasks.end().await;
    drop((store, dir));
    let begun = Instant::now();
    let again = Store::open(&Data::Dir(copy.path().to_owned()), Clock::system(), &Tasks::new(Shutdown::new()))?;
    let open = begun.elapsed();
    assert_eq!(again.revision(), 100_000);
    Ok((open, list))
}
