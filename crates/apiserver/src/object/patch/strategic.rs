//! Strategic merge patch: `k8s.io/apimachinery/pkg/util/strategicpatch` on our schema nodes.

use serde_json::{Map, Value};

use crate::object::field::plain;
use crate::object::schema::{Node, Patch, Schema};
use crate::object::status::Problem;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const ELEMENT_ORDER: &str = "$setElementOrder";

/// Longer lists are not merged: what upstream does to them takes quadratic time.
const LIST_MAX: usize = 5_000;

type Fields = Map<String, Value>;

pub(super) fn run(object: &Value, patch: &Fields, schema: &Schema) -> Result<Value, Problem> {
    let original = object.as_object().cloned().unwrap_or_default();
    merge_map(original, patch.clone(), Some(schema.root())).map(Value::Object)
}

fn bad(said: &str) -> Problem {
    Problem::bad_request(said)
}

/// Errors that the original does not expect are passed on as they are.
fn odd(said: String) -> Problem {
    Problem::unexplained(said)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn mistyped(want: &Value, got: &Value) -> Problem {
    odd(format!("expected a {}, but received a {}", type_name(want), type_name(got)))
}

fn short_enough(lists: &[&[Value]]) -> Result<(), Problem> {
    if lists.iter().any(|list| list.len() > LIST_MAX) {
        return Err(Problem::too_large(&format!("lists of more than {LIST_MAX} items cannot be merged by a patch")));
    }
    Ok(())
}

fn list_of(value: &Value) -> Result<&Vec<Value>, Problem> {
    value.as_array().ok_or_else(|| mistyped(&Value::Array(Vec::new()), value))
}

fn map_of(value: &Value) -> Result<&Fields, Problem> {
    value.as_object().ok_or_else(|| mistyped(&Value::Object(Map::new()), value))
}

/// A field's type and patch strategy.
fn field<'a>(node: Option<&'a Node>, key: &str) -> (Option<&'a Node>, Option<&'a Patch>) {
    let patch = node.and_then(|n| n.fields.get(key)).and_then(|f| f.patch.as_deref());
    (node.and_then(|n| n.child(key)), patch)
}

fn is_merge(patch: Option<&Patch>) -> bool {
    patch.is_some_and(|p| p.merge)
}

fn key_of(patch: Option<&Patch>) -> &str {
    patch.and_then(|p| p.key.as_deref()).unwrap_or_default()
}

/// A strategy that is neither merge nor retainKeys alone.
fn is_replace(patch: Option<&Patch>) -> bool {
    patch.is_some_and(|p| !p.merge && !p.retain_keys)
}

fn merge_map(mut original: Fields, mut patch: Fields, node: Option<&Node>) -> Result<Fields, Problem> {
    match patch.get(DIRECTIVE).map(|d| (d.as_str(), d)) {
        None => {}
        Some((Some("replace"), _)) => {
            patch.shift_remove(DIRECTIVE);
            return Ok(patch);
        }
        Some((Some("delete"), _)) => return Ok(Map::new()),
        Some((_, directive)) => {
            let said =
                format!("unknown patch type: {} in map: {}", plain(directive), plain(&Value::Object(patch.clone())));
            return Err(odd(said));
        }
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(&mut original, &mut patch, node)?;
    for (key, mut value) in patch {
        let deletes = key.starts_with(DELETE_FROM);
        let name = match key.strip_prefix(DELETE_FROM) {
            Some(rest) => {
                rest.strip_prefix('/').ok_or_else(|| bad("invalid patch format of primitive list"))?.to_owned()
            }
            None => key,
        };
        if value.is_null() {
            original.shift_remove(&name);
            continue;
        }
        let kind = |value: &Value| std::mem::discriminant(value);
        let old = original.get_mut(&name).map(std::mem::take);
        let Some(old) = old.filter(|old| kind(old) == kind(&value)) else {
            if !deletes {
                drop_nulls(&mut value);
                match without_directives(value) {
                    Some(value) => drop(original.insert(name, value)),
                    None => drop(original.shift_remove(&name)),
                }
            } else if original.get(&name).is_some_and(Value::is_null) {
                original.shift_remove(&name);
            }
            continue;
        };
        let (below, strategy) = field(node, &name);
        let merged = match (old, value) {
            (Value::Object(_), Value::Object(patch)) if is_replace(strategy) => Value::Object(patch),
            (Value::Object(old), Value::Object(patch)) => Value::Object(merge_map(old, patch, below)?),
            (Value::Array(old), Value::Array(patch)) if is_merge(strategy) || deletes => {
                Value::Array(merge_list(old, patch, below, key_of(strategy), deletes)?)
            }
            (_, patch) => patch,
        };
        original.insert(name, merged);
    }
    Ok(original)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// A new value is taken without its directives; one that is a directive is not taken.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter_map(|(key, value)| Some((key, without_directives(value)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(items.into_iter().filter_map(without_directives).collect()),
        other => Some(other),
    }
}

fn retain_keys(original: &mut Fields, patch: &mut Fields) -> Result<(), Problem> {
    const MISTAKE: &str = "invalid patch format of retainKeys";
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(|| bad(MISTAKE))?;
    let listed = |key: &str| keys.iter().any(|k| k.as_str() == Some(key));
    let directive = |key: &str| key.starts_with(DELETE_FROM) || key.starts_with(ELEMENT_ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !directive(key) && !listed(key)) {
        return Err(bad(MISTAKE));
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// `$setElementOrder/LIST` and the list that it orders.
fn set_orders(original: &mut Fields, patch: &mut Fields, node: Option<&Node>) -> Result<(), Problem> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let order = patch.shift_remove(&directive).unwrap_or_default();
        let order = list_of(&order)?;
        let name = directive.strip_prefix(ELEMENT_ORDER).and_then(|rest| rest.strip_prefix('/'));
        let name = name.ok_or_else(|| bad("invalid patch format of setElementOrder list"))?;
        let (below, strategy) = field(node, name);
        if below.is_none() {
            let owner = node.and_then(|n| n.name).and_then(|n| n.rsplit('.').next()).unwrap_or_default();
            return Err(odd(format!("unable to find api field in struct {owner} for the json field {name:?}")));
        }
        let key = key_of(strategy);
        let old = original.get(name).map(list_of).transpose()?.cloned();
        let new = patch.get(name).map(list_of).transpose()?.cloned();
        short_enough(&[order, old.as_deref().unwrap_or_default(), new.as_deref().unwrap_or_default()])?;
        check_order(new.as_deref().unwrap_or_default(), order, key)?;
        let merged = match (old.clone(), new) {
            (None, None) => continue,
            (Some(old), None) => old,
            (None, Some(new)) => new.into_iter().filter_map(without_directives).collect(),
            (Some(old), Some(new)) if is_merge(strategy) => merge_list(old, new, below, key, false)?,
            (Some(_), Some(new)) => new,
        };
        let old = old.unwrap_or_default();
        let (ordered, others) = partition(merged, order, key)?;
        original.insert(name.to_owned(), Value::Array(arrange(ordered, others, order, &old, key)?));
        patch.shift_remove(name);
    }
    Ok(())
}

/// The items of a patch stand in the order that it asks for.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), Problem> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    let deleted = |item: &Value| item.get(DIRECTIVE).is_some();
    for item in patch.iter().filter(|item| !deleted(item)) {
        let id = identity(item, key)?;
        let mut found = false;
        for listed in rest.by_ref() {
            if identity(listed, key)? == id {
                found = true;
                break;
            }
        }
        if !found {
            let (patch, order) = (Value::Array(patch.to_vec()), Value::Array(order.to_vec()));
            return Err(odd(format!(
                "The order in patch list:\n{}\n doesn't match {ELEMENT_ORDER} list:\n{}\n",
                plain(&patch),
                plain(&order)
            )));
        }
    }
    Ok(())
}

/// What makes an item the same: its merge key, or itself.
fn identity<'a>(item: &'a Value, key: &str) -> Result<&'a Value, Problem> {
    if key.is_empty() {
        return Ok(item);
    }
    let map = map_of(item)?;
    map.get(key).ok_or_else(|| odd(format!("map: {} does not contain declared merge key: {key}", plain(item))))
}

fn find(items: &[Value], id: &Value, key: &str) -> Option<usize> {
    items.iter().position(|item| if key.is_empty() { item == id } else { item.get(key) == Some(id) })
}

/// All items are of one type, which is no list.
fn are_maps(lists: [&[Value]; 2]) -> Result<bool, Problem> {
    let mut items = lists.into_iter().flatten();
    let Some(first) = items.next() else { return Ok(false) };
    if first.is_array() {
        return Err(Problem::unprocessable("the server rejected our request due to an error in our request"));
    }
    if items.any(|item| std::mem::discriminant(item) != std::mem::discriminant(first)) {
        let shown: Vec<String> = lists.iter().map(|list| plain(&Value::Array(list.to_vec()))).collect();
        return Err(odd(format!("list element types are not identical: [{}]", shown.join(" "))));
    }
    Ok(first.is_object())
}

fn merge_list(
    mut old: Vec<Value>,
    patch: Vec<Value>,
    node: Option<&Node>,
    key: &str,
    deletes: bool,
) -> Result<Vec<Value>, Problem> {
    if old.is_empty() && patch.is_empty() {
        return Ok(old);
    }
    short_enough(&[&old, &patch])?;
    if !are_maps([&old, &patch])? {
        if deletes {
            old.retain(|item| !patch.contains(item));
            return Ok(old);
        }
        let mut merged = old.clone();
        merged.extend(patch.iter().filter(|item| !old.contains(item)).cloned());
        let (ordered, others) = partition(merged, &patch, "")?;
        return arrange(ordered, others, &patch, &old, "");
    }
    if key.is_empty() {
        let name =
            node.and_then(Node::items).and_then(|n| n.name).and_then(|n| n.rsplit('.').next()).unwrap_or_default();
        return Err(odd(format!("cannot merge lists without merge key for {name}")));
    }
    let mut plain_items = Vec::with_capacity(patch.len());
    let mut replaces = false;
    for item in patch {
        match item.get(DIRECTIVE).map(|d| (d.as_str(), d)) {
            None => plain_items.push(item),
            Some((Some("delete"), _)) => {
                let id = identity(&item, key)?;
                old.retain(|item| item.get(key) != Some(id));
            }
            Some((Some("replace"), _)) => replaces = true,
            Some((Some("merge"), _)) => {
                return Err(odd("merging lists cannot yet be specified in the patch".to_owned()));
            }
            Some((_, directive)) => {
                return Err(odd(format!("unknown patch type: {} in map: {}", plain(directive), plain(&item))));
            }
        }
    }
    if replaces {
        return Ok(plain_items);
    }
    let below = node.and_then(Node::items);
    let mut merged = old.clone();
    for item in &plain_items {
        let id = identity(item, key)?;
        match find(&merged, id, key).and_then(|at| merged.get_mut(at)) {
            Some(Value::Object(found)) => {
                *found = merge_map(std::mem::take(found), map_of(item)?.clone(), below)?;
            }
            _ => merged.push(item.clone()),
        }
    }
    let (ordered, others) = partition(merged, &plain_items, key)?;
    arrange(ordered, others, &plain_items, &old, key)
}

/// Items that are in a list, and those that are not.
fn partition(items: Vec<Value>, by: &[Value], key: &str) -> Result<(Vec<Value>, Vec<Value>), Problem> {
    let (mut within, mut without) = (Vec::new(), Vec::new());
    for item in items {
        let known = find(by, identity(&item, key)?, key).is_some();
        if known { within.push(item) } else { without.push(item) }
    }
    Ok((within, without))
}

/// The patch's items in its order among the server's in theirs: a server's item goes first where both stood in the old
/// list and it stood before.
fn arrange(
    mut ordered: Vec<Value>,
    mut others: Vec<Value>,
    order: &[Value],
    old: &[Value],
    key: &str,
) -> Result<Vec<Value>, Problem> {
    for item in ordered.iter().chain(&others) {
        identity(item, key)?;
    }
    let place = |item: &Value, list: &[Value]| identity(item, key).ok().and_then(|id| find(list, id, key));
    ordered.sort_by_key(|item| place(item, order).unwrap_or(usize::MAX));
    others.sort_by_key(|item| place(item, old).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ordered.len() + others.len());
    let (mut left, mut right) = (others.into_iter().peekable(), ordered.into_iter().peekable());
    loop {
        let before = match (left.peek(), right.peek()) {
            (None, None) => return Ok(out),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => place(l, old).zip(place(r, old)).is_some_and(|(l, r)| l < r),
        };
        out.extend(if before { left.next() } else { right.next() });
    }
}
