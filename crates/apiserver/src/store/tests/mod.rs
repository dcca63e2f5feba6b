mod contract;
mod crash;
mod faults;
mod replay;

use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::{Clock, Shutdown, Tasks};
use serde_json::{Value, json};

use super::*;
use crate::Data;

/// A store and the tasks that keep it.
struct Opened {
    store: Store,
    tasks: Tasks,
}

impl std::ops::Deref for Opened {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

fn open(data: &Data) -> Opened {
    open_window(data, WINDOW)
}

fn open_window(data: &Data, window: Window) -> Opened {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        let tasks = Tasks::new(Shutdown::new());
        match Store::open_with(data, Clock::system(), &tasks, window) {
            Ok(store) => return Opened { store, tasks },
            // Other tests start children, and such a one has all our files until it has become another program.
            Err(OpenError::InUse { .. }) if Instant::now() < patience => std::thread::yield_now(),
            Err(error) => panic!("{}", kit::chain(&error)),
        }
    }
}

/// Ends it and lets go of the file.
async fn close(it: Opened) {
    it.tasks.end().await;
    drop(it.store.0.committer.hold().take());
}

async fn reopen(data: &Data, old: Opened) -> Opened {
    close(old).await;
    open(data)
}

fn dir() -> (tempfile::TempDir, Data) {
    // In memory where that can be had: what is tested survives the process, not the machine, and a disk may be slow.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let data = Data::Dir(dir.path().to_owned());
    (dir, data)
}

fn key(name: &str) -> Key {
    Key::new("", "configmaps", "default", name)
}

fn object(key: &Key, data: &str) -> Value {
    json!({"metadata": {"name": &*key.name, "namespace": &*key.namespace}, "data": {"k": data}})
}

async fn put(store: &Store, key: &Key, data: &str) -> Arc<Entry> {
    let expect = store.get(key).map_or(Expect::Absent, |it| Expect::Rev(it.rev));
    store.write(key.clone(), expect, Change::Put(object(key, data))).await.unwrap()
}

async fn delete(store: &Store, key: &Key) -> Arc<Entry> {
    let last = store.get(key).unwrap();
    store.write(key.clone(), Expect::Rev(last.rev), Change::Delete(last.value())).await.unwrap()
}

fn names(listed: &Listed) -> Vec<&str> {
    listed.entries.iter().map(|it| &*it.key.name).collect()
}
