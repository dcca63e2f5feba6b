//! What can be done with objects, in the order and the words of upstream's generic registry. Nothing here knows HTTP
//! beyond a request's options; the in-process loops call the same functions.

pub(crate) mod admit;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod meta;
pub(crate) mod patch;
pub(crate) mod read;
pub(crate) mod scale;
pub(crate) mod update;
pub(crate) mod watch;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::access::User;
use crate::audit::Annotations;
use crate::core::Core;
use crate::http::options;
use crate::kinds::convert;
use crate::object::status::Problem;
use crate::registry::Resource;
use crate::store::{Entry, WriteError};

/// A request on one resource, by one user.
pub(crate) struct Call {
    pub(crate) core: Arc<Core>,
    pub(crate) resource: Arc<Resource>,
    pub(crate) user: User,
    /// Empty for the whole cluster, and for what is not namespaced.
    pub(crate) namespace: String,
    /// Empty for a collection.
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// Sent back as `Warning` headers.
    pub(crate) warnings: Vec<String>,
    /// Told in the audit log.
    pub(crate) annotations: Annotations,
}

/// An object to answer with, in the form in which it is kept.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Stored(Arc<Entry>),
    /// Never stored: a dry run's, a deleted object's, a subresource's.
    Made(Value),
}

impl Object {
    /// The object in the version that the resource serves.
    pub(crate) fn served(&self, resource: &Resource) -> Value {
        match self {
            Self::Stored(entry) => convert::show(resource, entry),
            Self::Made(value) => convert::serve(resource, value.clone()),
        }
    }
}

/// What a write did.
pub(crate) struct Written {
    pub(crate) object: Object,
    pub(crate) created: bool,
}

impl Call {
    pub(crate) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    pub(crate) fn not_found(&self, name: &str) -> Problem {
        Problem::not_found(self.resource.what(), name)
    }

    /// Updater and applier names of managed fields.
    pub(crate) fn served_api_version(&self) -> String {
        self.resource.api_version()
    }
}

/// A failed write as an answer.
pub(crate) fn refused(error: &WriteError, resource: &Resource, name: &str) -> Problem {
    match error {
        WriteError::Conflict { .. } => Problem::modified(resource.what(), name),
        WriteError::Exists { .. } => Problem::already_exists(resource.what(), name),
        WriteError::Absent => Problem::not_found(resource.what(), name),
        // What etcd says of what does not fit; kubectl prints it as it is.
        WriteError::TooLarge { size } => {
            Problem::too_large(&format!("limit is {}, the object has {size} bytes", crate::store::MAX_OBJECT))
        }
        WriteError::NotAnObject => Problem::bad_request("an object with metadata and a name is needed"),
        WriteError::Full => Problem::unavailable(
            "the disk of the API server is full: reads go on, writes are refused until there is room",
        ),
        WriteError::Failed(_) | WriteError::Stopped => {
            tracing::error!(error = kit::chain(error), "a write failed");
            Problem::internal(&kit::chain(error))
        }
    }
}

/// The object with `apiVersion`, `kind` and `metadata` in front, the way every stored object begins.
pub(crate) fn in_order(mut object: Map<String, Value>, api_version: &str, kind: &str) -> Value {
    let mut ordered = Map::with_capacity(object.len() + 2);
    ordered.insert("apiVersion".into(), json!(api_version));
    ordered.insert("kind".into(), json!(kind));
    object.shift_remove("apiVersion");
    object.shift_remove("kind");
    ordered.insert("metadata".into(), object.shift_remove("metadata").unwrap_or_else(|| json!({})));
    ordered.extend(object);
    Value::Object(ordered)
}

pub(crate) use options::{
    Delete as DeleteOptions, FieldValidation, List as ListOptions, Propagation, Write as WriteOptions,
};
