//! Which item of a list an item was before the update.

use std::collections::HashMap;

use serde_json::Value;

use super::{List, Node};
use crate::object::field;

/// Shorter lists are searched as they are.
const SHORT: usize = 8;

/// A list map as it was, by the keys of its items.
pub(super) struct Before<'a> {
    keys: &'a [Box<str>],
    items: &'a [Value],
    /// Of a list that is not short.
    index: HashMap<String, &'a Value>,
}

impl<'a> Before<'a> {
    /// `None` when it was no list, or items of such lists are not told from each other by keys.
    pub(super) fn of(node: &'a Node, old: Option<&'a Value>) -> Option<Self> {
        let List::Map(keys) = &node.list else { return None };
        let items = old?.as_array()?;
        let mut index = HashMap::new();
        if items.len() > SHORT {
            for item in items {
                index.entry(identity(keys, item)).or_insert(item);
            }
        }
        Some(Self { keys, items, index })
    }

    pub(super) fn item(&self, item: &Value) -> Option<&'a Value> {
        if self.items.len() > SHORT {
            return self.index.get(&identity(self.keys, item)).copied();
        }
        self.items.iter().find(|was| self.keys.iter().all(|key| was.get(&**key) == item.get(&**key)))
    }
}

/// The values of an item's keys.
fn identity(keys: &[Box<str>], item: &Value) -> String {
    let values = keys.iter().map(|key| item.get(&**key).map_or_else(String::new, field::json));
    values.collect::<Vec<_>>().join(",")
}
