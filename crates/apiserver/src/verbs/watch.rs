use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use kit::Shutdown;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::read::{self, Selection};
use super::{Call, ListOptions, meta};
use crate::http::json::put;
use crate::http::{Accept, Shape, present};
use crate::kinds::convert;
use crate::object::status::Problem;
use crate::registry::Resource;
use crate::store::{Entry, Event, Watch};

/// How often a watcher that asked for them is told how far it has seen.
const BOOKMARK: Duration = Duration::from_secs(60);
/// A watch without a timeout of its own ends after half an hour to an hour, so that reconnections spread.
const LONGEST: Duration = Duration::from_secs(1_800);
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// `GET ...?watch=1`: the events as they are written, one JSON document a line.
pub(crate) async fn watch(
    call: &Call,
    options: &ListOptions,
    accept: &Accept,
) -> Result<BoxStream<'static, Bytes>, Problem> {
    let resource = call.resource.clone();
    let mut selection_fields = options.fields.clone();
    if !call.name.is_empty() {
        // `/watch/.../name`, the deprecated way to watch one object.
        selection_fields = format!("metadata.name={}", call.name);
    }
    let selection = Selection::of(&resource, &options.labels, &selection_fields)?;
    let namespace = (resource.namespaced && !call.namespace.is_empty()).then_some(call.namespace.as_str());
    let store = &call.core.store;
    let revision = options.revision.unwrap_or_default();
    if revision > 0 && options.initial_events == Some(true) {
        read::reached(call, revision).await?;
    }
    let mut initial = Vec::new();
    let mut initial_end = None;
    let from = match (options.initial_events, revision) {
        (Some(false), 0) => store.revision(),
        (Some(true), _) | (None, 0) => {
            let listed = store.list(&resource.stored_group, &resource.plural, namespace, None, None);
            initial = listed.entries;
            initial_end = options.initial_events.map(|_| listed.rev).filter(|_| options.bookmarks);
            listed.rev
        }
        (_, revision) => revision,
    };
    let format = Format { resource, shape: accept.shape.clone(), core: call.core.clone() };
    let events = match store.watch(&format.resource.stored_group, &format.resource.plural, namespace, from) {
        Ok(events) => events,
        Err(old) => {
            let message = format!("too old resource version: {revision} ({})", old.oldest);
            return Ok(one(error_event(&Problem::expired(&message))));
        }
    };
    let seconds = match options.timeout.filter(|it| *it > 0) {
        Some(seconds) => Duration::from_secs(seconds.min(86_400)),
        None => LONGEST.mul_f64(1.0 + rand::rng().random::<f64>()),
    };
    let now = Instant::now();
    let served = Served {
        format,
        selection,
        events,
        initial: initial.into_iter(),
        initial_end,
        columns_sent: false,
        ends: now + seconds,
        bookmark: options.bookmarks.then(|| now + BOOKMARK),
        seen: from,
        over: false,
        shutdown: call.core.tasks.shutdown().clone(),
    };
    Ok(futures::stream::unfold(served, |mut served| async move { served.next().await.map(|piece| (piece, served)) })
        .boxed())
}

fn one(piece: Bytes) -> BoxStream<'static, Bytes> {
    futures::stream::once(async move { piece }).boxed()
}

fn error_event(problem: &Problem) -> Bytes {
    line("ERROR", problem.to_value().to_string().as_bytes())
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + 32);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(kind.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}

/// How an object of the watched resource is shown.
struct Format {
    resource: Arc<Resource>,
    shape: Shape,
    core: Arc<crate::core::Core>,
}

impl Format {
    fn event(&self, kind: &str, entry: &Entry, first: &mut bool) -> Bytes {
        if self.shape == Shape::Plain && self.resource.shows_as_kept(entry) {
            return line(kind, &entry.json);
        }
        let object = convert::show(&self.resource, entry);
        self.value(kind, object, first)
    }

    fn value(&self, kind: &str, object: Value, first: &mut bool) -> Bytes {
        let shown = match self.shape {
            Shape::Plain => object,
            Shape::Metadata { version } => present::metadata(&object, version),
            Shape::Table { version } => {
                let columns = !std::mem::replace(first, true);
                present::table_of_one(&self.resource, &object, version, columns, self.core.clock.now())
            }
        };
        line(kind, shown.to_string().as_bytes())
    }

    fn bookmark(&self, revision: u64, initial_end: bool, first: &mut bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            put(&mut metadata, "annotations", json!({INITIAL_END: "true"}));
        }
        // What Go prints of an empty object of the kind.
        let object =
            json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata});
        self.value("BOOKMARK", object, first)
    }
}

struct Served {
    format: Format,
    selection: Selection,
    events: Watch,
    initial: std::vec::IntoIter<Arc<Entry>>,
    /// The revision of the bookmark that ends the initial events.
    initial_end: Option<u64>,
    columns_sent: bool,
    ends: Instant,
    bookmark: Option<Instant>,
    /// The revision that the client last heard of.
    seen: u64,
    over: bool,
    shutdown: Shutdown,
}

impl Served {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.initial_piece() {
            return Some(piece);
        }
        if let Some(revision) = self.initial_end.take() {
            return Some(self.format.bookmark(revision, true, &mut self.columns_sent));
        }
        loop {
            if self.over {
                return None;
            }
            let event = tokio::select! {
                biased;
                () = self.shutdown.begun() => return None,
                event = self.events.next() => event,
                () = tokio::time::sleep_until(self.bookmark.unwrap_or(self.ends).min(self.ends)) => {
                    let now = Instant::now();
                    if now >= self.ends {
                        // A last bookmark spares the client the events that it has seen when it comes back.
                        self.over = true;
                        self.bookmark?;
                    }
                    self.bookmark = self.bookmark.map(|_| now + BOOKMARK);
                    let revision = self.events.progress();
                    if revision > self.seen {
                        self.seen = revision;
                        return Some(self.format.bookmark(revision, false, &mut self.columns_sent));
                    }
                    continue;
                }
            };
            let Some(event) = event else {
                self.over = true;
                let problem =
                    Problem::expired(&format!("too old resource version: {} (the watcher was too slow)", self.seen));
                return Some(error_event(&problem));
            };
            if let Some(piece) = self.event(&event) {
                self.seen = event.rev;
                return Some(piece);
            }
        }
    }

    /// As many initial events as make a fair piece.
    fn initial_piece(&mut self) -> Option<Bytes> {
        const PIECE: usize = 64 << 10;
        let mut pieces = BytesMut::new();
        for entry in self.initial.by_ref() {
            if self.selection.is_everything() || self.selection.matches(&self.format.resource, &entry) {
                pieces.put(self.format.event("ADDED", &entry, &mut self.columns_sent));
                if pieces.len() >= PIECE {
                    break;
                }
            }
        }
        (!pieces.is_empty()).then(|| pieces.freeze())
    }

    /// What an event is to this watcher: an object that begins or ceases to match comes or goes.
    fn event(&mut self, event: &Event) -> Option<Bytes> {
        let resource = &self.format.resource;
        let everything = self.selection.is_everything();
        let matches = |entry: &Entry| everything || self.selection.matches(resource, entry);
        let is = !event.deleted && matches(&event.entry);
        let was = event.prev.as_deref().is_some_and(matches);
        let kind = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        if kind == "DELETED" && !event.deleted {
            // It is shown as it last matched, with the revision at which it ceased to.
            let prev = event.prev.as_deref()?;
            let mut object = convert::show(resource, prev);
            meta::set(&mut object, "resourceVersion", event.rev.to_string());
            return Some(self.format.value(kind, object, &mut self.columns_sent));
        }
        Some(self.format.event(kind, &event.entry, &mut self.columns_sent))
    }
}
