//! Objects as tables and as metadata alone, for clients that ask for them.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::put;
use crate::kinds::convert;
use crate::registry::Resource;
use crate::store::Entry;

/// Which part of an object a table's row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// From the query parameter `includeObject`.
    pub(crate) fn of(text: Option<&str>) -> Result<Self, String> {
        match text {
            None | Some("Metadata") => Ok(Self::Metadata),
            Some("None") => Ok(Self::None),
            Some("Object") => Ok(Self::Object),
            Some(other) => Err(format!("unrecognized includeObject value: {other:?}")),
        }
    }
}

/// `PartialObjectMetadata`.
pub(crate) fn metadata(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// `PartialObjectMetadataList`.
pub(crate) fn metadata_list(resource: &Resource, entries: &[Arc<Entry>], list_meta: Value, version: &str) -> Value {
    let items: Vec<Value> = entries.iter().map(|entry| metadata(&convert::show(resource, entry), version)).collect();
    json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_meta,
        "items": items,
    })
}

/// A table of these objects.
pub(crate) fn table<'a>(
    resource: &Resource,
    objects: impl Iterator<Item = Value> + 'a,
    list_meta: Value,
    version: &str,
    include: Include,
    now: Timestamp,
) -> Value {
    let printer = resource.printer();
    let rows: Vec<Value> = objects
        .map(|object| {
            let cells = printer.cells(&object, now);
            match include {
                Include::None => json!({"cells": cells, "object": null}),
                Include::Metadata => json!({"cells": cells, "object": metadata(&object, version)}),
                Include::Object => json!({"cells": cells, "object": object}),
            }
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_meta,
        "columnDefinitions": printer.columns(),
        "rows": rows,
    })
}

/// The table of one event of a watch; only the first names the columns.
pub(crate) fn table_of_one(resource: &Resource, object: &Value, version: &str, columns: bool, now: Timestamp) -> Value {
    let revision = object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    let objects = std::iter::once(object.clone());
    let mut table = table(resource, objects, json!({"resourceVersion": revision}), version, Include::Metadata, now);
    if !columns {
        put(&mut table, "columnDefinitions", Value::Null);
    }
    table
}
