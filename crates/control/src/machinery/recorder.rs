//! Events, as `kubectl describe` shows them: one object for one saying, with a count.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::plan::{Note, seconds};
use super::{Error, Subject};

/// Sayings that are remembered; the oldest are forgotten first, and then counted from what the server has.
const REMEMBERED: usize = 4096;
/// How many different messages with one reason an object gets before the rest fall together.
const DIFFERENT: usize = 10;
/// As the API server bounds it.
const LONGEST_MESSAGE: usize = 1024;

/// Tells events. Repetitions raise a count; one object that says ever new things with one reason gets one event for
/// the rest, so that nothing can flood the API server.
pub(crate) struct Recorder {
    client: Client,
    /// `source.component` of every event.
    component: String,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    counts: HashMap<String, i32>,
    order: VecDeque<String>,
    messages: HashMap<String, HashSet<u64>>,
}

impl Recorder {
    pub(crate) fn new(client: Client, component: String) -> Self {
        Self { client, component, told: Mutex::default() }
    }

    pub(crate) async fn tell(&self, about: &Subject, note: &Note, now: Timestamp) -> Result<(), Error> {
        let (name, message, count) = self.told.lock().unwrap_or_else(PoisonError::into_inner).tell(about, note);
        let namespace = if about.name.namespace.is_empty() { "default" } else { &about.name.namespace };
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let doing = || format!("record event {} of {}", note.reason, about.name);
        if count == 1 {
            match self.create(&events, about, note, &name, &message, now).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    // Told by an earlier process.
                    let before = events.get(&name).await.map_err(|error| Error::api(doing(), error))?;
                    let count = before.count.unwrap_or(1).saturating_add(1);
                    self.told.lock().unwrap_or_else(PoisonError::into_inner).counts.insert(name.clone(), count);
                    self.repeat(&events, &name, &message, count, now).await
                }
                other => other,
            }
        } else {
            match self.repeat(&events, &name, &message, count, now).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.create(&events, about, note, &name, &message, now).await
                }
                other => other,
            }
        }
        .map_err(|error| Error::api(doing(), error))
    }

    async fn create(
        &self,
        events: &Api<Event>,
        about: &Subject,
        note: &Note,
        name: &str,
        message: &str,
        now: Timestamp,
    ) -> kube::Result<()> {
        let at = json!(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(seconds(now)));
        let body: Value = json!({
            "metadata": {"name": name},
            "involvedObject": {
                "apiVersion": about.api_version, "kind": about.kind, "namespace": about.name.namespace,
                "name": about.name.name, "uid": about.uid,
            },
            "type": if note.warning { "Warning" } else { "Normal" },
            "reason": note.reason,
            "message": message,
            "source": {"component": self.component},
            "reportingComponent": self.component,
            "reportingInstance": self.component,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        });
        let event: Event = serde_json::from_value(body).map_err(kube::Error::SerdeError)?;
        let params = PostParams { field_manager: Some(self.component.clone()), ..PostParams::default() };
        events.create(&params, &event).await.map(drop)
    }

    async fn repeat(
        &self,
        events: &Api<Event>,
        name: &str,
        message: &str,
        count: i32,
        now: Timestamp,
    ) -> kube::Result<()> {
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(seconds(now));
        let patch = json!({"count": count, "lastTimestamp": at, "message": message});
        let params = PatchParams { field_manager: Some(self.component.clone()), ..PatchParams::default() };
        events.patch(name, &params, &Patch::Merge(patch)).await.map(drop)
    }
}

impl Told {
    /// The event's name, its message, and how often it has been told with this time.
    fn tell(&mut self, about: &Subject, note: &Note) -> (String, String, i32) {
        let mut message: String = note.message.chars().take(LONGEST_MESSAGE).collect();
        let theme = hash(&[&about.uid, note.reason]);
        let known = self.messages.entry(format!("{theme:016x}")).or_default();
        let mut id = hash(&[&about.uid, note.reason, &message]);
        if !known.contains(&id) && known.len() >= DIFFERENT {
            id = theme;
            message = format!("(combined from similar events): {message}").chars().take(LONGEST_MESSAGE).collect();
        } else {
            known.insert(id);
        }
        // Names of events are names of objects: at most 253 bytes.
        let stem: String = about.name.name.chars().take(230).collect();
        let name = format!("{stem}.{id:016x}");
        let count = self.counts.entry(name.clone()).or_insert(0);
        *count = count.saturating_add(1);
        let count = *count;
        if count == 1 {
            self.order.push_back(name.clone());
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.counts.remove(&oldest);
            }
            if self.messages.len() > REMEMBERED {
                self.messages.clear();
            }
        }
        (name, message, count)
    }
}

/// FNV-1a over the parts: the same in every process and version, since names of stored events are made of it.
fn hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::super::ObjectName;
    use super::*;

    #[test]
    fn repetitions_count_and_a_flood_falls_together() {
        let about = Subject {
            api_version: "v1".into(),
            kind: "Thing".into(),
            name: ObjectName { namespace: "ns".into(), name: "a".into() },
            uid: "1".into(),
        };
        let mut told = Told::default();
        let (first, _, one) = told.tell(&about, &Note::warning("Missing", "x"));
        let (again, _, two) = told.tell(&about, &Note::warning("Missing", "x"));
        assert_eq!((one, two), (1, 2));
        assert_eq!(first, again);
        let names: HashSet<String> =
            (0..100).map(|n| told.tell(&about, &Note::warning("Missing", format!("thing {n}"))).0).collect();
        assert_eq!(names.len(), DIFFERENT);
        let (_, message, count) = told.tell(&about, &Note::warning("Missing", "one more"));
        assert!(message.starts_with("(combined from similar events): one more"), "{message}");
        assert!(count > 80, "{count}");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut told = Told::default();
        for n in 0..3 * REMEMBERED {
            let about = Subject {
                api_version: "v1".into(),
                kind: "Thing".into(),
                name: ObjectName { namespace: "ns".into(), name: "a".into() },
                uid: n.to_string(),
            };
            told.tell(&about, &Note::normal("Made", "it"));
        }
        assert!(
            told.counts.len() <= REMEMBERED && told.order.len() <= REMEMBERED && told.messages.len() <= REMEMBERED + 1
        );
    }
}
