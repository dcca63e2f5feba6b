//! A definition that is deleted takes its objects with it, and goes when the last of them is gone.

use std::sync::Arc;
use std::time::Duration;

use kit::Backoff;
use serde_json::Value;

use super::custom::{self, CLEANUP, GROUP, PLURAL};
use crate::access::User;
use crate::core::Core;
use crate::store::{Change, Entry, Expect, TooOld, WriteError};
use crate::verbs::{Call, DeleteOptions, delete, meta};

/// Runs until the shutdown.
pub(crate) async fn run(core: Arc<Core>) -> Result<(), TooOld> {
    let shutdown = core.tasks.shutdown().clone();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
    loop {
        let mut definitions = core.store.watch(GROUP, PLURAL, None, core.store.revision())?;
        let (waiting, failed) = sweep(&core).await;
        if !failed {
            backoff.reset();
        }
        let mut objects = match waiting {
            Some((group, plural, rev)) => Some(core.store.watch(&group, &plural, None, rev)?),
            None => None,
        };
        tokio::select! {
            () = shutdown.begun() => return Ok(()),
            _ = definitions.next() => {}
            _ = async {
                match &mut objects {
                    Some(objects) => objects.next().await,
                    None => std::future::pending().await,
                }
            } => {}
            () = tokio::time::sleep(backoff.clone().pause()), if failed => {
                let _ = backoff.pause();
            }
        }
    }
}

/// Looks at every definition that is to go. The resource whose objects one of them waits for (and the revision at which
/// it did), and whether something went wrong that is worth another try.
async fn sweep(core: &Arc<Core>) -> (Option<(String, String, u64)>, bool) {
    let (mut waiting, mut failed) = (None, false);
    for entry in core.store.list(GROUP, PLURAL, None, None, None).entries {
        let definition = entry.value();
        if !meta::is_being_deleted(&definition) || !meta::finalizers(&definition).iter().any(|it| it == CLEANUP) {
            continue;
        }
        let text = |path: &str| definition.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (group, plural) = (text("/spec/group"), text("/spec/names/plural"));
        let rev = core.store.revision();
        match empty(core, &group, &plural).await {
            Ok(true) => failed |= release(core, &entry, definition).await.is_err(),
            Ok(false) => waiting = Some((group, plural, rev)),
            Err(()) => failed = true,
        }
    }
    (waiting, failed)
}

/// Deletes the objects of a resource. True when there are none left.
async fn empty(core: &Arc<Core>, group: &str, plural: &str) -> Result<bool, ()> {
    let resources = core.registry.now();
    let Some(resource) = resources.preferred().find(|it| it.stored_group == group && it.plural == plural).cloned()
    else {
        // Never served, so never filled.
        return Ok(true);
    };
    for entry in core.store.list(group, plural, None, None, None).entries {
        let mut call = Call {
            core: core.clone(),
            resource: resource.clone(),
            user: User::admin(),
            namespace: entry.key.namespace.to_string(),
            name: entry.key.name.to_string(),
            subresource: String::new(),
            warnings: Vec::new(),
            annotations: Default::default(),
        };
        if let Err(problem) = delete::delete(&mut call, &DeleteOptions::default()).await
            && problem.code != 404
        {
            tracing::warn!(
                group,
                plural,
                name = call.name,
                why = problem.message,
                "an object of a deleted definition stays"
            );
            return Err(());
        }
    }
    Ok(core.store.list(group, plural, None, None, Some(1)).entries.is_empty())
}

/// Takes the finalizer away; with it goes the definition, unless others hold it.
async fn release(core: &Arc<Core>, entry: &Arc<Entry>, mut definition: Value) -> Result<(), WriteError> {
    let finalizers: Vec<String> = meta::finalizers(&definition).into_iter().filter(|it| it != CLEANUP).collect();
    let goes = finalizers.is_empty();
    if !goes {
        meta::set_finalizers(&mut definition, &finalizers);
        let done = "CustomResource deletion completed";
        custom::set_condition(&mut definition, "Terminating", "False", "InstanceDeletionCompleted", done, &core.now());
    }
    if goes {
        // Who sees it gone finds nothing served by it any more.
        core.registry.update(|| {
            let mut others = core.store.list(GROUP, PLURAL, None, None, None).entries;
            others.retain(|it| it.key != entry.key);
            others
        });
    }
    let change = if goes { Change::Delete(definition) } else { Change::Put(definition) };
    match core.store.write(entry.key.clone(), Expect::Rev(entry.rev), change).await {
        Ok(_) => {}
        // Somebody wrote it meanwhile: that event brings us back.
        Err(WriteError::Conflict { .. } | WriteError::Absent) => {
            core.reload();
            return Ok(());
        }
        Err(error) => {
            core.reload();
            tracing::warn!(error = kit::chain(&error), "a definition stays");
            return Err(error);
        }
    }
    core.reload();
    resettle(core).await;
    Ok(())
}

/// Names became free: definitions that wanted them may have them now.
async fn resettle(core: &Arc<Core>) {
    let all = core.store.list(GROUP, PLURAL, None, None, None).entries;
    for entry in &all {
        let mut definition = entry.value();
        if custom::condition_is(&definition, "NamesAccepted", "True")
            || !custom::settle(&mut definition, &all, &core.now())
        {
            continue;
        }
        let change = Change::Put(definition);
        if let Err(error) = core.store.write(entry.key.clone(), Expect::Rev(entry.rev), change).await {
            tracing::info!(error = kit::chain(&error), "a definition's names are settled another time");
        }
    }
    core.reload();
}
