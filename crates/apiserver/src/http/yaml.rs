//! YAML bodies, with the keys that stand there twice: Kubernetes tells them to a strict client.

use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Options, Spanned};

use super::json;
use super::media::{Decoded, Duplicates};
use crate::object::field::quote;

/// Duplicates that are told, at most.
const TOLD: usize = 100;

/// YAML as Kubernetes takes it: JSON is YAML too, and is read by the faster parser. The last of two equal keys wins.
pub(crate) fn parse(body: &Bytes) -> Result<Decoded, String> {
    if body.first() == Some(&b'{')
        && let Ok(decoded) = json::parse(body)
        && decoded.duplicates.is_empty()
    {
        return Ok(decoded);
    }
    let text = std::str::from_utf8(body).map_err(|error| format!("yaml: {error}"))?;
    match serde_saphyr::from_str(text) {
        Ok(value) => Ok(Decoded { value, duplicates: Duplicates::NONE }),
        Err(error) if is_duplicate(&error) => {
            let mut options = Options::default();
            options.duplicate_keys = DuplicateKeyPolicy::LastWins;
            let tree = serde_saphyr::from_str_with_options::<Tree>(text, options);
            let mut lines = Vec::new();
            let value = tree.map_err(|error| brief(&error.to_string()))?.settle(&mut lines);
            Ok(Decoded { value, duplicates: Duplicates::Yaml(lines) })
        }
        Err(error) => Err(brief(&error.to_string())),
    }
}

fn is_duplicate(error: &serde_saphyr::Error) -> bool {
    matches!(error.without_snippet(), serde_saphyr::Error::DuplicateMappingKey { .. })
}

/// `yaml: line 3: what is wrong`, of a report with a picture.
fn brief(report: &str) -> String {
    let first = report.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    let placed = first.strip_prefix("line ").and_then(|rest| rest.split_once(" column ")).and_then(|(line, rest)| {
        let (_, what) = rest.split_once(": ")?;
        Some(format!("yaml: line {line}: {what}"))
    });
    placed.unwrap_or_else(|| format!("yaml: {first}"))
}

/// A document with all that it says, twice or not, and where.
enum Tree {
    Plain(Value),
    List(Vec<Tree>),
    Map(Vec<(String, Spanned<Tree>)>),
}

impl Tree {
    /// What it means, as Kubernetes reads it; what stands there twice is told by the line of its value.
    fn settle(self, lines: &mut Vec<String>) -> Value {
        match self {
            Self::Plain(value) => value,
            Self::List(items) => items.into_iter().map(|it| it.settle(lines)).collect(),
            Self::Map(fields) => {
                let mut all = Map::new();
                let mut seen = HashSet::new();
                for (key, Spanned { value, referenced, .. }) in fields {
                    let value = value.settle(lines);
                    if !seen.insert(key.clone()) && lines.len() < TOLD {
                        lines.push(format!("line {}: key {} already set in map", referenced.line(), quote(&key)));
                    }
                    all.insert(key, value);
                }
                Value::Object(all)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Read)
    }
}

struct Read;

impl<'de> Visitor<'de> for Read {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Plain(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Plain(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Plain(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Plain(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Plain(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Plain(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Plain(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Tree::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some(field) = fields.next_entry()? {
            all.push(field);
        }
        Ok(Tree::Map(all))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_stand_twice_are_told_with_the_lines_of_their_values() {
        let text = "a: 1\nb:\n- c: x\n  c: ~\nd: {e: true}\na:\n  f: 1.5\n  f: -2\n";
        let read = parse(&Bytes::from(text)).unwrap();
        assert_eq!(read.value, json!({"a": {"f": -2}, "b": [{"c": null}], "d": {"e": true}}));
        let lines = [4, 8, 7].into_iter().zip(["c", "f", "a"]);
        let told = lines.map(|(line, key)| format!("line {line}: key \"{key}\" already set in map")).collect();
        assert_eq!(read.duplicates, Duplicates::Yaml(told));
        let read = parse(&Bytes::from(r#"{"a": 1, "a": 2}"#)).unwrap();
        assert_eq!(read.value, json!({"a": 2}));
        assert_eq!(read.duplicates.errors(), ["yaml: unmarshal errors:\n  line 1: key \"a\" already set in map"]);
    }

    #[test]
    fn a_bomb_is_refused() {
        assert!(parse(&Bytes::from(format!("a: 1\na: {}{}", "[".repeat(100_000), "]".repeat(100_000)))).is_err());
        let laughs: String =
            (1..30).map(|at| format!("l{at}: &l{at} [*l{0}, *l{0}, *l{0}, *l{0}]\n", at - 1)).collect();
        assert!(parse(&Bytes::from(format!("a: 1\na: 2\nl0: &l0 x\n{laughs}"))).is_err());
    }
}
