//! Events of pods, as a kubelet's recorder writes them: the same again counts up, many alike are one, and nobody can flood.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kit::Clock;
use kube::Client;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::plan::Note;
use super::spec;
use super::status::time;
use super::worker::CALL;
use crate::projection::objects;

/// client-go's: an object may say so much at once, and one thing more every five minutes.
const BURST: f64 = 25.0;
const REFILL: f64 = 1.0 / 300.0;
/// So many that differ in their message alone within so long are told as one.
const ALIKE: usize = 10;
const WITHIN: SignedDuration = SignedDuration::from_secs(600);
/// What is remembered of what was said; the oldest is forgotten.
const KEPT: usize = 4096;
/// What waits to be written; more is lost, and nobody waits for it.
const WAITING: usize = 1024;
/// The longest message that the API server takes, and of a pod's name what leaves room in an event's for a number.
const LONGEST: usize = 1024;
const LONGEST_NAME: usize = 236;

/// Takes events and never waits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    sender: mpsc::Sender<Said>,
}

struct Said {
    reference: Value,
    namespace: String,
    name: String,
    note: Note,
}

/// Writes what the recorder is told.
pub(crate) struct Writer {
    client: Client,
    node: String,
    clock: Clock,
    said: mpsc::Receiver<Said>,
    known: Mutex<Known>,
}

pub(crate) fn recorder(client: Client, node: String, clock: Clock) -> (Recorder, Writer) {
    let (sender, said) = mpsc::channel(WAITING);
    (Recorder { sender }, Writer { client, node, clock, said, known: Mutex::default() })
}

impl Recorder {
    pub(super) fn note(&self, pod: &Pod, note: Note) {
        let meta = &pod.metadata;
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        let mut reference = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": spec::uid(pod),
            "resourceVersion": meta.resource_version,
        });
        if let Some((path, reference)) = note.path.as_ref().zip(reference.as_object_mut()) {
            reference.insert("fieldPath".to_owned(), path.clone().into());
        }
        if self.sender.try_send(Said { reference, namespace, name, note }).is_err() {
            tracing::debug!("too many events wait to be written: one is lost");
        }
    }
}

impl Writer {
    /// Until the recorder is gone.
    pub(crate) async fn keep(mut self) {
        while let Some(said) = self.said.recv().await {
            match tokio::time::timeout(CALL, self.write(said)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(error = kit::chain(&error), "cannot write an event"),
                Err(_) => tracing::debug!("cannot write an event: the API server does not answer"),
            }
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, said: Said) -> Result<(), kube::Error> {
        let now = self.clock.now();
        let whose = said.reference.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned();
        let told = self.known().hear(&whose, &said.name, &said.note, now);
        let Some(told) = told else { return Ok(()) };
        let events = objects::<k8s_openapi::api::core::v1::Event>(&self.client, Some(&said.namespace));
        if told.count > 1 {
            let more = json!({"count": told.count, "lastTimestamp": time(now), "message": told.message});
            match events.patch(&told.name, &PatchParams::default(), &Patch::Merge(&more)).await {
                // It has been forgotten there.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": told.name, "namespace": said.namespace},
            "involvedObject": said.reference,
            "type": if said.note.warning { "Warning" } else { "Normal" },
            "reason": said.note.reason,
            "message": told.message,
            "count": told.count,
            "firstTimestamp": time(told.first),
            "lastTimestamp": time(now),
            "source": {"component": "kubelet", "host": self.node},
            "reportingComponent": "kubelet",
            "reportingInstance": self.node,
        });
        let event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        events.create(&PostParams::default(), &event).await.map(drop)
    }
}

/// What was said before.
#[derive(Default)]
struct Known {
    events: BTreeMap<String, Told>,
    /// In the order in which they came.
    order: VecDeque<String>,
    groups: BTreeMap<String, (Vec<String>, Timestamp)>,
    budgets: BTreeMap<String, (f64, Timestamp)>,
    /// The last number in a name.
    number: i128,
}

#[derive(Clone, Debug, PartialEq)]
struct Told {
    name: String,
    message: String,
    count: i32,
    first: Timestamp,
}

impl Known {
    fn key(whose: &str, note: &Note, message: &str) -> String {
        format!("{}\n{message}", Self::group(whose, note))
    }

    fn group(whose: &str, note: &Note) -> String {
        format!("{whose}\n{}\n{}\n{}", note.path.as_deref().unwrap_or_default(), note.warning, note.reason)
    }

    /// What is to be written; `None`: nothing, there was too much.
    fn hear(&mut self, whose: &str, pod: &str, note: &Note, now: Timestamp) -> Option<Told> {
        self.bound();
        let mut message = cut(note.message.clone());
        let seen = self.groups.entry(Self::group(whose, note)).or_insert_with(|| (Vec::new(), now));
        if now.duration_since(seen.1) > WITHIN {
            seen.0.clear();
        }
        seen.1 = now;
        if !seen.0.contains(&message) && seen.0.len() < ALIKE {
            seen.0.push(message.clone());
        } else if !seen.0.contains(&message) {
            message = cut(format!("(combined from similar events): {message}"));
        }
        let alike = message.starts_with("(combined from similar events)");
        let (left, since) = self.budgets.entry(whose.to_owned()).or_insert((BURST, now));
        let passed = now.duration_since(*since).as_secs_f64().max(0.0);
        *left = (*left + passed * REFILL).min(BURST);
        *since = now;
        if *left < 1.0 {
            return None;
        }
        *left -= 1.0;
        let key = Self::key(whose, note, if alike { "(combined)" } else { &message });
        let (order, number) = (&mut self.order, &mut self.number);
        let told = self.events.entry(key.clone()).or_insert_with(|| {
            order.push_back(key);
            // As client-go names them, and each once.
            *number = now.as_nanosecond().max(number.saturating_add(1));
            let pod = pod.get(..LONGEST_NAME).unwrap_or(pod).trim_end_matches(['-', '.']);
            Told { name: format!("{pod}.{number:x}"), message: String::new(), count: 0, first: now }
        });
        told.count = told.count.saturating_add(1);
        told.message = message;
        Some(told.clone())
    }

    fn bound(&mut self) {
        while self.order.len() > KEPT
            && let Some(key) = self.order.pop_front()
        {
            self.events.remove(&key);
        }
        for _ in 0..self.groups.len().saturating_sub(KEPT) {
            self.groups.pop_first();
        }
        for _ in 0..self.budgets.len().saturating_sub(KEPT) {
            self.budgets.pop_first();
        }
    }
}

fn cut(mut message: String) -> String {
    while message.len() > LONGEST {
        message.pop();
    }
    message
}
