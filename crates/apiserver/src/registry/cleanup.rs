//! A definition that is deleted takes its objects with it, and goes when the last of them is gone.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
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
        let Swept { waiting, failed } = sweep(&core).await;
        let pause = failed.then(|| backoff.pause());
        if !failed {
            backoff.reset();
        }
        let objects = waiting.iter().map(|it| core.store.watch(&it.group, &it.plural, None, it.since));
        // What was deleted may have been more than the history holds: then another look finds less to do.
        let Ok(mut objects) = objects.collect::<Result<Vec<_>, _>>() else { continue };
        let mut changes: FuturesUnordered<_> = objects.iter_mut().map(|it| it.next()).collect();
        tokio::select! {
            () = shutdown.begun() => return Ok(()),
            _ = definitions.next() => {}
            _ = changes.next(), if !changes.is_empty() => {}
            // No event tells when what went wrong would go right.
            () = tokio::time::sleep(pause.unwrap_or_default()), if failed => {}
        }
    }
}

/// What a look at all definitions has found.
struct Swept {
    waiting: Vec<Waiting>,
    /// Something went wrong that is worth another try.
    failed: bool,
}

/// A resource whose definition waits for the last of its objects.
struct Waiting {
    group: String,
    plural: String,
    /// The revision from which on an object may have gone unseen.
    since: u64,
}

/// Looks at every definition that is to go.
async fn sweep(core: &Arc<Core>) -> Swept {
    let mut swept = Swept { waiting: Vec::new(), failed: false };
    for entry in core.store.list(GROUP, PLURAL, None, None, None).entries {
        let definition = entry.value();
        if !meta::is_being_deleted(&definition) || !meta::finalizers(&definition).iter().any(|it| it == CLEANUP) {
            continue;
        }
        let text = |path: &str| definition.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (group, plural) = (text("/spec/group"), text("/spec/names/plural"));
        let since = core.store.revision();
        match empty(core, &group, &plural).await {
            Ok(true) => swept.failed |= release(core, &entry, definition).await.is_err(),
            Ok(false) => swept.waiting.push(Waiting { group, plural, since }),
            Err(()) => swept.failed = true,
        }
    }
    swept
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
