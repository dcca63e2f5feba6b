//! Events, as Kubernetes' controllers write them: told once and counted when the same is said again.
//!
//! Whoever says something does not wait for it: a writer of its own takes what was said, many at once.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use futures::future::join_all;
use indexmap::IndexMap;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::reader::Kind;
use super::{call, is_refused, merge, options};
use crate::core::{Core, time};
use crate::http::json::put;
use crate::object::status::Problem;
use crate::store::Key;
use crate::verbs::create;

/// What was said and is not written yet, at most. More is lost, as upstream.
const QUEUE: usize = 4096;
/// Written at once, at most.
const BATCH: usize = 128;
/// Events that are remembered, to be counted.
const KNOWN: usize = 4096;
/// Longer messages are cut off, in bytes.
const MESSAGE: usize = 1024;

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub(super) struct Events(mpsc::Sender<Said>);

/// What one component says.
#[derive(Clone)]
pub(super) struct Recorder {
    events: Events,
    core: Arc<Core>,
    component: &'static str,
    /// What `events.k8s.io` calls the instance, where the component speaks that.
    instance: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Level {
    Normal,
    Warning,
}

struct Said {
    component: &'static str,
    instance: Option<&'static str>,
    action: &'static str,
    about: Value,
    related: Option<Value>,
    level: Level,
    reason: Cow<'static, str>,
    message: String,
    at: Timestamp,
}

/// What a plan wants to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    level: Level,
    reason: Cow<'static, str>,
    message: String,
}

impl Remark {
    pub(super) fn normal(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { level: Level::Normal, reason: reason.into(), message: message.into() }
    }

    pub(super) fn warning(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { level: Level::Warning, reason: reason.into(), message: message.into() }
    }
}

impl Events {
    /// Starts the writer.
    pub(super) fn start(core: &Arc<Core>) -> Self {
        let (to, mut from) = mpsc::channel(QUEUE);
        let (core, shutdown) = (core.clone(), core.tasks.shutdown().clone());
        core.clone().tasks.platform("events", async move {
            let mut known = Known::default();
            let mut said = Vec::new();
            tokio::select! {
                () = shutdown.begun() => {}
                () = async {
                    while from.recv_many(&mut said, BATCH).await > 0 {
                        // The last count of each is enough.
                        let told: IndexMap<Key, Told> =
                            said.drain(..).map(|it| known.count(it)).map(|it| (it.key.clone(), it)).collect();
                        join_all(told.into_values().map(|it| write(&core, it))).await;
                    }
                } => {}
            }
            Ok::<_, Infallible>(())
        });
        Self(to)
    }

    pub(super) fn of(&self, core: &Arc<Core>, component: &'static str) -> Recorder {
        Recorder { events: self.clone(), core: core.clone(), component, instance: None }
    }
}

impl Recorder {
    /// One that speaks `events.k8s.io`, as the scheduler does.
    pub(super) fn instance(self, instance: &'static str) -> Self {
        Self { instance: Some(instance), ..self }
    }

    pub(super) fn normal<T: Kind>(&self, about: &T, reason: &'static str, message: impl Into<String>) {
        self.say(reference(about), Level::Normal, reason, "", message.into());
    }

    pub(super) fn warning<T: Kind>(&self, about: &T, reason: &'static str, message: impl Into<String>) {
        self.say(reference(about), Level::Warning, reason, "", message.into());
    }

    pub(super) fn remark<T: Kind>(&self, about: &T, it: &Remark) {
        self.say(reference(about), it.level, it.reason.clone(), "", it.message.clone());
    }

    /// `about` is an ObjectReference; `action` what `events.k8s.io` calls so.
    pub(super) fn say(
        &self,
        about: Value,
        level: Level,
        reason: impl Into<Cow<'static, str>>,
        action: &'static str,
        message: String,
    ) {
        self.say_with(about, None, level, reason, action, message);
    }

    /// `related` is a further ObjectReference.
    pub(super) fn say_with(
        &self,
        about: Value,
        related: Option<Value>,
        level: Level,
        reason: impl Into<Cow<'static, str>>,
        action: &'static str,
        mut message: String,
    ) {
        message.truncate(message.floor_char_boundary(MESSAGE));
        let Self { component, instance, .. } = *self;
        let reason = reason.into();
        let said =
            Said { component, instance, action, about, related, level, reason, message, at: self.core.clock.now() };
        if let Err(lost) = self.events.0.try_send(said) {
            let reason = lost.into_inner().reason;
            tracing::debug!(%reason, "an event is lost: too many are said at once");
        }
    }
}

/// An ObjectReference.
pub(super) fn reference<T: Kind>(object: &T) -> Value {
    let mut it = json!({"apiVersion": T::API_VERSION, "kind": T::KIND});
    let meta = object.metadata();
    let fields = [
        ("namespace", &meta.namespace),
        ("name", &meta.name),
        ("uid", &meta.uid),
        ("resourceVersion", &meta.resource_version),
    ];
    for (field, value) in fields {
        if let Some(value) = value {
            put(&mut it, field, json!(value));
        }
    }
    it
}

/// An event and how often it was said until now.
struct Told {
    key: Key,
    said: Said,
    first: Timestamp,
    count: u32,
}

/// The events that were told, by what they say.
#[derive(Default)]
struct Known {
    all: HashMap<String, (Key, Timestamp, u32)>,
    in_order: VecDeque<String>,
    /// The time in the name that was given last: no two are the same.
    last: i128,
}

impl Known {
    fn count(&mut self, said: Said) -> Told {
        let text = |field: &str| said.about.get(field).and_then(Value::as_str).unwrap_or_default();
        let what = format!(
            "{} {:?} {} {} {} {} {}",
            said.component,
            said.level,
            said.reason,
            text("kind"),
            text("uid"),
            text("fieldPath"),
            said.message
        );
        if let Some((key, first, count)) = self.all.get_mut(&what) {
            *count = count.saturating_add(1);
            return Told { key: key.clone(), first: *first, count: *count, said };
        }
        self.last = said.at.as_nanosecond().max(self.last + 1);
        let name = text("name");
        let name = name.get(..name.floor_char_boundary(230)).unwrap_or_default();
        let namespace = if text("namespace").is_empty() { "default" } else { text("namespace") };
        let key = Key::new("", "events", namespace, format!("{name}.{:x}", self.last));
        self.all.insert(what.clone(), (key.clone(), said.at, 1));
        self.in_order.push_back(what);
        if self.in_order.len() > KNOWN
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.all.remove(&oldest);
        }
        Told { key, first: said.at, count: 1, said }
    }
}

async fn write(core: &Arc<Core>, told: Told) {
    if let Err(problem) = try_write(core, &told).await
        && !is_refused(&problem)
    {
        tracing::info!(key = ?told.key, why = problem.message, "an event is not written");
    }
}

async fn try_write(core: &Arc<Core>, told: &Told) -> Result<(), Problem> {
    let Told { key, said, first, count } = told;
    let micros = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    if *count > 1 && core.store.get(key).is_some() {
        let again = match said.instance {
            Some(_) => json!({"series": {"count": count, "lastObservedTime": micros(said.at)}}),
            None => json!({"count": count, "lastTimestamp": time(said.at)}),
        };
        match merge(core, key, "", again, said.component).await {
            Err(problem) if problem.code == 404 => {}
            done => return done,
        }
    }
    let Some(mut call) = call(core, key) else { return Ok(()) };
    call.name.clear();
    let mut event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": &*key.name, "namespace": &*key.namespace},
        "involvedObject": said.about, "reason": said.reason, "message": said.message,
        "type": match said.level { Level::Normal => "Normal", Level::Warning => "Warning" },
        "reportingComponent": said.component, "reportingInstance": said.instance.unwrap_or_default(),
    });
    if let Some(related) = &said.related {
        put(&mut event, "related", related.clone());
    }
    if said.instance.is_some() {
        put(&mut event, "action", json!(said.action));
        put(&mut event, "eventTime", json!(micros(*first)));
        if *count > 1 {
            put(&mut event, "series", json!({"count": count, "lastObservedTime": micros(said.at)}));
        }
    } else {
        put(&mut event, "source", json!({"component": said.component}));
        put(&mut event, "firstTimestamp", json!(time(*first)));
        put(&mut event, "lastTimestamp", json!(time(said.at)));
        put(&mut event, "count", json!(count));
    }
    create::create(&mut call, event, &options(said.component)).await.map(drop)
}
