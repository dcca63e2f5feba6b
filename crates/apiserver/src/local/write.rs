use std::sync::Arc;

use serde_json::{Value, json};

use super::reader::Kind;
use super::workload::MANAGER;
use super::{World, call, is_stale, options};
use crate::object::status::{Problem, What};
use crate::store::{Entry, Key};
use crate::verbs::{DeleteOptions, admit, create, delete, meta, update};

impl World {
    /// `PUT`s what `change` makes of the object, if that still is as it was read: a conflict otherwise.
    pub(super) async fn update<T: Kind>(
        &self,
        object: &T,
        subresource: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), Problem> {
        let current = self.unchanged(object)?;
        self.replace(&current, subresource, change).await
    }

    /// The object as it is stored, if that still is as it was read: a conflict otherwise.
    pub(super) fn unchanged<T: Kind>(&self, object: &T) -> Result<Arc<Entry>, Problem> {
        let key = object.key();
        let what = What::new(&key.group, &key.resource);
        let current = self.core.store.get(&key).ok_or_else(|| Problem::not_found(what, &key.name))?;
        if object.metadata().resource_version.as_deref() != Some(current.rev.to_string().as_str()) {
            return Err(Problem::modified(what, &key.name));
        }
        Ok(current)
    }

    /// `PUT`s what `change` makes of the object, if that still is as `entry` says: a conflict otherwise.
    pub(super) async fn replace(
        &self,
        entry: &Entry,
        subresource: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), Problem> {
        let Some(mut call) = call(&self.core, &entry.key) else { return Ok(()) };
        call.subresource = subresource.to_owned();
        let mut value = entry.value();
        change(&mut value);
        admit::default(&call.resource, &mut value);
        update::update(&mut call, value, &options(MANAGER)).await.map(drop)
    }

    /// `POST`s an object of the kind of `key`.
    pub(super) async fn make(&self, key: &Key, mut object: Value) -> Result<(), Problem> {
        let Some(mut call) = call(&self.core, key) else { return Ok(()) };
        call.name.clear();
        admit::default(&call.resource, &mut object);
        create::create(&mut call, object, &options(MANAGER)).await.map(drop)
    }

    /// Deletes an object, if it still is the one that `entry` says. What is gone already is as good.
    pub(super) async fn discard(&self, entry: &Arc<Entry>) -> Result<(), Problem> {
        let object = entry.value();
        self.delete_one(&entry.key, meta::uid(&object)).await.map(drop)
    }

    /// Deletes what has this name, if it has this uid. False when it was gone.
    pub(super) async fn delete_one(&self, key: &Key, uid: &str) -> Result<bool, Problem> {
        let Some(mut call) = call(&self.core, key) else { return Ok(false) };
        let options = DeleteOptions { uid: Some(uid.to_owned()), ..DeleteOptions::default() };
        match delete::delete(&mut call, &options).await {
            Ok(_) => Ok(true),
            // It is gone, or another one has its name.
            Err(problem) if is_stale(&problem) => Ok(false),
            Err(problem) => Err(problem),
        }
    }
}

/// Sets a field, making what leads to it; `null` removes it.
pub(super) fn set(object: &mut Value, path: &[&str], value: Value) {
    let Some((last, parents)) = path.split_last() else { return };
    let mut at = object;
    for part in parents {
        at = meta::map(at).entry(*part).or_insert_with(|| json!({}));
    }
    match value {
        Value::Null => drop(meta::map(at).shift_remove(*last)),
        value => drop(meta::map(at).insert((*last).to_owned(), value)),
    }
}
