//! Quotas say what is used of them: `pkg/controller/resourcequota` of upstream. What is created is counted when it is
//! admitted; here is counted what goes, what ends, and what a new quota finds.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::agenda::Agenda;
use crate::admission::quota;
use crate::core::Core;

pub(super) async fn follow(core: Arc<Core>) {
    let core = &core;
    let listed = core.store.list("", "resourcequotas", None, None, None);
    let Ok(mut quotas) = core.store.watch("", "resourcequotas", None, listed.rev) else { return };
    let mut agenda: Agenda<String> = Agenda::new(core.clock.clone());
    let mut limited: BTreeSet<String> = listed.entries.iter().map(|it| it.key.namespace.to_string()).collect();
    agenda.add(limited.iter().cloned());
    // Looked at only where there is something to limit.
    let mut content = None;
    loop {
        if limited.is_empty() {
            content = None;
        } else if content.is_none() {
            let Ok(all) = core.store.watch_everything(core.store.revision()) else { return };
            content = Some(all);
        }
        for namespace in agenda.take(usize::MAX) {
            if let Err(problem) = quota::recount(core, &namespace).await {
                tracing::warn!(namespace, why = problem.message, "quotas are not counted");
                agenda.failed(namespace);
            }
        }
        if agenda.is_due() {
            continue;
        }
        tokio::select! {
            change = quotas.next() => {
                let Some(change) = change else { return };
                let namespace = change.entry.key.namespace.to_string();
                if quota::is_limited(core, &namespace) {
                    limited.insert(namespace.clone());
                    if quota::is_uncounted(&change.entry) {
                        agenda.add([namespace]);
                    }
                } else {
                    limited.remove(&namespace);
                }
            }
            change = async {
                match &mut content {
                    Some(content) => content.next().await,
                    None => std::future::pending().await,
                }
            } => {
                let Some(change) = change else { return };
                if let Some(namespace) = limited.get(&*change.entry.key.namespace)
                    && quota::frees(core, &change)
                {
                    agenda.add([namespace.clone()]);
                }
            }
            doubtful = core.admission.quotas.doubtful() => agenda.add(doubtful),
            () = agenda.again() => {}
        }
    }
}
