use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use kit::{ExposeSecret, SecretString};

use crate::problem::Problem;

/// Lets only those through to a router's paths who carry the key.
pub(crate) fn guard(router: Router, key: SecretString) -> Router {
    let key = Arc::new(key);
    router.route_layer(from_fn(move |request: Request, next: Next| {
        let key = key.clone();
        async move {
            match check(request.headers(), &key) {
                Ok(()) => next.run(request).await,
                Err(refusal) => refusal,
            }
        }
    }))
}

#[expect(clippy::result_large_err, reason = "the refusal is the response")]
fn check(headers: &HeaderMap, key: &SecretString) -> Result<(), Response> {
    let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(bearer);
    let detail = match given {
        Some(given) if same(given, key.expose_secret().as_bytes()) => return Ok(()),
        Some(_) => "This is not the API key. It is apiKey in the file that --ready-file names.",
        None => "Send the API key as 'Authorization: Bearer KEY'. It is apiKey in the file that --ready-file names.",
    };
    let mut refusal = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
    refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Err(refusal)
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Takes as long wherever the two differ; only the key's length, which is no secret, shows.
fn same(given: &[u8], key: &[u8]) -> bool {
    let differ = given.iter().zip(key).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    given.len() == key.len() && differ == 0
}
