//! Through the HTTP door, with a ledger in memory and a Kubernetes API of one run.

mod cluster;
mod doors;
mod runs;
mod sockets;

use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use futures::StreamExt;
use http::{Request, StatusCode};
use jiff::Timestamp;
use kit::{Clock, SecretString, Shutdown, Tasks};
use ledger::{Job, Ledger, Location, RunId, Ticket};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::Options;
use cluster::Cluster;

const EVENTS: &str = "/api/v1/namespaces/ns/runs/r/events";

struct House {
    cluster: Cluster,
    ledger: Ledger,
    tasks: Tasks,
}

impl House {
    fn new() -> Self {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        let ledger = Ledger::open(Location::Memory, clock).unwrap();
        Self { cluster: Cluster::default(), ledger, tasks: Tasks::new(Shutdown::new()) }
    }

    fn options(&self) -> Options {
        let (ledger, tasks) = (self.ledger.clone(), self.tasks.clone());
        Options { ledger, client: self.cluster.client(), api_key: SecretString::from("the-key"), tasks }
    }

    fn router(&self) -> Router {
        crate::router(self.options())
    }

    async fn submit(&self, run: &str) {
        let job = Job { task: "go".into(), ..Job::default() };
        let ticket = Ticket {
            run: run.into(),
            namespace: "ns".into(),
            name: "r".into(),
            instance: "me".into(),
            session: String::new(),
            created: Timestamp::UNIX_EPOCH,
            limit: 1,
            timeout: Duration::from_secs(600),
            job,
        };
        self.ledger.submit(ticket).await.unwrap();
    }
}

async fn get(router: &Router, path: &str, headers: &[(&str, &str)]) -> http::Response<Body> {
    let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn problem(response: http::Response<Body>) -> (StatusCode, String) {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((&body["type"], &body["status"]), (&json!("about:blank"), &json!(status.as_u16())));
    (status, body["detail"].as_str().unwrap().to_owned())
}

/// A stream of events, read as a browser reads it.
struct Stream {
    body: BodyDataStream,
    rest: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

impl Stream {
    async fn open(router: &Router, last: Option<&str>) -> Self {
        let mut headers = vec![("authorization", "Bearer the-key")];
        headers.extend(last.map(|last| ("last-event-id", last)));
        let response = get(router, EVENTS, &headers).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), rest: String::new() }
    }

    /// The next block of lines.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.rest.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.rest = rest;
                return Some(block);
            }
            self.rest.push_str(std::str::from_utf8(&self.body.next().await?.unwrap()).unwrap());
        }
    }

    async fn next(&mut self) -> Option<Event> {
        let block = self.block().await?;
        let field = |name: &str| block.lines().find_map(|it| it.strip_prefix(name)).map(str::to_owned);
        let data = serde_json::from_str(&field("data: ").unwrap()).unwrap();
        Some(Event { name: field("event: ").unwrap(), id: field("id: "), data })
    }

    async fn all(mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }
}

fn event(name: &str, data: Value) -> Event {
    Event { name: name.into(), id: None, data }
}

fn durable(id: &str, name: &str, mut data: Value) -> Event {
    data["at"] = json!("1970-01-01T00:00:00Z");
    data["attempt"] = json!(1);
    Event { name: name.into(), id: Some(id.into()), data }
}

fn run(id: &str) -> RunId {
    id.into()
}
