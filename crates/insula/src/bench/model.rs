//! A model that answers at once (or after a given time) and notes when: a stand-in for a provider that adds no time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use futures::StreamExt;
use serde_json::{Value, json};

/// When one run's model was asked, and when it had answered.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) answered: Instant,
    pub(crate) times: usize,
}

#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) url: String,
    asked: Arc<Mutex<HashMap<String, Asked>>>,
    thinks: Duration,
}

impl Model {
    pub(crate) async fn start(tasks: &kit::Tasks, thinks: Duration) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let model = Self { url: format!("http://{}/v1", listener.local_addr()?), asked: Arc::default(), thinks };
        let router = axum::Router::new().route("/v1/chat/completions", post(answer)).with_state(model.clone());
        let shutdown = tasks.shutdown().clone();
        tasks.tenant("model", async move {
            let _ = axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.begun().await }).await;
        });
        Ok(model)
    }

    /// What is known of the run whose task was `task`.
    pub(crate) fn of(&self, task: &str) -> Option<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(task).copied()
    }
}

async fn answer(State(model): State<Model>, body: Bytes) -> Response {
    let at = Instant::now();
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let task = request
        .get("messages")
        .and_then(Value::as_array)
        .and_then(|all| all.iter().rfind(|it| it.get("role").is_some_and(|role| role == "user")))
        .and_then(|it| it.get("content"))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let chunk = |delta: Value, finish: Value| {
        let it = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "bench",
                        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        Bytes::from(format!("data: {it}\n\n"))
    };
    let usage = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "bench", "choices": [],
                       "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}});
    let words = [
        chunk(json!({"role": "assistant", "content": "done"}), Value::Null),
        chunk(json!({}), json!("stop")),
        Bytes::from(format!("data: {usage}\n\ndata: [DONE]\n\n")),
    ];
    let said = futures::stream::once(async move {
        if !model.thinks.is_zero() {
            tokio::time::sleep(model.thinks).await;
        }
        let answered = Instant::now();
        let mut asked = model.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let it = asked.entry(task).or_insert(Asked { at, answered, times: 0 });
        it.times += 1;
        futures::stream::iter(words.map(Ok::<_, std::convert::Infallible>))
    })
    .flatten();
    Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(said)).unwrap_or_default()
}
