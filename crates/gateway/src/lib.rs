//! The front door over HTTP, for everybody but kubectl: who asks is checked here, and how much they may ask for.
//!
//! | path | what |
//! |---|---|
//! | `GET /healthz` | 200 when it serves; no key |
//! | `GET /api/v1/namespaces/{ns}/runs/{name}/events` | a run as server-sent events, as it goes on |
//!
//! Everything under `/api` wants the API key. What is refused is refused with RFC 9457's problem JSON, whose `detail` says
//! what to do.
//!
//! # A run's events
//!
//! Server-sent events that end after the run's outcome:
//!
//! | event | data | id |
//! |---|---|---|
//! | `state` | `{"state": "pending", "conditions": [{type, status, reason, message}]}` before the run is queued | |
//! | `state` | `{"state": "queued"}`, `{"state": "running", "attempt"}` | |
//! | `state` | `{"state": "succeeded", "result", "usage"}`, `{"state": "failed", "reason", "message", "usage"}`: the last | yes |
//! | `asked` | `{"turn", "model"}`: the model is asked | yes |
//! | `text` | `{"text", "after"}`: a piece of the answer that is being written since the event `after` | |
//! | `retry` | `{"why", "wait"}`: the model is asked again after so many seconds | yes |
//! | `answer` | `{"text", "calls": [{id, name, arguments}]}`: the model's whole answer | yes |
//! | `usage` | `{"inputTokens", "outputTokens", "totalTokens"}` of that answer | yes |
//! | `tool_call` | `{"id", "name", "arguments"}`: a tool is about to act | yes |
//! | `tool_result` | `{"id", "output", "failed"}` | yes |
//! | `note` | `{"text"}` | yes |
//!
//! What has an id is durable, carries `at` (RFC 3339) and `attempt`, and comes again to nobody who sends the id as
//! `Last-Event-ID`; after the last event that is answered with 204, at which browsers stop asking. When `retry` follows
//! `text` instead of `answer`, that text counts for nothing. A comment keeps quiet connections alive. Who does not keep up
//! is cut off, and goes on where it was by asking again.

mod access;
mod problem;
mod runs;
mod serve;

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use http::{StatusCode, Uri};
use kit::{SecretString, Tasks};
use ledger::Ledger;
use tokio::net::TcpListener;

use problem::Problem;

/// What the gateway is made of.
pub struct Options {
    pub ledger: Ledger,
    /// To look up what an id or a phase of an object is; nothing is written with it.
    pub client: kube::Client,
    /// What `Authorization: Bearer` must carry under `/api`.
    pub api_key: SecretString,
    pub tasks: Tasks,
}

/// Why the gateway does not serve.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {at}")]
pub struct Error {
    pub at: SocketAddr,
    #[source]
    source: io::Error,
}

/// The gateway, once it listens.
#[derive(Clone, Copy, Debug)]
pub struct Gateway;

impl Gateway {
    /// Listens on `at` (port 0: a free one) with plain HTTP, meant for loopback, and serves until the tasks' shutdown.
    /// Returns the address.
    ///
    /// At most 1024 connections, of which 512 follow runs; a client that takes nothing for 30 s is cut off.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn listen(options: Options, at: SocketAddr) -> Result<SocketAddr, Error> {
        let bound = TcpListener::bind(at).await.and_then(|it| Ok((it.local_addr()?, it)));
        let (address, listener) = bound.map_err(|source| Error { at, source })?;
        let tasks = options.tasks.clone();
        serve::start(listener, router(options), &tasks);
        Ok(address)
    }
}

/// All doors; each module brings its own.
fn router(options: Options) -> Router {
    let Options { ledger, client, api_key, tasks } = options;
    let api = runs::router(ledger, client, tasks.shutdown().clone());
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .merge(access::guard(api, api_key))
        .fallback(nothing)
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "This path does not know that method.")
        })
}

async fn nothing(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("There is nothing at {}.", uri.path()))
}

#[cfg(test)]
mod tests;
