//! JSON bodies, read once, with the fields that stand there twice: Kubernetes tells them to a strict client.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::media::{Decoded, Duplicates};
use crate::object::field;

/// Duplicates that are told, at most.
const TOLD: usize = 100;

/// Parses a whole body. The last of two equal fields wins.
pub(crate) fn parse(body: &[u8]) -> Result<Decoded, String> {
    let mut found = Found { path: String::new(), fields: 0, duplicates: Vec::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Seed(&mut found).deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(value) => Ok(Decoded { value, duplicates: Duplicates::Json(found.duplicates) }),
        Err(error) => Err(go_words(&error)),
    }
}

/// Sets a field of an object that is being put together.
pub(crate) fn put(object: &mut Value, field: &str, value: Value) {
    if let Value::Object(map) = object {
        map.insert(field.to_owned(), value);
    }
}

/// The commonest of Go's complaints; ours where it has no equal.
fn go_words(error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    format!("invalid JSON: {error}")
}

struct Found {
    path: String,
    /// How many different ones there were so far.
    fields: usize,
    duplicates: Vec<(usize, String)>,
}

struct Seed<'a>(&'a mut Found);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        let before = self.0.path.len();
        loop {
            // Most lists are short of anything to tell; the index is written only where a list holds something.
            let at = all.len().to_string();
            self.0.path.push('[');
            self.0.path.push_str(&at);
            self.0.path.push(']');
            let next = items.next_element_seed(Seed(self.0));
            self.0.path.truncate(before);
            match next? {
                Some(item) => all.push(item),
                None => return Ok(Value::Array(all)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        let before = self.0.path.len();
        while let Some(key) = fields.next_key::<String>()? {
            if before > 0 {
                self.0.path.push('.');
            }
            self.0.path.push_str(field::key(&key));
            if !all.contains_key(&key) {
                self.0.fields += 1;
            } else if self.0.duplicates.len() < TOLD {
                self.0.duplicates.push((self.0.fields, self.0.path.clone()));
            }
            let value = fields.next_value_seed(Seed(self.0));
            self.0.path.truncate(before);
            all.insert(key, value?);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_stand_twice_are_told_with_their_path() {
        let read = parse(br#"{"a":1,"b":[{"c":1,"c":2}],"a":3}"#).unwrap();
        assert_eq!(read.value, serde_json::json!({"a": 3, "b": [{"c": 2}]}));
        assert_eq!(read.duplicates, Duplicates::Json(vec![(3, "b[0].c".into()), (3, "a".into())]));
    }

    #[test]
    fn a_bomb_of_brackets_is_refused() {
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert!(parse(&deep).is_err());
        assert!(parse(b"{} x").is_err() && parse(b"").is_err());
    }
}
