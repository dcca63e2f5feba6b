use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;

use super::WriteError;

/// The largest object that is stored, in bytes of JSON.
pub(crate) const MAX_OBJECT: usize = 3 << 20;

/// Where an object lives. Ordered by group, resource, namespace, name: the order in which lists are answered.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// API group, empty for the core group.
    pub(crate) group: Arc<str>,
    /// Plural resource name.
    pub(crate) resource: Arc<str>,
    /// Empty for what is not namespaced.
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Key {
    pub(crate) fn new(
        group: impl Into<Arc<str>>,
        resource: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
    ) -> Self {
        Self { group: group.into(), resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }

    /// The text under which the log files the key. No part may hold a slash, so it can be taken apart again.
    pub(super) fn path(&self) -> String {
        format!("{}/{}/{}/{}", self.group, self.resource, self.namespace, self.name)
    }

    pub(super) fn from_path(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let key = Self::new(parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        (parts.next().is_none() && key.is_storable()).then_some(key)
    }

    pub(super) fn is_storable(&self) -> bool {
        let all = [&self.group, &self.resource, &self.namespace, &self.name];
        !self.resource.is_empty() && !self.name.is_empty() && all.iter().all(|part| !part.contains(['/', '\0']))
    }

    pub(super) fn place(&self) -> Place {
        Place { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// A key within its resource.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

pub(crate) type Labels = BTreeMap<String, String>;

/// One object as it was at one revision. Never changes; shared by everyone who reads it.
pub(crate) struct Entry {
    pub(crate) key: Key,
    /// The revision that wrote it.
    pub(crate) rev: u64,
    /// The whole object, `metadata.resourceVersion` included: what an answer's body carries.
    pub(crate) json: Bytes,
    labels: OnceLock<Labels>,
}

impl Entry {
    pub(super) fn new(key: Key, rev: u64, json: Bytes, labels: Option<Labels>) -> Self {
        Self { key, rev, json, labels: labels.map_or_else(OnceLock::new, OnceLock::from) }
    }

    /// The object, parsed at each call. For an answer's body take [`Entry::json`].
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_else(|error| {
            tracing::error!(key = ?self.key, rev = self.rev, %error, "a stored object is not JSON");
            Value::Null
        })
    }

    /// The object's labels, parsed once.
    pub(crate) fn labels(&self) -> &Labels {
        #[derive(serde::Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        #[derive(serde::Deserialize)]
        struct Metadata {
            #[serde(default)]
            labels: Option<Labels>,
        }
        self.labels.get_or_init(|| {
            serde_json::from_slice::<Object>(&self.json).ok().and_then(|it| it.metadata.labels).unwrap_or_default()
        })
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{}", self.key, self.rev)
    }
}

/// An object on its way in: everything but its revision, which only the commit knows.
pub(super) struct Draft {
    text: Vec<u8>,
    /// Where in `text` the digits of the revision go.
    hole: usize,
    labels: Labels,
}

impl Draft {
    pub(super) fn new(object: &Value) -> Result<Self, WriteError> {
        let fields = object.as_object().ok_or(WriteError::NotAnObject)?;
        let metadata = fields.get("metadata").and_then(Value::as_object).ok_or(WriteError::NotAnObject)?;
        let mut draft = Self { text: Vec::with_capacity(1024), hole: 0, labels: labels_of(metadata) };
        draft.text.push(b'{');
        for (name, value) in fields {
            draft.name(name)?;
            if name == "metadata" {
                draft.metadata(metadata)?;
            } else {
                draft.write(value)?;
            }
        }
        draft.text.push(b'}');
        if draft.text.len() > MAX_OBJECT {
            return Err(WriteError::TooLarge { size: draft.text.len() });
        }
        Ok(draft)
    }

    /// In the order given; the revision stays where it was, or goes last.
    fn metadata(&mut self, fields: &serde_json::Map<String, Value>) -> Result<(), WriteError> {
        self.text.push(b'{');
        for (name, value) in fields {
            self.name(name)?;
            if name == "resourceVersion" {
                self.revision();
            } else {
                self.write(value)?;
            }
        }
        if self.hole == 0 {
            self.name("resourceVersion")?;
            self.revision();
        }
        self.text.push(b'}');
        Ok(())
    }

    fn name(&mut self, name: &str) -> Result<(), WriteError> {
        if self.text.last() != Some(&b'{') {
            self.text.push(b',');
        }
        self.write(name)?;
        self.text.push(b':');
        Ok(())
    }

    fn revision(&mut self) {
        self.text.extend_from_slice(b"\"\"");
        self.hole = self.text.len() - 1;
    }

    fn write(&mut self, value: &(impl serde::Serialize + ?Sized)) -> Result<(), WriteError> {
        serde_json::to_writer(&mut self.text, value).map_err(|_| WriteError::NotAnObject)
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// The entry that this becomes at a revision.
    pub(super) fn at(&self, key: Key, rev: u64) -> Entry {
        let digits = rev.to_string();
        let (head, tail) = self.text.split_at(self.hole);
        let json = [head, digits.as_bytes(), tail].concat();
        Entry::new(key, rev, json.into(), Some(self.labels.clone()))
    }
}

fn labels_of(metadata: &serde_json::Map<String, Value>) -> Labels {
    let labels = metadata.get("labels").and_then(Value::as_object);
    let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    labels.into_iter().flatten().filter_map(text).collect()
}
