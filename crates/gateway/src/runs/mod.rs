//! A run, seen from outside; the crate's documentation says how.

mod events;
mod told;

use std::sync::Arc;

use api::agents::AgentRun;
use axum::Router;
use axum::extract::{Path, State};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use kit::{Class, Shutdown};
use kube::Api;
use ledger::{Ledger, RunId};
use tokio::sync::Semaphore;

use crate::problem::Problem;
use events::Events;
use told::Place;

/// Runs followed at once.
const FOLLOWERS: usize = 512;

pub(crate) struct Runs {
    ledger: Ledger,
    client: kube::Client,
    shutdown: Shutdown,
    places: Arc<Semaphore>,
}

pub(crate) fn router(ledger: Ledger, client: kube::Client, shutdown: Shutdown) -> Router {
    let places = Arc::new(Semaphore::new(FOLLOWERS));
    Router::new().route("/api/v1/namespaces/{namespace}/runs/{name}/events", get(events)).with_state(Arc::new(Runs {
        ledger,
        client,
        shutdown,
        places,
    }))
}

async fn events(
    State(runs): State<Arc<Runs>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = match headers.get("last-event-id") {
        None => Place::default(),
        Some(id) => id.to_str().ok().and_then(Place::parse).ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "Last-Event-ID is no id of these events. Leave it out to see all of them.",
            )
        })?,
    };
    if after == Place::End {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let place = runs.places.clone().try_acquire_owned().map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{FOLLOWERS} runs are followed already. Try again later."),
        )
    })?;
    let missing = || {
        Problem::new(StatusCode::NOT_FOUND, format!("There is no AgentRun {name:?} in the namespace {namespace:?}."))
    };
    if !is_name(&namespace) || !is_name(&name) {
        return Err(missing());
    }
    let api: Api<AgentRun> = Api::namespaced(runs.client.clone(), &namespace);
    let found = api.get_opt(&name).await.map_err(|error| Problem::behind(Class::Retry(None), &error))?;
    let object = found.ok_or_else(missing)?;
    let run = RunId::from(object.metadata.uid.as_deref().unwrap_or_default());
    let known = runs.ledger.run(&run).await.map_err(|error| Problem::behind(error.class(), &error))?.is_some();
    let events = Events::new(runs.ledger.clone(), run, after, (!known).then_some((api, object)));
    let stream = events.until(runs.shutdown.begun(), place);
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

/// Whether Kubernetes could have an object of that name; anything else must not get into a path.
fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        && !text.starts_with('.')
}
