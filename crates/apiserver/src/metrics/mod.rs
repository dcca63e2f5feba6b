//! `/metrics`: what the server counts of itself, under Kubernetes' names where it means the same.
//!
//! A label's value is never a client's: groups, versions and resources are those that are served, everything else is one
//! of a few words. Definitions come and go, and so the number of label sets is bounded too.

mod process;
mod text;

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method};
use indexmap::{Equivalent, IndexMap};

use crate::core::Core;
use crate::count::{Counter, Gauge, Histogram};
use crate::http::reply::Reply;
use crate::http::{Query, Target};
use crate::registry::Resource;
use text::Page;

/// Kubernetes' own.
const LATENCIES: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// What has a counter of its own; all else is counted as 0.
const CODES: [u16; 24] = [
    101, 200, 201, 202, 204, 304, 400, 401, 403, 404, 405, 406, 409, 410, 412, 413, 415, 422, 429, 500, 502, 503, 504,
    507,
];
/// Label sets of requests, and resources with watchers. What comes beyond is counted as one.
const MOST_ROUTES: usize = 4_096;
/// Subresources by name; the others are those that nobody has.
const SUBRESOURCES: [&str; 14] = [
    "approval",
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "finalize",
    "log",
    "portforward",
    "proxy",
    "resize",
    "scale",
    "status",
    "token",
];
/// Paths that are no resource's, with the names that they are counted under.
const PATHS: [(&str, &str); 9] = [
    ("api", "api"),
    ("apis", "apis"),
    ("healthz", "/healthz"),
    ("livez", "/livez"),
    ("readyz", "/readyz"),
    ("metrics", "/metrics"),
    ("openapi", "openapi"),
    ("openid", "openid"),
    ("version", "version"),
];

/// What a request is counted as.
#[derive(Clone, Default)]
pub(crate) struct Route {
    resource: Option<Arc<Resource>>,
    verb: &'static str,
    scope: &'static str,
    subresource: &'static str,
    dry_run: &'static str,
}

impl Route {
    /// Of a request on a resource that is served.
    pub(crate) fn of(resource: &Arc<Resource>, target: &Target, query: Query<'_>, headers: &HeaderMap) -> Self {
        let is_apply = || crate::http::media::content_type(headers).starts_with("application/apply-patch");
        let verb = match target.verb {
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" => "POST",
            "update" => "PUT",
            "patch" if is_apply() => "APPLY",
            "patch" => "PATCH",
            "delete" | "deletecollection" => "DELETE",
            _ => "other",
        };
        let scope = match (target.name.is_empty(), target.namespace.is_empty()) {
            (false, _) => "resource",
            (true, _) if verb == "POST" => "resource",
            (true, false) => "namespace",
            (true, true) => "cluster",
        };
        let subresource = match target.subresource.as_str() {
            "" => "",
            name => SUBRESOURCES.into_iter().find(|it| *it == name).unwrap_or("other"),
        };
        let dry_run = match query.get("dryRun").as_deref() {
            None => "",
            Some("All") => "All",
            Some(_) => "invalid",
        };
        Self { resource: Some(resource.clone()), verb, scope, subresource, dry_run }
    }

    /// Of a request that a node answers.
    pub(crate) fn connect(mut self) -> Self {
        self.verb = "CONNECT";
        self
    }

    /// Of a request on a path that is no resource's; none where the path is not served.
    pub(crate) fn of_path(method: &Method, path: &str) -> Option<Self> {
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let (_, subresource) = PATHS.into_iter().find(|(name, _)| *name == first)?;
        let verb = if *method == Method::GET { "GET" } else { "other" };
        Some(Self { verb, subresource, ..Self::default() })
    }

    pub(crate) fn is_watch(&self) -> bool {
        self.verb == "WATCH"
    }

    fn key(&self) -> KeyRef<'_> {
        let (group, version, resource) = match self.resource.as_deref() {
            Some(it) => (it.group.as_str(), it.version.as_str(), it.plural.as_str()),
            None => ("", "", ""),
        };
        let Self { verb, scope, subresource, dry_run, .. } = *self;
        KeyRef { group, version, resource, verb, scope, subresource, dry_run }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    group: String,
    version: String,
    resource: String,
    verb: &'static str,
    scope: &'static str,
    subresource: &'static str,
    dry_run: &'static str,
}

/// [`Key`] before its names are copied; both have the same hash.
#[derive(Hash)]
struct KeyRef<'a> {
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    verb: &'static str,
    scope: &'static str,
    subresource: &'static str,
    dry_run: &'static str,
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        (self.group, self.version, self.resource) == (&key.group, &key.version, &key.resource)
            && (self.verb, self.scope, self.subresource, self.dry_run)
                == (key.verb, key.scope, key.subresource, key.dry_run)
    }
}

impl Key {
    fn of(key: &KeyRef<'_>) -> Self {
        let KeyRef { group, version, resource, verb, scope, subresource, dry_run } = *key;
        let (group, version, resource) = (group.to_owned(), version.to_owned(), resource.to_owned());
        Self { group, version, resource, verb, scope, subresource, dry_run }
    }

    /// What there is no more room for.
    fn beyond() -> Self {
        Self { resource: "other".into(), verb: "other", ..Self::default() }
    }

    /// In the order of Kubernetes' page.
    fn labels(&self) -> [(&'static str, &str); 8] {
        let component = match self.subresource {
            "api" | "apis" => "apiserver",
            _ if self.resource.is_empty() => "",
            _ => "apiserver",
        };
        [
            ("component", component),
            ("dry_run", self.dry_run),
            ("group", &self.group),
            ("resource", &self.resource),
            ("scope", self.scope),
            ("subresource", self.subresource),
            ("verb", self.verb),
            ("version", &self.version),
        ]
    }
}

/// The requests of one route.
struct Series {
    codes: [Counter; CODES.len()],
    other_codes: Counter,
    took: Histogram,
    /// That go on: watches.
    running: Gauge,
    /// Events that watchers were sent.
    events: Counter,
}

impl Series {
    fn new() -> Self {
        let codes = std::array::from_fn(|_| Counter::default());
        let took = Histogram::new(LATENCIES);
        Self { codes, other_codes: Counter::default(), took, running: Gauge::default(), events: Counter::default() }
    }

    fn ended(&self, code: u16, took: Duration) {
        let place = CODES.binary_search(&code).ok().and_then(|at| self.codes.get(at));
        place.unwrap_or(&self.other_codes).add(1);
        self.took.observe(took);
    }

    /// How many ended with which code.
    fn codes(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let named = CODES.into_iter().zip(&self.codes);
        named.chain([(0, &self.other_codes)]).map(|(code, count)| (code, count.get())).filter(|(_, count)| *count > 0)
    }
}

#[derive(Default)]
pub(crate) struct Metrics {
    routes: RwLock<IndexMap<Key, Arc<Series>>>,
    reading: Gauge,
    writing: Gauge,
}

impl Metrics {
    fn series(&self, key: &KeyRef<'_>) -> Arc<Series> {
        let found = self.routes.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned();
        found.unwrap_or_else(|| {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            let key = if routes.len() < MOST_ROUTES { Key::of(key) } else { Key::beyond() };
            routes.entry(key).or_insert_with(|| Arc::new(Series::new())).clone()
        })
    }

    /// All that there is, in order. Copied: a request on a new route must not wait until a page is written.
    fn all(&self) -> Vec<(Key, Arc<Series>)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = routes.iter().map(|(key, series)| (key.clone(), series.clone())).collect();
        drop(routes);
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Counts a request as one that goes on, until the guard is dropped.
    pub(crate) fn begin(&self, method: &Method) -> InFlight<'_> {
        let gauge = if matches!(*method, Method::GET | Method::HEAD) { &self.reading } else { &self.writing };
        gauge.up();
        InFlight(gauge)
    }

    /// Counts a request that was answered.
    pub(crate) fn ended(&self, route: &Route, code: u16, took: Duration) {
        self.series(&route.key()).ended(code, took);
    }

    /// Counts a watch from its first event until the guard is dropped.
    pub(crate) fn watching(&self, route: &Route) -> Watching {
        let series = self.series(&route.key());
        series.running.up();
        Watching { series, began: Instant::now() }
    }
}

pub(crate) struct InFlight<'a>(&'a Gauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.down();
    }
}

/// A watch that goes on.
pub(crate) struct Watching {
    series: Arc<Series>,
    began: Instant,
}

impl Watching {
    pub(crate) fn sent(&self) {
        self.series.events.add(1);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.series.running.down();
        self.series.ended(200, self.began.elapsed());
    }
}

/// The page as it is now.
pub(crate) fn answer(core: &Core) -> Reply {
    let mut page = Page::default();
    let routes = core.metrics.all();
    requests(&mut page, core, &routes);
    watches(&mut page, &routes);
    objects(&mut page, core);
    store(&mut page, core);
    if let Some(audit) = &core.audit {
        page.family("apiserver_audit_event_total", "counter", "Events that were written to the audit log.");
        page.sample(&[], audit.written());
        page.family("insula_audit_lost_total", "counter", "Events that the audit log had no room for.");
        page.sample(&[], audit.lost());
    }
    process::write(&mut page);
    Reply::new(200, text::CONTENT_TYPE, Bytes::from(page.finish()))
}

fn requests(page: &mut Page, core: &Core, routes: &[(Key, Arc<Series>)]) {
    page.family(
        "apiserver_current_inflight_requests",
        "gauge",
        "Requests that are being answered, by whether they may change something. Watches are not among them.",
    );
    page.sample(&[("request_kind", "mutating")], core.metrics.writing.get());
    page.sample(&[("request_kind", "readOnly")], core.metrics.reading.get());
    page.family("apiserver_request_total", "counter", "Requests that were answered, by what they were and their code.");
    for (key, series) in routes {
        for (code, count) in series.codes() {
            let code = code.to_string();
            let labels: Vec<_> = [("code", code.as_str())].into_iter().chain(key.labels()).collect();
            page.sample(&labels, count);
        }
    }
    page.family(
        "apiserver_request_duration_seconds",
        "histogram",
        "From a request until the head of its answer, of a watch until its end, in seconds.",
    );
    for (key, series) in routes {
        page.histogram(&key.labels(), &series.took);
    }
}

fn watches(page: &mut Page, routes: &[(Key, Arc<Series>)]) {
    let watches = || routes.iter().filter(|(key, _)| key.verb == "WATCH");
    page.family("apiserver_longrunning_requests", "gauge", "Watches that go on, by what is watched.");
    for (key, series) in watches() {
        let labels: Vec<_> = key.labels().into_iter().filter(|(name, _)| *name != "dry_run").collect();
        page.sample(&labels, series.running.get());
    }
    page.family("apiserver_watch_events_total", "counter", "Events that watchers were sent, by what is watched.");
    let mut events: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    for (key, series) in watches() {
        *events.entry((&key.group, &key.resource, &key.version)).or_default() += series.events.get();
    }
    for ((group, resource, version), count) in events {
        page.sample(&[("group", group), ("resource", resource), ("version", version)], count);
    }
}

fn objects(page: &mut Page, core: &Core) {
    let counts = core.store.counts();
    page.family("apiserver_storage_objects", "gauge", "Objects that are stored, by resource and group in one name.");
    for ((group, resource), count) in &counts {
        let full = if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") };
        page.sample(&[("resource", &full)], count);
    }
    page.family("apiserver_resource_objects", "gauge", "Objects that are stored, by group and resource.");
    for ((group, resource), count) in &counts {
        page.sample(&[("group", group), ("resource", resource)], count);
    }
}

fn store(page: &mut Page, core: &Core) {
    let stats = core.store.stats();
    page.family(
        "insula_store_write_duration_seconds",
        "histogram",
        "From a write's arrival at the store until it is durable or refused, in seconds.",
    );
    page.histogram(&[], &stats.writes);
    page.family(
        "insula_store_commit_duration_seconds",
        "histogram",
        "One transaction of the store, which may have many writes, in seconds.",
    );
    page.histogram(&[], &stats.commits);
    page.family("insula_store_written_total", "counter", "Writes that became durable.");
    page.sample(&[], stats.written.get());
    page.family("insula_store_failures_total", "counter", "Transactions that failed, for want of room for example.");
    page.sample(&[], stats.failures.get());
    page.family("insula_store_revision", "gauge", "The newest revision.");
    page.sample(&[], core.store.revision());
    page.family("insula_store_compacted_revision", "gauge", "The revision through which history is forgotten.");
    page.sample(&[], core.store.compacted());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_resources_come_and_go_the_page_does_not_grow_without_end() {
        let metrics = Metrics::default();
        for n in 0..2 * MOST_ROUTES {
            let resource = format!("things{n}");
            let key = KeyRef {
                group: "example.com",
                version: "v1",
                resource: &resource,
                verb: "GET",
                scope: "resource",
                subresource: "",
                dry_run: "",
            };
            for _ in 0..2 {
                metrics.series(&key).ended(200, Duration::from_millis(1));
            }
        }
        let routes = metrics.routes.read().unwrap();
        assert_eq!(routes.len(), MOST_ROUTES + 1);
        let counted = |key: &Key| routes[key].codes().map(|(_, count)| count).sum::<u64>();
        assert_eq!(counted(&Key::beyond()), 2 * MOST_ROUTES as u64);
        assert_eq!(counted(routes.keys().next().unwrap()), 2);
    }
}
