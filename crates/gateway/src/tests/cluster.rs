use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// As much of a Kubernetes API as knows the AgentRun `r` in the namespace `ns`, or that there is none.
#[derive(Clone)]
pub(super) struct Cluster {
    run: Arc<Mutex<Option<Value>>>,
    watch: broadcast::Sender<Value>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self { run: Arc::default(), watch: broadcast::Sender::new(64) }
    }
}

impl Cluster {
    pub(super) fn client(&self) -> kube::Client {
        let runs = "/apis/sympozium.ai/v1alpha1/namespaces/ns/agentruns";
        let router =
            Router::new().route(runs, get(list)).route(&format!("{runs}/r"), get(one)).with_state(self.clone());
        kube::Client::new(router.fallback(missing), "default")
    }

    /// Makes the run, or changes its status.
    pub(super) fn put(&self, uid: &str, status: Value) {
        let mut run = self.run.lock().unwrap();
        let change = if run.is_some() { "MODIFIED" } else { "ADDED" };
        let spec = json!({"instanceRef": "me", "agentId": "primary", "sessionKey": "", "task": "go",
                          "model": {"provider": "openai", "model": "m", "authSecretRef": ""}});
        let object = json!({"apiVersion": "sympozium.ai/v1alpha1", "kind": "AgentRun", "spec": spec, "status": status,
                            "metadata": {"name": "r", "namespace": "ns", "uid": uid, "resourceVersion": "1"}});
        *run = Some(object.clone());
        let _ = self.watch.send(json!({"type": change, "object": object}));
    }

    pub(super) fn delete(&self) {
        let object = self.run.lock().unwrap().take().unwrap();
        let _ = self.watch.send(json!({"type": "DELETED", "object": object}));
    }

    /// Returns once somebody watches.
    pub(super) fn watched(&self) -> bool {
        self.watch.receiver_count() > 0
    }
}

fn reply(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}

async fn missing() -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "none"});
    (StatusCode::NOT_FOUND, reply(&status)).into_response()
}

async fn one(State(cluster): State<Cluster>) -> Response {
    let run = cluster.run.lock().unwrap().clone();
    match run {
        Some(run) => reply(&run),
        None => missing().await,
    }
}

async fn list(State(cluster): State<Cluster>, Query(query): Query<Vec<(String, String)>>) -> Response {
    assert!(query.contains(&("fieldSelector".into(), "metadata.name=r".into())), "{query:?}");
    if !query.iter().any(|(name, value)| name == "watch" && value == "true") {
        let items: Vec<Value> = cluster.run.lock().unwrap().iter().cloned().collect();
        let list = json!({"kind": "AgentRunList", "apiVersion": "sympozium.ai/v1alpha1", "metadata": {"resourceVersion": "1"}, "items": items});
        return reply(&list);
    }
    let events = stream::unfold(cluster.watch.subscribe(), |mut events| async move {
        let event = events.recv().await.ok()?;
        Some((Ok::<_, Infallible>(Bytes::from(format!("{event}\n"))), events))
    });
    Body::from_stream(events).into_response()
}
