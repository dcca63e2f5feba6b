//! Kubernetes' protobuf request bodies, decoded by a table of messages (`protobuf.tsv`, made by `cargo xtask
//! kube-tables`) into the JSON that the same client would have sent.

use std::sync::{LazyLock, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::builtin;

/// The four bytes before the envelope.
const MAGIC: &[u8] = b"k8s\0";
const UNKNOWN: &str = "io.k8s.apimachinery.pkg.runtime.Unknown";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const FIELDS_V1: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
const DURATION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Duration";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// Deeper messages are refused: the JSON of what is stored must be readable again.
const DEPTH_MAX: usize = 60;
/// Values in one body.
const VALUES_MAX: usize = 500_000;

struct Message {
    name: &'static str,
    line: &'static str,
    fields: OnceLock<Vec<Field>>,
}

struct Field {
    number: u32,
    json: &'static str,
    kind: Kind,
    repeated: bool,
    map: bool,
    inline: bool,
    /// Left out when it is zero: a field by value with `omitempty`.
    omit_zero: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Bytes,
    Bool,
    Int,
    Double,
    Message(&'static str),
}

/// Sorted by name.
static MESSAGES: LazyLock<Vec<Message>> = LazyLock::new(|| {
    let lines = include_str!("protobuf.tsv").lines();
    lines
        .map(|line| {
            let (name, line) = line.split_once('\t').unwrap_or((line, ""));
            Message { name, line, fields: OnceLock::new() }
        })
        .collect()
});

fn message(name: &str) -> Option<&'static Message> {
    let at = MESSAGES.binary_search_by(|m| m.name.cmp(name)).ok()?;
    MESSAGES.get(at)
}

impl Message {
    fn fields(&'static self) -> &'static [Field] {
        self.fields.get_or_init(|| self.line.split('\t').filter_map(field).collect())
    }
}

fn field(text: &'static str) -> Option<Field> {
    let mut parts = text.splitn(3, ':');
    let (number, kind, json) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let name = kind.trim_start_matches(['@', '?', '*', '%']);
    let flags = kind.strip_suffix(name).unwrap_or_default();
    let kind = match name {
        "string" => Kind::Text,
        "bytes" => Kind::Bytes,
        "bool" => Kind::Bool,
        "int32" | "int64" | "uint32" | "uint64" => Kind::Int,
        "double" => Kind::Double,
        message => Kind::Message(message),
    };
    let has = |flag| flags.contains(flag);
    Some(Field { number, json, kind, repeated: has('*'), map: has('%'), inline: has('@'), omit_zero: has('?') })
}

/// Decodes `k8s\0` and a `runtime.Unknown` into the JSON form, `apiVersion` and `kind` first. The error says what is
/// wrong with the bytes, or which kind is not known.
pub(crate) fn decode(body: &[u8]) -> Result<Value, String> {
    Decoder { values: 0 }.envelope(body, 0)
}

struct Decoder {
    values: usize,
}

/// One field as it is on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut out = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or("unexpected EOF")?;
        *bytes = rest;
        out |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(out);
        }
    }
    Err("proto: integer overflow".to_owned())
}

fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Result<&'a [u8], String> {
    let count = usize::try_from(count).map_err(|_| "proto: integer overflow")?;
    let (taken, rest) = bytes.split_at_checked(count).ok_or("unexpected EOF")?;
    *bytes = rest;
    Ok(taken)
}

/// The next field's number and value.
fn next<'a>(bytes: &mut &'a [u8]) -> Result<Option<(u32, Wire<'a>)>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let tag = varint(bytes)?;
    let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0).ok_or_else(|| format!("proto: illegal tag {tag}"))?;
    let wire = match tag & 7 {
        0 => Wire::Varint(varint(bytes)?),
        1 => Wire::Fixed64(take(bytes, 8)?.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))),
        2 => {
            let length = varint(bytes)?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => {
            take(bytes, 4)?;
            Wire::Fixed32
        }
        other => return Err(format!("proto: illegal wireType {other}")),
    };
    Ok(Some((number, wire)))
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "proto: invalid UTF-8".to_owned())
}

/// The text and bytes fields of a small message, by number.
fn parts(mut bytes: &[u8]) -> Result<Vec<(u32, Wire<'_>)>, String> {
    let mut out = Vec::new();
    while let Some(field) = next(&mut bytes)? {
        out.push(field);
    }
    Ok(out)
}

/// The definition of a kind, or of one of the options that every group has.
fn definition(api_version: &str, kind: &str) -> Option<String> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if let Some(schema) = builtin::schema_of(group, version, kind) {
        return schema.name().map(str::to_owned);
    }
    let common =
        matches!(kind, "DeleteOptions" | "CreateOptions" | "UpdateOptions" | "PatchOptions" | "ListOptions" | "Status");
    common.then(|| format!("{META}.{kind}"))
}

impl Decoder {
    fn envelope(&mut self, body: &[u8], depth: usize) -> Result<Value, String> {
        let unknown = body
            .strip_prefix(MAGIC)
            .ok_or("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")?;
        let envelope = self.message(UNKNOWN, unknown, depth)?;
        let text = |key: &str| envelope.get(key).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion").to_owned(), text("kind").to_owned());
        let raw = parts(unknown)?.into_iter().rev().find_map(|(number, wire)| match wire {
            Wire::Bytes(raw) if number == 2 => Some(raw),
            _ => None,
        });
        let raw = raw.unwrap_or_default();
        if text("contentType") == "application/json" {
            return json_of(raw, depth);
        }
        let name = definition(&api_version, &kind)
            .ok_or_else(|| format!("no kind {kind:?} is registered for version {api_version:?} in protobuf"))?;
        let mut object = Map::new();
        object.insert("apiVersion".into(), json!(api_version));
        object.insert("kind".into(), json!(kind));
        object.extend(self.message(&name, raw, depth)?);
        Ok(Value::Object(object))
    }

    fn count(&mut self, depth: usize) -> Result<(), String> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(format!("proto: more than {VALUES_MAX} values"));
        }
        if depth > DEPTH_MAX { Err("proto: exceeded max depth".to_owned()) } else { Ok(()) }
    }

    fn message(&mut self, name: &str, mut bytes: &[u8], depth: usize) -> Result<Map<String, Value>, String> {
        self.count(depth)?;
        let fields = message(name).ok_or_else(|| format!("proto: message {name} is not known"))?.fields();
        let mut out = Map::new();
        while let Some((number, wire)) = next(&mut bytes)? {
            let Some(field) = fields.iter().find(|f| f.number == number).filter(|f| f.json != "-") else { continue };
            if field.map {
                let (key, value) = self.entry(field, &wire, depth)?;
                let map = out.entry(field.json).or_insert_with(|| json!({}));
                if let (Value::Object(map), true) = (map, !value.is_null()) {
                    map.insert(key, value);
                }
                continue;
            }
            if let (true, Kind::Message(inner), Wire::Bytes(bytes)) = (field.inline, field.kind, &wire) {
                out.extend(self.message(inner, bytes, depth + 1)?);
                continue;
            }
            let value = self.value(field.kind, &wire, depth)?;
            if field.repeated {
                if let Value::Array(items) = out.entry(field.json).or_insert_with(|| json!([])) {
                    items.push(value);
                }
            } else if field.omit_zero && is_zero(&value) {
                out.shift_remove(field.json);
            } else {
                out.insert(field.json.to_owned(), value);
            }
        }
        Ok(out)
    }

    /// A map's entry: a message of a key and a value.
    fn entry(&mut self, field: &Field, wire: &Wire<'_>, depth: usize) -> Result<(String, Value), String> {
        let Wire::Bytes(bytes) = wire else { return Err(format!("proto: wrong wireType for field {}", field.json)) };
        self.count(depth)?;
        let (mut key, mut value) = (String::new(), None);
        for (number, wire) in parts(bytes)? {
            match (number, wire) {
                (1, Wire::Bytes(bytes)) => key = text(bytes)?,
                (2, wire) => value = Some(self.value(field.kind, &wire, depth + 1)?),
                _ => {}
            }
        }
        let zero = || match field.kind {
            Kind::Text | Kind::Bytes => json!(""),
            Kind::Bool => json!(false),
            Kind::Int | Kind::Double => json!(0),
            Kind::Message(builtin::QUANTITY) => json!("0"),
            Kind::Message(_) => json!({}),
        };
        Ok((key, value.unwrap_or_else(zero)))
    }

    fn value(&mut self, kind: Kind, wire: &Wire<'_>, depth: usize) -> Result<Value, String> {
        self.count(depth)?;
        Ok(match (kind, wire) {
            (Kind::Text, Wire::Bytes(bytes)) => text(bytes)?.into(),
            (Kind::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
            (Kind::Bool, Wire::Varint(n)) => (*n != 0).into(),
            (Kind::Int, Wire::Varint(n)) => n.cast_signed().into(),
            (Kind::Double, Wire::Fixed64(bits)) => json!(f64::from_bits(*bits)),
            (Kind::Message(name), Wire::Bytes(bytes)) => self.any_message(name, bytes, depth + 1)?,
            _ => return Err("proto: wrong wireType".to_owned()),
        })
    }

    /// A message that may have a JSON form of its own.
    fn any_message(&mut self, name: &'static str, bytes: &[u8], depth: usize) -> Result<Value, String> {
        self.count(depth)?;
        let last = |number: u32| -> Result<Option<Wire<'_>>, String> {
            Ok(parts(bytes)?.into_iter().filter(|(n, _)| *n == number).map(|(_, wire)| wire).next_back())
        };
        let int = |number| -> Result<i64, String> {
            Ok(if let Some(Wire::Varint(n)) = last(number)? { n.cast_signed() } else { 0 })
        };
        let raw = |number| -> Result<Option<Vec<u8>>, String> {
            Ok(if let Some(Wire::Bytes(bytes)) = last(number)? { Some(bytes.to_vec()) } else { None })
        };
        Ok(match name {
            builtin::TIME | builtin::MICRO_TIME => time(int(1)?, int(2)?, name == builtin::MICRO_TIME)?,
            builtin::QUANTITY => match raw(1)? {
                Some(bytes) if !bytes.is_empty() => text(&bytes)?.into(),
                _ => "0".into(),
            },
            builtin::INT_OR_STRING => match int(1)? {
                0 => json!(int(2)?),
                _ => text(&raw(3)?.unwrap_or_default())?.into(),
            },
            DURATION => go_duration(int(1)?).into(),
            FIELDS_V1 => json_of(&raw(1)?.unwrap_or_else(|| b"{}".to_vec()), depth)?,
            builtin::RAW_EXTENSION => match raw(1)? {
                Some(bytes) if bytes.starts_with(MAGIC) => self.envelope(&bytes, depth)?,
                Some(bytes) if !bytes.is_empty() => json_of(&bytes, depth)?,
                _ => Value::Null,
            },
            _ if name.ends_with(".ExtraValue") || name.ends_with(".Verbs") => {
                self.message(name, bytes, depth)?.shift_remove("items").unwrap_or_else(|| json!([]))
            }
            _ => match name.strip_prefix(EXTENSIONS).and_then(|n| n.strip_prefix('.')) {
                Some("JSON") => json_of(&raw(1)?.unwrap_or_else(|| b"null".to_vec()), depth)?,
                // A schema, or what may stand in its place.
                Some("JSONSchemaPropsOrBool" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray") => {
                    let mut map = self.message(name, bytes, depth)?;
                    let mut either = |key: &str| map.shift_remove(key);
                    let found = either("schema").or_else(|| either("jSONSchemas")).or_else(|| either("property"));
                    found.or_else(|| either("allows")).unwrap_or(Value::Bool(false))
                }
                _ => Value::Object(self.message(name, bytes, depth)?),
            },
        })
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn time(seconds: i64, nanos: i64, micro: bool) -> Result<Value, String> {
    if seconds == 0 && nanos == 0 {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(|_| "proto: illegal time")?;
    let time = Timestamp::new(seconds, if micro { nanos } else { 0 }).map_err(|_| "proto: illegal time")?;
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

/// Go's `time.Duration.String`.
fn go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let fraction = |n: u64, unit: u64| {
        let digits = unit.ilog10() as usize;
        let text = format!("{:0digits$}", n % unit);
        let text = text.trim_end_matches('0');
        let dot = if text.is_empty() { "" } else { "." };
        format!("{}{dot}{text}", n / unit)
    };
    const SECOND: u64 = 1_000_000_000;
    match n {
        0 => "0s".to_owned(),
        n if n < 1_000 => format!("{sign}{n}ns"),
        n if n < 1_000_000 => format!("{sign}{}µs", fraction(n, 1_000)),
        n if n < SECOND => format!("{sign}{}ms", fraction(n, 1_000_000)),
        n => {
            let (minutes, rest) = (n / (60 * SECOND), n % (60 * SECOND));
            let seconds = fraction(rest, SECOND);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// JSON within protobuf, no deeper than the rest may be.
fn json_of(bytes: &[u8], depth: usize) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    fn height(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(height).max().unwrap_or_default(),
            Value::Object(map) => 1 + map.values().map(height).max().unwrap_or_default(),
            _ => 0,
        }
    }
    if depth + height(&value) > DEPTH_MAX { Err("proto: exceeded max depth".to_owned()) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Objects as a real API server (1.34.2) sends them in protobuf and in JSON, recorded.
    #[test]
    fn protobuf_becomes_the_json_that_a_real_api_server_makes_of_it() {
        for line in include_str!("../../testdata/protobuf.jsonl").lines() {
            let (body, recorded): (String, Value) = serde_json::from_str(line).unwrap();
            let mut object = decode(&STANDARD.decode(body).unwrap()).unwrap();
            let (api_version, kind) = (recorded["apiVersion"].as_str().unwrap(), recorded["kind"].as_str().unwrap());
            let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
            let schema = builtin::schema_of(group, version, kind).unwrap();
            schema.check_types(&object).unwrap();
            assert_eq!(schema.prune(&mut object), Vec::<String>::new(), "{kind}");
            // What is stored is what was read: nothing unknown, nothing reshaped.
            let mut want = recorded.clone();
            assert_eq!(schema.prune(&mut want), Vec::<String>::new(), "{kind}");
            assert_eq!(want, recorded, "{kind} in JSON");
            assert_eq!(object, want, "{kind}");
        }
    }

    #[test]
    fn every_field_of_every_message_is_a_field_of_its_schema() {
        for message in MESSAGES.iter() {
            let Some(schema) = builtin::schema(message.name) else { continue };
            let node = schema.root();
            if node.fields.is_empty() {
                continue;
            }
            for field in message.fields().iter().filter(|f| !f.inline && f.json != "-") {
                assert!(node.fields.contains_key(field.json), "{} has no {}", message.name, field.json);
            }
        }
    }

    fn tag(number: u8, wire: u8) -> u8 {
        number << 3 | wire
    }

    fn delimited(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![tag(number, 2)];
        let mut length = bytes.len();
        while length > 0x7f {
            out.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
            length >>= 7;
        }
        out.push(u8::try_from(length).unwrap());
        out.extend(bytes);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [delimited(1, api_version.as_bytes()), delimited(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), delimited(1, &meta), delimited(2, raw)].concat()
    }

    #[test]
    fn options_come_in_any_group_and_strange_bodies_are_refused_with_the_reason() {
        let foreground = delimited(4, b"Foreground");
        assert_eq!(
            decode(&envelope("apps/v1", "DeleteOptions", &foreground)).unwrap(),
            json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"})
        );
        assert!(decode(b"{}").unwrap_err().contains("expected prefix"));
        assert!(decode(&envelope("a/v1", "Nonesuch", &[])).unwrap_err().contains("Nonesuch"));
        assert_eq!(decode(&envelope("v1", "Pod", &[0x0a, 0x7f])).unwrap_err(), "unexpected EOF");
        // metadata.managedFields[].fieldsV1, deeper than anything stored may be.
        let fields = delimited(1, "{\"a\":".repeat(90).as_bytes());
        let entry = delimited(7, &fields);
        let metadata = delimited(1, &delimited(17, &entry));
        assert!(decode(&envelope("v1", "Pod", &metadata)).is_err());
    }

    #[test]
    fn a_schema_within_schemas_without_end_is_refused() {
        let mut schema = Vec::new();
        for _ in 0..200 {
            schema = delimited(27, &schema);
        }
        assert!(Decoder { values: 0 }.message(&format!("{EXTENSIONS}.JSONSchemaProps"), &schema, 0).is_err());
    }

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (nanos, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (-5_400_000_000_000, "-1h30m0s"),
        ] {
            assert_eq!(go_duration(nanos), want);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(raw in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..300_usize) {
            for kind in ["Pod", "ConfigMap", "Event", "DeleteOptions"] {
                let body = envelope("v1", kind, &raw);
                let _ = decode(&body);
                let _ = decode(&body[..cut.min(body.len())]);
            }
        }

        /// A real body with some bytes changed.
        #[test]
        fn no_damage_makes_the_decoder_panic(at in any::<prop::sample::Index>(), by in any::<u8>(), line in 0..20_usize) {
            let text = include_str!("../../testdata/protobuf.jsonl").lines().nth(line).unwrap();
            let (body, _): (String, Value) = serde_json::from_str(text).unwrap();
            let mut bytes = STANDARD.decode(body).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            let _ = decode(&bytes);
        }
    }
}
