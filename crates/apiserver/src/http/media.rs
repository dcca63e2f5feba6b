//! Content negotiation: what a body is, and what an answer shall be.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::Value;

use super::{json, yaml};
use crate::object::protobuf;
use crate::object::status::Problem;

/// What Kubernetes names as acceptable.
pub(crate) const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const SERVED_TYPES: [&str; 2] = ["application/json", "application/yaml"];

/// The shape of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The objects themselves.
    Plain,
    /// Rows and columns, in this version of `meta.k8s.io`.
    Table { version: &'static str },
    /// Their metadata alone.
    Metadata { version: &'static str },
}

/// What the client wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accept {
    pub(crate) shape: Shape,
    pub(crate) yaml: bool,
}

impl Accept {
    pub(crate) const JSON: Self = Self { shape: Shape::Plain, yaml: false };

    /// The first clause of `Accept` that can be served.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        Self::choose(headers, |_| true)
    }

    /// The same for what is never a table: reviews.
    pub(crate) fn without_tables(headers: &HeaderMap) -> Result<Self, Problem> {
        Self::choose(headers, |it| !matches!(it.shape, Shape::Table { .. }))
    }

    fn choose(headers: &HeaderMap, served: impl Fn(&Self) -> bool) -> Result<Self, Problem> {
        let mut clauses = Vec::new();
        for value in headers.get_all(ACCEPT) {
            clauses.extend(value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|it| !it.is_empty()));
        }
        if clauses.is_empty() {
            return Ok(Self::JSON);
        }
        // A stable sort by weight, as goautoneg does: order decides between equals.
        let mut weighted: Vec<(f32, &str)> = clauses.iter().map(|clause| (weight(clause), *clause)).collect();
        weighted.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut known = weighted.iter().filter_map(|(_, clause)| Self::clause(clause));
        known.find(served).ok_or_else(|| refusal(&clauses))
    }

    fn clause(clause: &str) -> Option<Self> {
        let mut parts = clause.split(';').map(str::trim);
        let yaml = match parts.next()? {
            "application/json" | "*/*" | "application/*" => false,
            "application/yaml" => true,
            _ => return None,
        };
        let (mut kind, mut group, mut version) = ("", "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => kind = value,
                Some(("g", value)) => group = value,
                Some(("v", value)) => version = value,
                _ => {}
            }
        }
        if kind.is_empty() {
            return Some(Self { shape: Shape::Plain, yaml });
        }
        let version = match (group, version) {
            ("meta.k8s.io", "v1") => "v1",
            ("meta.k8s.io", "v1beta1") => "v1beta1",
            _ => return None,
        };
        let shape = match kind {
            "Table" => Shape::Table { version },
            "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata { version },
            _ => return None,
        };
        Some(Self { shape, yaml })
    }
}

/// Which words tell that nothing fits: the router's when no media type is known, the serializer's otherwise.
fn refusal(clauses: &[&str]) -> Problem {
    let known = |clause: &&str| MEDIA_TYPES.contains(&clause.split(';').next().unwrap_or_default().trim());
    if clauses.iter().any(known) {
        return Problem::not_acceptable(&SERVED_TYPES);
    }
    let message = format!("406: Not Acceptable\n\nAvailable representations: {}", MEDIA_TYPES.join(", "));
    Problem { message, details: Some(Box::default()), ..Problem::not_acceptable(&MEDIA_TYPES) }
}

fn weight(clause: &str) -> f32 {
    let said = clause.split(';').find_map(|part| part.trim().strip_prefix("q=")?.parse().ok());
    said.unwrap_or(1.0)
}

/// A body's media type without its parameters; JSON when nothing is said.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let said = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    said.split(';').next().unwrap_or_default().trim()
}

/// A decoded body, and the fields that it names twice, of which the last ones hold.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) value: Value,
    pub(crate) duplicates: Duplicates,
}

/// Kubernetes reads JSON and YAML with different libraries, which tell of duplicates differently.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Duplicates {
    /// Paths, and how many different fields were named before in the whole body.
    Json(Vec<(usize, String)>),
    /// Complaints.
    Yaml(Vec<String>),
}

impl Duplicates {
    pub(crate) const NONE: Self = Self::Json(Vec::new());

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Json(paths) => paths.is_empty(),
            Self::Yaml(lines) => lines.is_empty(),
        }
    }

    /// Each as a warning.
    pub(crate) fn warnings(&self) -> Vec<String> {
        match self {
            Self::Json(paths) => paths.iter().map(|(_, path)| duplicate(path)).collect(),
            Self::Yaml(lines) => lines.clone(),
        }
    }

    /// As errors of a strict decoder.
    pub(crate) fn errors(&self) -> Vec<String> {
        match self {
            Self::Yaml(lines) if !lines.is_empty() => {
                vec![format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))]
            }
            _ => self.warnings(),
        }
    }
}

/// Why a body could not be decoded: not at all, or a 415.
pub(crate) enum Undecodable {
    Syntax(String),
    Unknown(Problem),
}

pub(crate) fn duplicate(path: &str) -> String {
    format!("duplicate field {path:?}")
}

/// Decodes an object by its media type.
pub(crate) fn decode(body: &Bytes, media_type: &str) -> Result<Decoded, Undecodable> {
    match media_type {
        "" | "application/json" => json::parse(body).map_err(Undecodable::Syntax),
        "application/yaml" => yaml::parse(body).map_err(Undecodable::Syntax),
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::decode(body).map_err(Undecodable::Syntax)?;
            Ok(Decoded { value, duplicates: Duplicates::NONE })
        }
        _ => Err(Undecodable::Unknown(Problem::unsupported_media_type(&MEDIA_TYPES))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn accept(text: &'static str) -> Option<Accept> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(text));
        Accept::of(&headers).ok()
    }

    #[test]
    fn the_first_clause_that_can_be_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(kubectl).unwrap().shape, Shape::Table { version: "v1" });
        assert_eq!(accept("application/vnd.kubernetes.protobuf, application/json").unwrap(), Accept::JSON);
        assert!(accept("application/json;q=0.5,application/yaml").unwrap().yaml);
        assert_eq!(
            accept("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").unwrap().shape,
            Shape::Metadata { version: "v1" }
        );
        assert_eq!(accept("*/*").unwrap(), Accept::JSON);
        assert_eq!(accept("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(accept("application/json;as=Status;v=v1;g=meta.k8s.io"), None);
    }
}
