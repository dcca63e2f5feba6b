//! The document of OpenAPI 2.0 as protobuf, by the messages of github.com/google/gnostic-models (openapiv2/OpenAPIv2.proto,
//! whose field numbers these are). kubectl asks for `/openapi/v2` in no other form. Only what stands in our documents is
//! known here.

use serde_json::{Map, Value};

/// Upstream's name, and the one that it answers with.
pub(super) const MEDIA_TYPES: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];

/// A document: `Document`, with paths and definitions that are written already.
pub(super) fn document(head: &Value, paths: &[u8], definitions: &[u8]) -> Vec<u8> {
    let mut out = Message::default();
    for (key, value) in entries(head) {
        match key.as_str() {
            "swagger" => out.text(1, value),
            "info" => out.message(2, |info| {
                for (key, value) in entries(value) {
                    match key.as_str() {
                        "title" => info.text(1, value),
                        "version" => info.text(2, value),
                        _ => {}
                    }
                }
            }),
            "parameters" => out.message(10, |out| {
                entries(value).for_each(|(name, it)| out.named(1, name, |out| some_parameter(out, it)));
            }),
            "security" => items(value).for_each(|it| {
                out.message(12, |out| {
                    entries(it).for_each(|(name, scopes)| {
                        out.named(1, name, |out| items(scopes).for_each(|it| out.text(1, it)));
                    });
                });
            }),
            "securityDefinitions" => out.message(13, |out| {
                entries(value).for_each(|(name, it)| out.named(1, name, |out| out.message(2, |out| key_in(out, it))));
            }),
            _ => {}
        }
    }
    out.bytes(8, paths);
    out.bytes(9, definitions);
    out.0
}

/// A path within `Paths`.
pub(super) fn path(url: &str, item: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.named(2, url, |it| path_item(it, item));
    out.0
}

/// A definition within `Definitions`.
pub(super) fn definition(name: &str, it: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.named(1, name, |out| schema(out, it));
    out.0
}

/// `ApiKeySecurity`.
fn key_in(out: &mut Message, it: &Value) {
    for (key, value) in entries(it) {
        match key.as_str() {
            "type" => out.text(1, value),
            "name" => out.text(2, value),
            "in" => out.text(3, value),
            "description" => out.text(4, value),
            _ => {}
        }
    }
}

fn schemas(out: &mut Message, all: &Value) {
    entries(all).for_each(|(name, it)| out.named(1, name, |out| schema(out, it)));
}

fn schema(out: &mut Message, it: &Value) {
    for (key, value) in entries(it) {
        match key.as_str() {
            "$ref" => out.text(1, value),
            "format" => out.text(2, value),
            "title" => out.text(3, value),
            "description" => out.text(4, value),
            "default" => out.any(5, value),
            "multipleOf" => out.double(6, value),
            "maximum" => out.double(7, value),
            "exclusiveMaximum" => out.flag(8, value),
            "minimum" => out.double(9, value),
            "exclusiveMinimum" => out.flag(10, value),
            "maxLength" => out.int(11, value),
            "minLength" => out.int(12, value),
            "pattern" => out.text(13, value),
            "maxItems" => out.int(14, value),
            "minItems" => out.int(15, value),
            "uniqueItems" => out.flag(16, value),
            "maxProperties" => out.int(17, value),
            "minProperties" => out.int(18, value),
            "required" => items(value).for_each(|it| out.text(19, it)),
            "enum" => items(value).for_each(|it| out.any(20, it)),
            "additionalProperties" if value.is_boolean() => out.message(21, |out| out.flag(2, value)),
            "additionalProperties" => out.message(21, |out| out.message(1, |out| schema(out, value))),
            "type" => out.message(22, |out| out.text(1, value)),
            "items" => out.message(23, |out| out.message(1, |out| schema(out, value))),
            "allOf" => items(value).for_each(|it| out.message(24, |out| schema(out, it))),
            "properties" => out.message(25, |out| schemas(out, value)),
            "example" => out.any(30, value),
            _ => out.extension(31, key, value),
        }
    }
}

fn path_item(out: &mut Message, item: &Value) {
    for (key, value) in entries(item) {
        match key.as_str() {
            "get" => out.message(2, |out| operation(out, value)),
            "put" => out.message(3, |out| operation(out, value)),
            "post" => out.message(4, |out| operation(out, value)),
            "delete" => out.message(5, |out| operation(out, value)),
            "options" => out.message(6, |out| operation(out, value)),
            "head" => out.message(7, |out| operation(out, value)),
            "patch" => out.message(8, |out| operation(out, value)),
            "parameters" => items(value).for_each(|it| out.message(9, |out| parameter(out, it))),
            _ => out.extension(10, key, value),
        }
    }
}

fn operation(out: &mut Message, it: &Value) {
    for (key, value) in entries(it) {
        match key.as_str() {
            "tags" => items(value).for_each(|it| out.text(1, it)),
            "description" => out.text(3, value),
            "operationId" => out.text(5, value),
            "produces" => items(value).for_each(|it| out.text(6, it)),
            "consumes" => items(value).for_each(|it| out.text(7, it)),
            "parameters" => items(value).for_each(|it| out.message(8, |out| parameter(out, it))),
            "responses" => out.message(9, |out| {
                entries(value).for_each(|(code, it)| out.named(1, code, |out| out.message(1, |out| response(out, it))));
            }),
            "schemes" => items(value).for_each(|it| out.text(10, it)),
            _ => out.extension(13, key, value),
        }
    }
}

fn response(out: &mut Message, it: &Value) {
    for (key, value) in entries(it) {
        match key.as_str() {
            "description" => out.text(1, value),
            "schema" => out.message(2, |out| out.message(1, |out| schema(out, value))),
            _ => out.extension(5, key, value),
        }
    }
}

/// `ParametersItem`: a `Parameter`, or where one is.
fn parameter(out: &mut Message, it: &Value) {
    match it.get("$ref") {
        Some(target) => out.message(2, |out| out.text(1, target)),
        None => out.message(1, |out| some_parameter(out, it)),
    }
}

/// `Parameter`: one of the body, the query or the path.
fn some_parameter(out: &mut Message, it: &Value) {
    let place = it.get("in").and_then(Value::as_str).unwrap_or_default();
    match place {
        "body" => out.message(1, |out| {
            for (key, value) in entries(it) {
                match key.as_str() {
                    "description" => out.text(1, value),
                    "name" => out.text(2, value),
                    "in" => out.text(3, value),
                    "required" => out.flag(4, value),
                    "schema" => out.message(5, |out| schema(out, value)),
                    _ => {}
                }
            }
        }),
        // After the name, a query's numbers are those of a path and one more: it has `allowEmptyValue`.
        "query" => out.message(2, |out| out.message(3, |out| simple(out, it, 1))),
        _ => out.message(2, |out| out.message(4, |out| simple(out, it, 0))),
    }
}

fn simple(out: &mut Message, it: &Value, more: u32) {
    for (key, value) in entries(it) {
        match key.as_str() {
            "required" => out.flag(1, value),
            "in" => out.text(2, value),
            "description" => out.text(3, value),
            "name" => out.text(4, value),
            "type" => out.text(5 + more, value),
            "format" => out.text(6 + more, value),
            "uniqueItems" => out.flag(19 + more, value),
            _ => {}
        }
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A message being written. What is of another type than its field is left out.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or_default());
    }

    fn tag(&mut self, field: u32, wire: u64) {
        self.varint(u64::from(field) << 3 | wire);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u32, value: &Value) {
        if value == &Value::Bool(true) {
            self.tag(field, 0);
            self.varint(1);
        }
    }

    fn int(&mut self, field: u32, value: &Value) {
        if let Some(value) = value.as_u64() {
            self.tag(field, 0);
            self.varint(value);
        }
    }

    fn double(&mut self, field: u32, value: &Value) {
        if let Some(value) = value.as_f64() {
            self.tag(field, 1);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// An entry of what is a map in JSON.
    fn named(&mut self, field: u32, name: &str, write: impl FnOnce(&mut Self)) {
        self.message(field, |out| {
            out.bytes(1, name.as_bytes());
            out.message(2, write);
        });
    }

    /// `Any`: the value as YAML, of which JSON is a part.
    fn any(&mut self, field: u32, value: &Value) {
        self.message(field, |out| out.bytes(2, value.to_string().as_bytes()));
    }

    fn extension(&mut self, field: u32, key: &str, value: &Value) {
        if key.starts_with("x-") {
            self.named(field, key, |out| out.bytes(2, value.to_string().as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Field number, wire type and content of each field of a message.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
        let mut all = Vec::new();
        let varint = |bytes: &mut &[u8]| {
            let end = bytes.iter().position(|it| it & 0x80 == 0).unwrap();
            let (number, rest) = bytes.split_at(end + 1);
            *bytes = rest;
            number.iter().rev().fold(0, |value, it| value << 7 | u64::from(it & 0x7f))
        };
        while !bytes.is_empty() {
            let tag = varint(&mut bytes);
            let length = match tag & 7 {
                0 => bytes.iter().position(|it| it & 0x80 == 0).unwrap() + 1,
                1 => 8,
                2 => usize::try_from(varint(&mut bytes)).unwrap(),
                other => panic!("wire type {other}"),
            };
            let (content, rest) = bytes.split_at(length);
            bytes = rest;
            all.push((tag >> 3, content));
        }
        all
    }

    /// The first field of that path of numbers.
    fn at<'a>(bytes: &'a [u8], path: &[u64]) -> &'a [u8] {
        path.iter().fold(bytes, |bytes, number| fields(bytes).iter().find(|it| it.0 == *number).unwrap().1)
    }

    #[test]
    fn a_document_is_written_by_upstreams_field_numbers() {
        let long = "d".repeat(300);
        let document = json!({
            "swagger": "2.0",
            "info": {"title": "K", "version": "v1"},
            "parameters": {"pretty-1": {"name": "pretty", "in": "query", "type": "string", "uniqueItems": true}},
            "security": [{"Token": []}],
            "securityDefinitions": {"Token": {"type": "apiKey", "name": "authorization", "in": "header"}},
            "paths": {"/api/v1/pods": {"patch": {
                "tags": ["core_v1"],
                "schemes": ["https"],
                "operationId": "patchPod",
                "produces": ["application/json"],
                "consumes": ["application/json-patch+json"],
                "parameters": [
                    {"in": "body", "name": "body", "required": true, "schema": {"type": "object"}},
                    {"in": "query", "name": "force", "type": "boolean", "uniqueItems": true},
                    {"in": "path", "name": "name", "type": "string", "required": true},
                    {"$ref": "#/parameters/pretty-1"},
                ],
                "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/Pod"}}},
            }}},
            "definitions": {"Pod": {
                "description": long, "type": "object", "required": ["a"],
                "properties": {"a": {"type": "string", "default": {"x": 1}, "maxLength": 300}},
                "additionalProperties": {"type": "number", "minimum": 0.5},
                "x-kubernetes-group-version-kind": [{"kind": "Pod"}],
            }},
        });
        let paths = path("/api/v1/pods", &document["paths"]["/api/v1/pods"]);
        let definitions = definition("Pod", &document["definitions"]["Pod"]);
        let bytes = super::document(&document, &paths, &definitions);
        assert_eq!(&bytes[..5], b"\x0a\x032.0");
        assert_eq!((at(&bytes, &[2, 1]), at(&bytes, &[2, 2])), (&b"K"[..], &b"v1"[..]));
        let patch = at(&bytes, &[8, 2, 2, 8]);
        assert_eq!((at(patch, &[5]), at(patch, &[7])), (&b"patchPod"[..], &b"application/json-patch+json"[..]));
        assert_eq!(
            (at(patch, &[1]), at(patch, &[6]), at(patch, &[10])),
            (&b"core_v1"[..], &b"application/json"[..], &b"https"[..])
        );
        assert_eq!((at(&bytes, &[10, 1, 1]), at(&bytes, &[10, 1, 2, 2, 3, 4])), (&b"pretty-1"[..], &b"pretty"[..]));
        assert_eq!((at(&bytes, &[12, 1, 1]), at(&bytes, &[12, 1, 2])), (&b"Token"[..], &b""[..]));
        assert_eq!((at(&bytes, &[13, 1, 1]), at(&bytes, &[13, 1, 2, 2, 3])), (&b"Token"[..], &b"header"[..]));
        let parameters: Vec<&[u8]> = fields(patch).into_iter().filter(|it| it.0 == 8).map(|it| it.1).collect();
        let [body, query, path, shared] = parameters.as_slice() else { panic!("{parameters:?}") };
        assert_eq!(at(body, &[1, 1, 5, 22, 1]), b"object");
        assert_eq!(
            (at(query, &[1, 2, 3, 4]), at(query, &[1, 2, 3, 6]), at(query, &[1, 2, 3, 20])),
            (&b"force"[..], &b"boolean"[..], &[1][..])
        );
        assert_eq!((at(path, &[1, 2, 4, 4]), at(path, &[1, 2, 4, 5])), (&b"name"[..], &b"string"[..]));
        assert_eq!(at(shared, &[2, 1]), b"#/parameters/pretty-1");
        assert_eq!(at(patch, &[9, 1, 1]), b"200");
        assert_eq!(at(patch, &[9, 1, 2, 1, 2, 1, 1]), b"#/definitions/Pod");
        let pod = at(&bytes, &[9, 1, 2]);
        assert_eq!((at(pod, &[4]), at(pod, &[19])), (long.as_bytes(), &b"a"[..]));
        assert_eq!(at(pod, &[25, 1, 2, 5, 2]), br#"{"x":1}"#);
        assert_eq!(at(pod, &[25, 1, 2, 11]), [0xac, 0x02]);
        assert_eq!(at(pod, &[21, 1, 9]), 0.5_f64.to_le_bytes());
        assert_eq!(
            (at(pod, &[31, 1]), at(pod, &[31, 2, 2])),
            (&b"x-kubernetes-group-version-kind"[..], &br#"[{"kind":"Pod"}]"#[..])
        );
    }
}
