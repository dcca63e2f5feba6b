use std::sync::Arc;
use std::time::Duration;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine};
use serde_json::{Value, json};

use super::{Call, ListOptions, Object};
use crate::http::Match;
use crate::kinds::{convert, fields};
use crate::object::selector::{Fields, Labels};
use crate::object::status::{Problem, StatusCause};
use crate::registry::Resource;
use crate::store::{Entry, Key, Listed};

/// How long a list waits for a revision that has not been reached yet.
const WAIT: Duration = Duration::from_secs(3);
/// Objects that are filtered in one go.
const PAGE: usize = 1_000;

/// Which objects of a resource are meant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: Labels,
    fields: Fields,
}

impl Selection {
    pub(crate) fn of(resource: &Resource, labels: &str, wanted: &str) -> Result<Self, Problem> {
        let labels = Labels::parse(labels).map_err(|why| {
            Problem::bad_request(
                format!("unable to parse requirement: {why}")
                    .replace("unable to parse requirement: unable to parse requirement", "unable to parse requirement"),
            )
        })?;
        let selected = Fields::parse(wanted).map_err(Problem::bad_request)?;
        for requirement in selected.requirements() {
            fields::check(resource, &requirement.field)?;
        }
        Ok(Self { labels, fields: selected })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that matches, when only one can.
    pub(crate) fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }

    pub(crate) fn matches(&self, resource: &Resource, entry: &Entry) -> bool {
        if !self.labels.is_empty() {
            let labels = entry.labels();
            if !self.labels.matches(|key| labels.get(key).map(String::as_str)) {
                return false;
            }
        }
        if self.fields.is_empty() {
            return true;
        }
        // Names and namespaces are known without parsing.
        let mut parsed: Option<Value> = None;
        let parsed = std::cell::RefCell::new(&mut parsed);
        self.fields.matches(|field| match field {
            "metadata.name" => Some(entry.key.name.to_string()),
            "metadata.namespace" => Some(entry.key.namespace.to_string()),
            field => {
                let mut parsed = parsed.borrow_mut();
                let object = parsed.get_or_insert_with(|| convert::show(resource, entry));
                Some(fields::value(resource, object, field))
            }
        })
    }
}

/// `GET` of one object. Everything is answered from memory at the newest revision, so any `resourceVersion` that has
/// been reached is satisfied.
pub(crate) async fn get(call: &Call, revision: Option<u64>) -> Result<Object, Problem> {
    if let Some(revision) = revision {
        reached(call, revision).await?;
    }
    let key = call.resource.key(&call.namespace, &call.name);
    call.core.store.get(&key).map(Object::Stored).ok_or_else(|| call.not_found(&call.name))
}

/// A consistent answer to a list.
pub(crate) struct Page {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) rev: u64,
    pub(crate) token: Option<String>,
    /// Known only where nothing was filtered.
    pub(crate) remaining: Option<usize>,
}

pub(crate) async fn list(call: &Call, options: &ListOptions) -> Result<Page, Problem> {
    let resource = &call.resource;
    let selection = Selection::of(resource, &options.labels, &options.fields)?;
    let namespace = (resource.namespaced && !call.namespace.is_empty()).then_some(call.namespace.as_str());
    let mut after = None;
    let mut exact = None;
    match &options.token {
        Some(token) => {
            let (rev, key) = parse_token(resource, namespace, token)?;
            after = Some(key);
            exact = rev;
        }
        None => {
            if let Some(revision) = options.revision.filter(|it| *it > 0) {
                // Without a match, a limit has always meant exactly this revision.
                let implied = if options.limit.is_some() { Match::Exact } else { Match::NotOlderThan };
                let matching = options.matching.unwrap_or(implied);
                reached(call, revision).await?;
                exact = (matching == Match::Exact).then_some(revision);
            }
        }
    }
    let store = &call.core.store;
    if let (Some(name), None, Some(namespace)) =
        (selection.name(), exact, namespace.or_else(|| (!resource.namespaced).then_some("")))
    {
        let rev = store.revision();
        let found = store.get(&resource.key(namespace, name)).filter(|entry| selection.matches(resource, entry));
        return Ok(Page { entries: found.into_iter().collect(), rev, token: None, remaining: None });
    }
    if selection.is_everything() || options.limit.is_none() {
        let limit = options.limit.filter(|_| selection.is_everything());
        let listed = state(call, options, after.as_ref(), limit, exact).await?;
        let mut entries = listed.entries;
        entries.retain(|entry| selection.is_everything() || selection.matches(resource, entry));
        let more = listed.remaining > 0;
        let token = more.then(|| entries.last().map(|last| make_token(namespace, listed.rev, &last.key))).flatten();
        return Ok(Page { entries, rev: listed.rev, token, remaining: more.then_some(listed.remaining) });
    }
    let limit = options.limit.unwrap_or(usize::MAX);
    let mut entries: Vec<Arc<Entry>> = Vec::new();
    loop {
        let listed = state(call, options, after.as_ref(), Some(PAGE.max(limit)), exact).await?;
        exact = Some(listed.rev);
        let (rev, more) = (listed.rev, listed.remaining > 0);
        after = listed.entries.last().map(|last| last.key.clone()).or(after);
        let mut taken = listed.entries.into_iter().filter(|entry| selection.matches(resource, entry)).peekable();
        while entries.len() < limit && taken.peek().is_some() {
            entries.extend(taken.next());
        }
        if taken.peek().is_some() || (more && entries.len() == limit) {
            let token = entries.last().map(|last| make_token(namespace, rev, &last.key));
            return Ok(Page { entries, rev, token, remaining: None });
        }
        if !more {
            return Ok(Page { entries, rev, token: None, remaining: None });
        }
    }
}

/// The collection as it is, or as it was at a revision.
async fn state(
    call: &Call,
    options: &ListOptions,
    after: Option<&Key>,
    limit: Option<usize>,
    rev: Option<u64>,
) -> Result<Listed, Problem> {
    let (store, resource) = (&call.core.store, &call.resource);
    let (group, plural) = (resource.stored_group.as_str(), resource.plural.as_str());
    let namespace = (resource.namespaced && !call.namespace.is_empty()).then_some(call.namespace.as_str());
    match rev {
        None => Ok(store.list(group, plural, namespace, after, limit)),
        Some(rev) => {
            let listed = store.list_at(rev, group, plural, namespace, after, limit).await;
            listed.map_err(|_| too_old(options.token.is_some()))
        }
    }
}

/// Waits until the store has reached a revision that a client knows of.
pub(crate) async fn reached(call: &Call, revision: u64) -> Result<(), Problem> {
    let store = &call.core.store;
    if store.revision() >= revision {
        return Ok(());
    }
    if tokio::time::timeout(WAIT, store.reached(revision)).await.is_ok() {
        return Ok(());
    }
    let mut problem =
        Problem::timeout(&format!("Too large resource version: {revision}, current: {}", store.revision()), 1);
    if let Some(details) = &mut problem.details {
        details.causes.push(StatusCause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
    }
    Err(problem)
}

fn too_old(paging: bool) -> Problem {
    Problem::expired(if paging {
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter."
    } else {
        "The resourceVersion for the provided list is too old."
    })
}

/// The token of upstream: the revision of the first page, and after which key of the list the next begins.
fn make_token(namespace: Option<&str>, rev: u64, last: &Key) -> String {
    let start = match namespace {
        None if !last.namespace.is_empty() => format!("/{}/{}\0", last.namespace, last.name),
        _ => format!("/{}\0", last.name),
    };
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": rev, "start": start}).to_string())
}

/// In the words of upstream's `storage.DecodeContinue`.
fn parse_token(resource: &Resource, namespace: Option<&str>, token: &str) -> Result<(Option<u64>, Key), Problem> {
    let invalid =
        |why: String| Problem::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(length) => length - length % 4,
            DecodeError::InvalidPadding => token.len(),
        };
        invalid(format!("illegal base64 data at input byte {at}"))
    })?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
        let first = bytes.iter().find(|it| !it.is_ascii_whitespace());
        invalid(match first {
            Some(first) if !matches!(first, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                let shown = match first {
                    0x80..=0x9f => format!("\\u00{first:02x}"),
                    first => char::from(*first).escape_default().to_string(),
                };
                format!("invalid character '{shown}' looking for beginning of value")
            }
            _ if error.is_eof() => "unexpected end of JSON input".to_owned(),
            _ => error.to_string(),
        })
    })?;
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let version = text("v");
    if version != "meta.k8s.io/v1" {
        return Err(invalid(format!("server does not recognize this encoded version {version}")));
    }
    let rev = value.get("rv").and_then(Value::as_i64).unwrap_or_default();
    if rev == 0 {
        return Err(invalid(format!("incorrect encoded start resourceVersion (version {version})")));
    }
    let start = text("start");
    if start.is_empty() {
        return Err(invalid(format!("encoded start key empty (version {version})")));
    }
    let path = start.trim_end_matches('\0').trim_start_matches('/');
    let place = match namespace {
        None if resource.namespaced => path.split_once('/'),
        within => Some((within.unwrap_or_default(), path)),
    };
    let (namespace, name) = place.ok_or_else(|| invalid(start.to_owned()))?;
    Ok((u64::try_from(rev).ok(), resource.key(namespace, name)))
}
