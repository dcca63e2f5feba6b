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
#[derive(Clone)]
pub(crate) struct Asked {
    /// First.
    pub(crate) at: Instant,
    /// Last.
    pub(crate) answered: Instant,
    /// From each answer until the next question.
    pub(crate) between: Vec<Duration>,
    /// No tool said that it failed.
    pub(crate) tools_acted: bool,
}

impl Asked {
    pub(crate) fn times(&self) -> usize {
        self.between.len() + 1
    }
}

#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) url: String,
    asked: Arc<Mutex<HashMap<String, Asked>>>,
    thinks: Duration,
    calls: usize,
}

impl Model {
    /// `calls`: how often it calls `execute_command` in each run before it answers.
    pub(crate) async fn start(tasks: &kit::Tasks, thinks: Duration, calls: usize) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let model = Self { url: format!("http://{}/v1", listener.local_addr()?), asked: Arc::default(), thinks, calls };
        let router = axum::Router::new().route("/v1/chat/completions", post(answer)).with_state(model.clone());
        let shutdown = tasks.shutdown().clone();
        tasks.tenant("model", async move {
            let _ = axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.begun().await }).await;
        });
        Ok(model)
    }

    /// What is known of the run whose task was `task`.
    pub(crate) fn of(&self, task: &str) -> Option<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(task).cloned()
    }
}

async fn answer(State(model): State<Model>, body: Bytes) -> Response {
    let at = Instant::now();
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let messages = request.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let said_by = |role: &'static str| {
        let of_role = messages.iter().filter(move |it| it.get("role").is_some_and(|it| it == role));
        of_role.filter_map(|it| it.get("content")?.as_str())
    };
    let task = said_by("user").next_back().unwrap_or_default().to_owned();
    let results = said_by("tool").count();
    let acted = said_by("tool").all(|it| it == "[exit code 0, no output]");
    let chunk = |delta: Value, finish: Value| {
        let it = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "bench",
                        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        Bytes::from(format!("data: {it}\n\n"))
    };
    let usage = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "bench", "choices": [],
                       "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}});
    let (delta, finish) = if results < model.calls {
        let function = json!({"name": "execute_command", "arguments": "{\"command\": \"true\"}"});
        let call = json!({"index": 0, "id": format!("call_{results}"), "type": "function", "function": function});
        (json!({"role": "assistant", "content": null, "tool_calls": [call]}), "tool_calls")
    } else {
        (json!({"role": "assistant", "content": "done"}), "stop")
    };
    let words = [
        chunk(delta, Value::Null),
        chunk(json!({}), json!(finish)),
        Bytes::from(format!("data: {usage}\n\ndata: [DONE]\n\n")),
    ];
    let said = futures::stream::once(async move {
        if !model.thinks.is_zero() {
            tokio::time::sleep(model.thinks).await;
        }
        let answered = Instant::now();
        let mut asked = model.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let told = asked.entry(task);
        let told = told.and_modify(|it| it.between.push(at.saturating_duration_since(it.answered)));
        let it = told.or_insert(Asked { at, answered, between: Vec::new(), tools_acted: true });
        it.answered = answered;
        it.tools_acted &= acted;
        futures::stream::iter(words.map(Ok::<_, std::convert::Infallible>))
    })
    .flatten();
    Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(said)).unwrap_or_default()
}
