//! Requests on resources: from the parsed URL and the body to a verb, and from what it did to an answer.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use http::HeaderMap;
use serde_json::{Value, json};

use super::body::{Body, Items};
use super::json::put;
use super::media::{self, Accept, Shape};
use super::present::{self, Include};
use super::reply::{JSON, Reply};
use super::service::Seen;
use super::url::{Query, Target};
use crate::access::User;
use crate::core::Core;
use crate::kinds::{components, convert, strategy, subresources};
use crate::metrics::Route;
use crate::object::status::Problem;
use crate::reviews;
use crate::store::Entry;
use crate::verbs::patch::Language;
use crate::verbs::{
    Call, DeleteOptions, ListOptions, Object, WriteOptions, Written, admit, create, delete, patch, read, scale, update,
    watch,
};

/// A request whose body has been read.
pub(crate) struct Asked<'a> {
    pub(crate) target: Target,
    pub(crate) query: Query<'a>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) user: User,
}

impl Asked<'_> {
    pub(crate) fn user_agent(&self) -> &str {
        self.headers.get(http::header::USER_AGENT).and_then(|it| it.to_str().ok()).unwrap_or_default()
    }

    pub(crate) fn media_type(&self) -> &str {
        media::content_type(self.headers)
    }
}

/// Answers a request on a resource. Warnings, and what the request is counted as, are left in `seen`, whatever becomes of it.
pub(crate) async fn answer(core: &Arc<Core>, asked: Asked<'_>, seen: &mut Seen) -> Result<Reply, Problem> {
    let Target { group, version, resource, verb, .. } = &asked.target;
    let mut resources = core.registry.now();
    if resources.find(group, version, resource).is_none() {
        resources = core.fresh();
    }
    if !resources.groups.contains_key(group) {
        return Ok(Reply::nothing_here());
    }
    let Some(resource) = resources.find(group, version, resource).cloned() else {
        // What serves definitions knows no versions but theirs.
        let unknown = resources.version(group, version).is_none() && resources.is_of_definitions(group);
        return if unknown { Ok(Reply::nothing_here()) } else { Err(Problem::no_such_path()) };
    };
    drop(resources);
    let route = seen.route.insert(Route::of(&resource, &asked.target, asked.query, asked.headers)).clone();
    let everywhere = resource.namespaced && asked.target.namespace.is_empty();
    if everywhere && resource.review {
        return Err(Problem::no_such_path());
    }
    if everywhere && !matches!(*verb, "list" | "watch") {
        return Err(if asked.target.name.is_empty() { Problem::not_allowed() } else { Problem::no_such_path() });
    }
    if !resource.namespaced && !asked.target.namespace.is_empty() && !resource.is("", "namespaces") {
        return Err(Problem::no_such_path());
    }
    let collection = asked.target.name.is_empty();
    if asked.target.subresource.is_empty()
        && match *verb {
            "create" => !collection,
            "update" | "patch" => collection,
            "deletecollection" => resource.is("", "namespaces"),
            verb => verb.is_empty(),
        }
    {
        return Err(Problem::not_allowed());
    }
    let namespace = if resource.namespaced { asked.target.namespace.clone() } else { String::new() };
    let mut call = Call {
        core: core.clone(),
        resource,
        user: asked.user.clone(),
        namespace,
        name: asked.target.name.clone(),
        subresource: asked.target.subresource.clone(),
        warnings: Vec::new(),
        annotations: Default::default(),
    };
    if let crate::registry::Model::Custom(custom) = &call.resource.model
        && let Some(deprecated) = custom.deprecated.clone()
    {
        call.warn(deprecated);
    }
    let done = Box::pin(dispatch(&mut call, &asked, &route)).await;
    seen.warnings.append(&mut call.warnings);
    seen.annotate(call.annotations);
    done
}

async fn dispatch(call: &mut Call, asked: &Asked<'_>, route: &Route) -> Result<Reply, Problem> {
    let no_table = call.resource.review && call.resource.kind != "ComponentStatus";
    let accept = if no_table { Accept::without_tables(asked.headers)? } else { Accept::of(asked.headers)? };
    if call.resource.review {
        return match (call.resource.kind.as_str(), asked.target.verb) {
            _ if !call.subresource.is_empty() => Err(Problem::no_such_path()),
            ("ComponentStatus", _) => components::answer(call, asked, &accept),
            _ if !call.name.is_empty() => Err(Problem::no_such_path()),
            ("Binding", "create") => subresources::bind_named(call, asked, &accept).await,
            (_, "create") => reviews::answer(call, asked, &accept).await,
            _ => Err(Problem::not_allowed()),
        };
    }
    let whole = match call.subresource.as_str() {
        "" => true,
        "status" => call.resource.status,
        "ephemeralcontainers" => call.resource.is("", "pods") && !call.resource.is_custom(),
        "approval" => strategy::is_request(&call.resource),
        _ => false,
    };
    match (call.subresource.as_str(), asked.target.verb) {
        ("", "create") if call.name.is_empty() => post(call, asked, &accept).await,
        (_, "get") if whole => {
            let revision = ListOptions::of(asked.query, false)?.revision;
            let object = read::get(call, revision).await?;
            one(call, asked, &accept, 200, &object)
        }
        ("", "list") => {
            let options = ListOptions::of(asked.query, false)?;
            let page = read::list(call, &options).await?;
            let mut meta = json!({"resourceVersion": page.rev.to_string()});
            if let Some(token) = page.token {
                put(&mut meta, "continue", json!(token));
                if let Some(remaining) = page.remaining {
                    put(&mut meta, "remainingItemCount", json!(remaining));
                }
            }
            many(call, asked, &accept, meta, page.entries)
        }
        ("", "watch") => {
            let options = ListOptions::of(asked.query, true)?;
            let stream = watch::watch(call, &options, &accept).await?;
            let watching = call.core.metrics.watching(route);
            Ok(Reply::new(200, JSON, Body::Stream(stream.inspect(move |_| watching.sent()).boxed())))
        }
        (_, "update") if whole => {
            let options = WriteOptions::of(asked.query, asked.user_agent(), "UpdateOptions", false)?;
            let object = admit::decode(call, &asked.body, asked.media_type(), options.validation)?;
            let written = update::update(call, object, &options).await?;
            written_reply(call, asked, &accept, &written)
        }
        (_, "patch") if whole => {
            let language = Language::of(asked.media_type(), call.resource.is_custom())?;
            let options =
                WriteOptions::of(asked.query, asked.user_agent(), "PatchOptions", language == Language::Apply)?;
            let written = patch::patch(call, language, &asked.body, &options).await?;
            written_reply(call, asked, &accept, &written)
        }
        ("", "delete") => {
            let options = delete_options(asked)?;
            let deleted = delete::delete(call, &options).await?;
            let object = deleted.object.served(&call.resource);
            let status = if !deleted.gone && options.orphan == Some(false) { 202 } else { 200 };
            if deleted.gone && !crate::kinds::strategy::answers_with_the_deleted(&call.resource) {
                return Ok(Reply::json(status, &delete::success(call, &object)));
            }
            one(call, asked, &accept, status, &deleted.object)
        }
        ("", "deletecollection") => {
            let options = delete_options(asked)?;
            let list = ListOptions::of(asked.query, false)?;
            let (rev, entries) = delete::delete_collection(call, &list, &options).await?;
            many(call, asked, &accept, json!({"resourceVersion": rev.to_string()}), entries)
        }
        ("scale", verb @ ("get" | "update" | "patch")) if call.resource.scale.is_some() => {
            let value = scale::answer(call, verb, asked).await?;
            let shown = match accept.shape {
                Shape::Plain | Shape::Table { .. } => value,
                Shape::Metadata { version } => present::metadata(&value, version),
            };
            encoded(&accept, 200, &shown)
        }
        ("", _) => Err(Problem::not_allowed()),
        _ => subresources::answer(call, asked, &accept).await,
    }
}

fn delete_options(asked: &Asked<'_>) -> Result<DeleteOptions, Problem> {
    if asked.body.is_empty() {
        return DeleteOptions::of(asked.query, None);
    }
    let decoded = match media::decode(&asked.body, asked.media_type()) {
        Ok(decoded) => decoded.value,
        Err(media::Undecodable::Unknown(problem)) => return Err(problem),
        Err(media::Undecodable::Syntax(why)) => return Err(Problem::bad_request(why)),
    };
    DeleteOptions::of(asked.query, Some(&decoded))
}

async fn post(call: &mut Call, asked: &Asked<'_>, accept: &Accept) -> Result<Reply, Problem> {
    let options = WriteOptions::of(asked.query, asked.user_agent(), "CreateOptions", false)?;
    let object = admit::decode(call, &asked.body, asked.media_type(), options.validation)?;
    let written = create::create(call, object, &options).await?;
    written_reply(call, asked, accept, &written)
}

pub(crate) fn written_reply(
    call: &Call,
    asked: &Asked<'_>,
    accept: &Accept,
    written: &Written,
) -> Result<Reply, Problem> {
    one(call, asked, accept, if written.created { 201 } else { 200 }, &written.object)
}

/// One object in the shape that was asked for.
pub(crate) fn one(
    call: &Call,
    asked: &Asked<'_>,
    accept: &Accept,
    status: u16,
    object: &Object,
) -> Result<Reply, Problem> {
    let resource = &call.resource;
    let value = match (&accept.shape, object) {
        (Shape::Plain, Object::Stored(entry)) if !accept.yaml && resource.shows_as_kept(entry) => {
            return Ok(Reply::new(status, JSON, entry.json.clone()));
        }
        (Shape::Plain, object) => object.served(resource),
        (Shape::Metadata { version }, object) => present::metadata(&object.served(resource), version),
        (Shape::Table { version }, object) => {
            let include = include(asked)?;
            let object = object.served(resource);
            let revision = object.pointer("/metadata/resourceVersion").cloned();
            let meta = revision.map_or_else(|| json!({}), |revision| json!({"resourceVersion": revision}));
            present::table(resource, std::iter::once(object), meta, version, include, call.core.clock.now())
        }
    };
    encoded(accept, status, &value)
}

fn include(asked: &Asked<'_>) -> Result<Include, Problem> {
    Include::of(asked.query.get("includeObject").as_deref()).map_err(Problem::bad_request)
}

fn many(
    call: &Call,
    asked: &Asked<'_>,
    accept: &Accept,
    meta: Value,
    entries: Vec<Arc<Entry>>,
) -> Result<Reply, Problem> {
    let resource = &call.resource;
    let mut meta = meta;
    if resource.is_custom() && meta.get("continue").is_none() && accept.shape == Shape::Plain {
        // What unstructured lists of upstream say.
        put(&mut meta, "continue", json!(""));
    }
    let value = match accept.shape {
        Shape::Plain if !accept.yaml && entries.iter().all(|it| resource.shows_as_kept(it)) => {
            let head = format!(
                "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{meta},\"items\":[",
                json!(resource.list_kind),
                json!(resource.api_version())
            );
            // The items of a built-in list do not repeat what they are.
            let prefix = if resource.is_custom() {
                String::new()
            } else {
                format!("{{\"apiVersion\":{},\"kind\":{},", json!(resource.stored_api_version), json!(resource.kind))
            };
            let items = Items::new(head.into(), entries, prefix, Bytes::from_static(b"]}\n"));
            return Ok(Reply::new(200, JSON, Body::Items(items)));
        }
        Shape::Plain => {
            let items: Vec<Value> = entries
                .iter()
                .map(|entry| {
                    let mut item = convert::show(resource, entry);
                    if !resource.is_custom()
                        && let Some(item) = item.as_object_mut()
                    {
                        item.shift_remove("apiVersion");
                        item.shift_remove("kind");
                    }
                    item
                })
                .collect();
            json!({"kind": resource.list_kind, "apiVersion": resource.api_version(), "metadata": meta, "items": items})
        }
        Shape::Metadata { version } => present::metadata_list(resource, &entries, meta, version),
        Shape::Table { version } => {
            let objects = entries.iter().map(|entry| convert::show(resource, entry));
            present::table(resource, objects, meta, version, include(asked)?, call.core.clock.now())
        }
    };
    encoded(accept, 200, &value)
}

/// JSON, or YAML where that was asked for.
pub(crate) fn encoded(accept: &Accept, status: u16, value: &Value) -> Result<Reply, Problem> {
    if !accept.yaml {
        return Ok(Reply::json(status, value));
    }
    let text = serde_saphyr::to_string(value).map_err(|error| Problem::internal(&error.to_string()))?;
    Ok(Reply::new(status, "application/yaml", Bytes::from(text)))
}
