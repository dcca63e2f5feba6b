//! Requests: the query, and bodies with a limit.

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use serde::de::DeserializeOwned;
use wire::execd::code;
use wire::query;

use crate::reply::{Problem, Result};

/// The longest JSON body. Files of any size come as uploads.
const LONGEST: usize = 8 << 20;

/// The parameters of a query, percent-decoded to bytes: a file's name need not be text.
pub(crate) struct Query(Vec<(Vec<u8>, Vec<u8>)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        Self(query::pairs(query.unwrap_or_default()).collect())
    }

    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(name, _)| name == key.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// The value of `key`; an empty one counts as absent.
    pub(crate) fn get<'a>(&'a self, key: &'a str) -> Option<&'a [u8]> {
        self.all(key).next().filter(|value| !value.is_empty())
    }

    pub(crate) fn need<'a>(&'a self, key: &'a str) -> Result<&'a [u8]> {
        self.get(key).ok_or_else(|| {
            Problem::new(StatusCode::BAD_REQUEST, code::MISSING_QUERY, format!("missing query parameter '{key}'"))
        })
    }

    pub(crate) fn text<'a>(&'a self, key: &'a str) -> Option<std::borrow::Cow<'a, str>> {
        self.get(key).map(String::from_utf8_lossy)
    }

    /// A number of at least `least`.
    pub(crate) fn number(&self, key: &str, least: u64) -> Result<Option<u64>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(number) if number >= least => Ok(Some(number)),
            _ => Err(Problem::parameter(format!("{key} must be a whole number, at least {least}"))),
        }
    }
}

/// One segment of a path, decoded (here a `+` is a plus).
pub(crate) fn segment(text: &str) -> String {
    String::from_utf8_lossy(&query::decode(&text.replace('+', "%2B"))).into_owned()
}

/// The JSON of a body; an empty body is the default where there is one.
pub(crate) async fn json<T: DeserializeOwned>(body: &mut Incoming) -> Result<T> {
    let bytes = bytes(body).await?;
    serde_json::from_slice(&bytes).map_err(|error| Problem::invalid(format!("error parsing request: {error}")))
}

pub(crate) async fn json_or_default<T: DeserializeOwned + Default>(body: &mut Incoming) -> Result<T> {
    let bytes = bytes(body).await?;
    if bytes.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| Problem::invalid(format!("error parsing request: {error}")))
}

async fn bytes(body: &mut Incoming) -> Result<bytes::Bytes> {
    let too_long = || Problem::too_large(format!("the body is over {LONGEST} bytes"));
    if body.size_hint().lower() > LONGEST as u64 {
        return Err(too_long());
    }
    match Limited::new(body, LONGEST).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_long()),
        Err(error) => Err(Problem::invalid(format!("the body did not arrive: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_to_bytes() {
        let query = Query::parse(Some("path=%2Ftmp%2Fa+b%0A&path=%ff&n=7&empty=&%zz"));
        assert_eq!(query.all("path").collect::<Vec<_>>(), [b"/tmp/a b\n".as_slice(), b"\xff"]);
        assert_eq!((query.number("n", 1).unwrap(), query.get("empty"), query.get("none")), (Some(7), None, None));
        assert!(query.number("path", 0).is_err() && query.number("n", 8).is_err());
        assert_eq!(segment("a+b%2Fc"), "a+b/c");
    }
}
