//! The audit log: who asked for what and what became of it, as Kubernetes' audit events at the level `Metadata`, one JSON
//! document a line. Never a body, and never a token: of headers only the user agent is told, and of bodies what policies and
//! webhooks choose to tell.
//!
//! Lines are written off the requests' path. They wait in a queue that is bounded in bytes; while it is full, or the disk
//! is, events are lost, counted (`insula_audit_lost_total`) and told in the program's log: an API that stands still because of
//! its log would be worse.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::USER_AGENT;
use http::request::Parts;
use jiff::Timestamp;
use kit::{Clock, Shutdown, Tasks};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::access::roles::Decision;
use crate::access::{Attributes, User};
use crate::count::Counter;
use crate::object::meta::qualified_name;

/// Bytes of events that wait to be written.
const QUEUE: usize = 16 << 20;
/// Events in one write.
const BATCH: usize = 512;
/// Of a request's URI and of its user agent, what is told.
const LONGEST_URI: usize = 8 << 10;
const LONGEST_AGENT: usize = 1 << 10;
/// What the annotations of admission may be together.
const ANNOTATIONS_MAX: usize = 1 << 20;
/// How long answers that are still given at the shutdown are waited for.
const FAREWELL: Duration = Duration::from_secs(3);

/// Where the audit log is, and when another file is begun.
#[derive(Clone, Debug)]
pub struct AuditLog {
    pub path: PathBuf,
    /// A file that would grow beyond this many bytes becomes `PATH.1`, that one `PATH.2`, and so on.
    pub max_bytes: u64,
    /// So many older files are kept.
    pub max_backups: u32,
}

/// What admission has to tell of a request.
#[derive(Debug, Default)]
pub(crate) struct Annotations {
    all: BTreeMap<String, String>,
    size: usize,
}

impl Annotations {
    /// The first value of a key is the one that stays.
    pub(crate) fn add(&mut self, key: String, value: String) {
        if self.all.contains_key(&key) {
            return;
        }
        let size = self.size + key.len() + value.len();
        if key.split('/').count() != 2 || !qualified_name(&key).is_empty() {
            tracing::warn!(key = cut(&key, LONGEST_AGENT), "an annotation for the audit log has no proper key");
        } else if size > ANNOTATIONS_MAX {
            tracing::warn!(key, "there is no room for an annotation of the audit log");
        } else {
            self.size = size;
            self.all.insert(key, value);
        }
    }
}

/// What is known of a request. Dropped, it is written: also when who asked has gone before the answer.
pub(crate) struct Asked {
    audit: Audit,
    received: Timestamp,
    uri: String,
    verb: String,
    agent: String,
    from: Option<IpAddr>,
    user: Option<User>,
    impersonated: Option<User>,
    wanted: Option<(Attributes, String)>,
    decision: Option<Decision>,
    annotations: Annotations,
    /// Code, and the reason of a refusal.
    outcome: Option<(u16, Option<Cow<'static, str>>)>,
    /// Goes after the event has been written.
    _open: TaskTrackerToken,
}

impl Drop for Asked {
    fn drop(&mut self) {
        // Never before it was received, whatever was done to the machine's clock since.
        self.audit.write(&self.event(self.audit.0.clock.now().max(self.received)));
    }
}

/// Takes events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Audit(Arc<Inner>);

struct Inner {
    queue: mpsc::UnboundedSender<(String, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    clock: Clock,
    lost: Arc<Counter>,
    written: Arc<Counter>,
    /// Requests that are being answered, watches among them.
    open: TaskTracker,
}

impl Audit {
    /// Opens the file, and writes to it until the shutdown.
    pub(crate) fn open(to: AuditLog, clock: Clock, tasks: &Tasks) -> io::Result<Self> {
        let file = LogFile::open(to)?;
        let (queue, events) = mpsc::unbounded_channel();
        let (lost, written) = (Arc::<Counter>::default(), Arc::<Counter>::default());
        let (room, open) = (Arc::new(Semaphore::new(QUEUE)), TaskTracker::new());
        let (lost_too, written_too, open_too) = (lost.clone(), written.clone(), open.clone());
        let writer = Writer { file: Some(file), events, lost: lost_too, written: written_too, open: open_too, told: 0 };
        tasks.platform("audit log", writer.run(tasks.shutdown().clone()));
        Ok(Self(Arc::new(Inner { queue, room, clock, lost, written, open })))
    }

    /// Begins to look at a request.
    pub(crate) fn begin(&self, parts: &Parts, from: Option<IpAddr>) -> Box<Asked> {
        let uri = parts.uri.path_and_query().map_or_else(|| parts.uri.path(), |it| it.as_str());
        let agent = parts.headers.get(USER_AGENT).and_then(|it| it.to_str().ok()).unwrap_or_default();
        Box::new(Asked {
            audit: self.clone(),
            received: self.0.clock.now(),
            uri: cut(uri, LONGEST_URI),
            verb: parts.method.as_str().to_lowercase(),
            agent: cut(agent, LONGEST_AGENT),
            from,
            user: None,
            impersonated: None,
            wanted: None,
            decision: None,
            annotations: Annotations::default(),
            outcome: None,
            _open: self.0.open.token(),
        })
    }

    fn write(&self, event: &Value) {
        let line = format!("{event}\n");
        let size = u32::try_from(line.len()).unwrap_or(u32::MAX);
        let room = self.0.room.clone().try_acquire_many_owned(size);
        if !room.is_ok_and(|room| self.0.queue.send((line, room)).is_ok()) {
            self.0.lost.add(1);
        }
    }

    pub(crate) fn lost(&self) -> u64 {
        self.0.lost.get()
    }

    pub(crate) fn written(&self) -> u64 {
        self.0.written.get()
    }
}

fn cut(text: &str, longest: usize) -> String {
    text.get(..text.floor_char_boundary(longest)).unwrap_or_default().to_owned()
}

impl Asked {
    pub(crate) fn user(&mut self, user: &User) {
        self.user = Some(user.clone());
    }

    pub(crate) fn impersonated(&mut self, user: &User) {
        if self.user.as_ref() != Some(user) {
            self.impersonated = Some(user.clone());
        }
    }

    /// What was asked for, of this version of the API, and whether that was allowed.
    pub(crate) fn decided(&mut self, wanted: &Attributes, version: &str, decision: &Decision) {
        self.wanted = Some((wanted.clone(), version.to_owned()));
        self.decision = Some(decision.clone());
    }

    pub(crate) fn annotated(&mut self, annotations: Annotations) {
        self.annotations = annotations;
    }

    pub(crate) fn ended(&mut self, code: u16, reason: Option<Cow<'static, str>>) {
        self.outcome = Some((code, reason));
    }

    fn event(&self, now: Timestamp) -> Value {
        let mut event = Map::new();
        let mut set = |name: &str, value: Value| event.insert(name.to_owned(), value);
        set("kind", json!("Event"));
        set("apiVersion", json!("audit.k8s.io/v1"));
        set("level", json!("Metadata"));
        set("auditID", json!(uuid::Uuid::new_v4().to_string()));
        set("stage", json!("ResponseComplete"));
        set("requestURI", json!(self.uri));
        let verb = match &self.wanted {
            Some((Attributes::Resource { verb, .. } | Attributes::Path { verb, .. }, _)) => verb,
            None => &self.verb,
        };
        set("verb", json!(verb));
        set("user", self.user.as_ref().map_or_else(|| json!({}), shown));
        if let Some(user) = &self.impersonated {
            set("impersonatedUser", shown(user));
        }
        if let Some(from) = self.from {
            set("sourceIPs", json!([from.to_string()]));
        }
        if !self.agent.is_empty() {
            set("userAgent", json!(self.agent));
        }
        if let Some((Attributes::Resource { group, namespace, resource, subresource, name, .. }, version)) =
            &self.wanted
        {
            let parts = [
                ("resource", resource),
                ("namespace", namespace),
                ("name", name),
                ("apiGroup", group),
                ("apiVersion", version),
                ("subresource", subresource),
            ];
            let parts = parts.into_iter().filter(|(_, value)| !value.is_empty());
            set("objectRef", parts.map(|(name, value)| (name.to_owned(), json!(value))).collect::<Map<_, _>>().into());
        }
        if let Some((code, reason)) = &self.outcome {
            // Not its message, which may have in it what was in the body.
            set(
                "responseStatus",
                match reason {
                    Some(reason) => json!({"metadata": {}, "status": "Failure", "reason": reason, "code": code}),
                    None => json!({"metadata": {}, "code": code}),
                },
            );
        }
        set("requestReceivedTimestamp", json!(micros(self.received)));
        set("stageTimestamp", json!(micros(now)));
        let mut annotations: Map<String, Value> =
            self.annotations.all.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        if let Some(Decision { allowed, reason }) = &self.decision {
            let decision = if *allowed { "allow" } else { "forbid" };
            annotations.insert("authorization.k8s.io/decision".into(), json!(decision));
            annotations.insert("authorization.k8s.io/reason".into(), json!(reason));
        }
        if !annotations.is_empty() {
            set("annotations", annotations.into());
        }
        Value::Object(event)
    }
}

fn shown(user: &User) -> Value {
    let mut shown = json!({"username": user.name});
    if let Some(shown) = shown.as_object_mut() {
        if !user.uid.is_empty() {
            shown.insert("uid".into(), json!(user.uid));
        }
        if !user.groups.is_empty() {
            shown.insert("groups".into(), json!(user.groups));
        }
        if !user.extra.is_empty() {
            shown.insert("extra".into(), json!(user.extra));
        }
    }
    shown
}

/// A `metav1.MicroTime`.
fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

struct Writer {
    /// Away while it is written to.
    file: Option<LogFile>,
    events: mpsc::UnboundedReceiver<(String, OwnedSemaphorePermit)>,
    lost: Arc<Counter>,
    written: Arc<Counter>,
    open: TaskTracker,
    /// Of the lost ones.
    told: u64,
}

impl Writer {
    /// Writes what comes, until the shutdown; then on until every request is answered and written.
    async fn run(mut self, shutdown: Shutdown) -> io::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                count = self.events.recv_many(&mut batch, BATCH) => if count == 0 { return Ok(()) },
                () = shutdown.begun() => break,
            }
            self.write(&mut batch).await?;
        }
        self.open.close();
        let open = self.open.clone();
        let mut over = std::pin::pin!(tokio::time::timeout(FAREWELL, open.wait()));
        loop {
            tokio::select! {
                biased;
                _ = over.as_mut() => break,
                count = self.events.recv_many(&mut batch, BATCH) => if count == 0 { return Ok(()) },
            }
            self.write(&mut batch).await?;
        }
        // A request that is over has its event in the queue; what comes now comes too late, and is counted as lost.
        self.events.close();
        while self.events.recv_many(&mut batch, BATCH).await > 0 {
            self.write(&mut batch).await?;
        }
        Ok(())
    }

    async fn write(&mut self, batch: &mut Vec<(String, OwnedSemaphorePermit)>) -> io::Result<()> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let lines = std::mem::take(batch);
        let count = lines.len() as u64;
        let done = tokio::task::spawn_blocking(move || {
            let written = file.write(lines.iter().map(|(line, _)| line.as_bytes()));
            drop(lines);
            (file, written)
        });
        let (file, written) = done.await.map_err(io::Error::other)?;
        self.file = Some(file);
        match written {
            Ok(()) => self.written.add(count),
            Err(error) => {
                self.lost.add(count);
                tracing::error!(%error, "the audit log cannot be written");
            }
        }
        let lost = self.lost.get();
        if lost > self.told {
            tracing::error!(lost = lost - self.told, "events of the audit log are lost");
            self.told = lost;
        }
        Ok(())
    }
}

/// The file, which another one takes the place of when it is full or somebody moves it away.
struct LogFile {
    to: AuditLog,
    file: File,
    size: u64,
}

impl LogFile {
    fn open(to: AuditLog) -> io::Result<Self> {
        // What was there before stays, and is for the owner's eyes only from here on.
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&to.path)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let size = file.metadata()?.len();
        Ok(Self { to, file, size })
    }

    fn write<'a>(&mut self, lines: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        if !self.is_there() {
            *self = Self::open(self.to.clone())?;
        }
        let mut ready = Vec::new();
        for line in lines {
            let size = self.size + (ready.len() + line.len()) as u64;
            if size > self.to.max_bytes && size > line.len() as u64 {
                self.append(&ready)?;
                ready.clear();
                self.rotate()?;
            }
            ready.extend_from_slice(line);
        }
        self.append(&ready)
    }

    /// Whether the path still leads to the file.
    fn is_there(&self) -> bool {
        let of = |found: io::Result<std::fs::Metadata>| found.map(|it| (it.dev(), it.ino())).ok();
        of(self.file.metadata()) == of(std::fs::metadata(&self.to.path))
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // No line without its end.
            let _ = self.file.set_len(self.size);
            return Err(error);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.to.path;
        match self.to.max_backups {
            0 => std::fs::remove_file(path)?,
            most => {
                for n in (1..most).rev() {
                    match std::fs::rename(numbered(path, n), numbered(path, n + 1)) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                        _ => {}
                    }
                }
                std::fs::rename(path, numbered(path, 1))?;
            }
        }
        *self = Self::open(self.to.clone())?;
        Ok(())
    }
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, max_bytes: u64, max_backups: u32) -> LogFile {
        LogFile::open(AuditLog { path: dir.join("log"), max_bytes, max_backups }).unwrap()
    }

    fn read(dir: &Path) -> Vec<(String, String)> {
        let mut all: Vec<_> = std::fs::read_dir(dir).unwrap().map(|it| it.unwrap().path()).collect();
        all.sort();
        all.iter()
            .map(|it| (it.file_name().unwrap().to_str().unwrap().into(), std::fs::read_to_string(it).unwrap()))
            .collect()
    }

    #[test]
    fn a_file_that_would_grow_too_large_gives_way_to_another_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = file(dir.path(), 10, 2);
        let lines = |all: &'static [&str]| all.iter().map(|it| it.as_bytes());
        log.write(lines(&["one\n", "two\n", "three\n"])).unwrap();
        log.write(lines(&["longer than all\n"])).unwrap();
        let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!(
            read(dir.path()),
            [pair("log", "longer than all\n"), pair("log.1", "three\n"), pair("log.2", "one\ntwo\n")]
        );
        log.write(lines(&["x\n"])).unwrap();
        // As of a process before: the size is that of the file.
        let mut log = file(dir.path(), 10, 2);
        log.write(lines(&["12345678\n"])).unwrap();
        assert_eq!(
            read(dir.path()),
            [pair("log", "12345678\n"), pair("log.1", "x\n"), pair("log.2", "longer than all\n")]
        );
        // Somebody else moves it.
        std::fs::rename(dir.path().join("log"), dir.path().join("away")).unwrap();
        log.write(lines(&["y\n"])).unwrap();
        assert_eq!(read(dir.path()).len(), 4);
        assert_eq!(std::fs::metadata(dir.path().join("log")).unwrap().mode() & 0o777, 0o600);
    }
}
