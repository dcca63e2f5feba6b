use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::stream;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use http::{StatusCode, Uri};
use kit::{ExposeSecret, Tasks};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::Script;
use super::check::{Refusal, check};
use super::script::{Chunks, Question, Reply, Rule};
use crate::{Usage, estimate_tokens};

const MAX_BODY: usize = 16 << 20;
/// A script has no clock: what it serves was always made at this second.
const CREATED: u64 = 1_767_225_600;

/// A scripted model, served until the tasks' shutdown: `POST /v1/chat/completions`, streaming and not, and
/// `GET /v1/models`. A request body is at most 16 MiB.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    address: SocketAddr,
}

impl Server {
    /// Binds `at` (port 0: a free one) and serves.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn listen(script: Script, at: SocketAddr, tasks: &Tasks) -> io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let used = script.rules.iter().map(|_| AtomicU64::new(0)).collect();
        let router = Router::new()
            .route("/v1/chat/completions", post(completions))
            .route("/v1/models", get(models))
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_path)
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .with_state(Arc::new(Model { script, used }));
        let shutdown = tasks.shutdown().begun();
        tasks.platform("scripted model", async move {
            tokio::select! {
                served = axum::serve(listener, router).into_future() => served,
                () = shutdown => Ok(()),
            }
        });
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a client takes as `baseURL`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

struct Model {
    script: Script,
    used: Vec<AtomicU64>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        reply(self.status, &self.body())
    }
}

fn reply(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

async fn no_such_path(uri: Uri) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("Invalid URL ({})", uri.path()))
}

async fn models(State(model): State<Arc<Model>>, headers: HeaderMap) -> Result<Response, Refusal> {
    model.authenticate(&headers)?;
    let data: Value = model
        .script
        .models
        .iter()
        .map(|it| json!({"id": it, "object": "model", "created": CREATED, "owned_by": "script"}))
        .collect();
    Ok(reply(StatusCode::OK, &json!({"object": "list", "data": data})))
}

async fn completions(
    State(model): State<Arc<Model>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    model.authenticate(&headers)?;
    let body = body.map_err(|error| Refusal::new(error.status(), error.body_text()))?;
    let body: Value = serde_json::from_slice(&body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("We could not parse the JSON body of your request: {error}"))
    })?;
    check(&body)?;
    let name = body.get("model").and_then(Value::as_str).unwrap_or_default();
    if !model.script.models.iter().any(|it| it == name) {
        let message = format!("The model `{name}` does not exist or you do not have access to it.");
        return Err(Refusal::new(StatusCode::NOT_FOUND, message).code("model_not_found"));
    }
    let messages = body.get("messages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let user = messages.iter().rposition(|it| role(it) == "user");
    let user_text = user.and_then(|at| messages.get(at)).map(text).unwrap_or_default();
    let since = messages.get(user.map_or(0, |at| at + 1)..).unwrap_or_default();
    let results = since.iter().filter(|it| role(it) == "tool").count();
    let rule = model.rule(&Question { model: name, user: &user_text, results }).ok_or_else(|| {
        let said: String = user_text.chars().take(200).collect();
        let message = format!("The script has no rule for model {name:?}, user {said:?}, {results} tool results.");
        Refusal::new(StatusCode::BAD_REQUEST, message)
    })?;
    tracing::info!(model = name, results, "the scripted model is asked");
    tokio::time::sleep(rule.delay).await;
    match &rule.reply {
        Reply::Fail { status, message, retry_after } => {
            let mut response = Refusal::new(*status, message).kind("scripted").into_response();
            if let Some(after) = retry_after {
                let seconds = after.as_millis().div_ceil(1000) as u64;
                response.headers_mut().insert(RETRY_AFTER, seconds.into());
            }
            Ok(response)
        }
        Reply::Answer { text, calls, chunks, usage } => {
            let text = text.as_deref();
            let answer = Answer::new(name, text, calls, usage.unwrap_or_else(|| estimate(messages, text, calls)));
            if body.get("stream") != Some(&json!(true)) {
                return Ok(reply(StatusCode::OK, &answer.whole()));
            }
            let with_usage = body.pointer("/stream_options/include_usage") == Some(&json!(true));
            Ok(paced(answer.events(chunks, with_usage), chunks.every))
        }
    }
}

impl Model {
    fn authenticate(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(key) = &self.script.key else { return Ok(()) };
        let given =
            headers.get(AUTHORIZATION).and_then(|it| it.to_str().ok()).and_then(|it| it.strip_prefix("Bearer "));
        match given {
            Some(given) if given == key.expose_secret() => Ok(()),
            Some(_) => {
                Err(Refusal::new(StatusCode::UNAUTHORIZED, "Incorrect API key provided.").code("invalid_api_key"))
            }
            None => Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer \
                 auth (i.e. Authorization: Bearer YOUR_KEY).",
            )),
        }
    }

    /// The first rule that matches and is not used up, counted as used.
    fn rule(&self, question: &Question<'_>) -> Option<&Rule> {
        let mut rules = self.script.rules.iter().zip(&self.used);
        let free = |rule: &Rule, used: &AtomicU64| {
            let count = |so_far| rule.times.is_none_or(|times| so_far < times).then_some(so_far + 1);
            used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
        };
        rules.find(|(rule, used)| rule.matches(question) && free(rule, used)).map(|(rule, _)| rule)
    }
}

fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

fn text(message: &Value) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().filter_map(|it| it.get("text").and_then(Value::as_str)).collect(),
        _ => String::new(),
    }
}

fn estimate(messages: &[Value], text: Option<&str>, calls: &[(String, String)]) -> Usage {
    let input = messages.iter().map(|it| 4 + estimate_tokens(&self::text(it))).sum();
    let calls: u64 = calls.iter().map(|(name, arguments)| estimate_tokens(name) + estimate_tokens(arguments)).sum();
    Usage { input, output: estimate_tokens(text.unwrap_or_default()) + calls, estimated: true }
}

/// One answer, before it is known in which form it is wanted.
struct Answer<'a> {
    head: Value,
    text: Option<&'a str>,
    calls: Vec<Called<'a>>,
    usage: Value,
}

impl<'a> Answer<'a> {
    fn new(model: &str, text: Option<&'a str>, calls: &'a [(String, String)], usage: Usage) -> Self {
        let calls = calls.iter().map(|(name, arguments)| Called { id: format!("call_{}", kit::id()), name, arguments });
        Self {
            head: json!({"id": format!("chatcmpl-{}", kit::id()), "created": CREATED, "model": model}),
            text,
            calls: calls.collect(),
            usage: json!({"prompt_tokens": usage.input, "completion_tokens": usage.output,
                          "total_tokens": usage.input + usage.output}),
        }
    }

    fn finish(&self) -> &'static str {
        if self.calls.is_empty() { "stop" } else { "tool_calls" }
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        with(with(self.head.clone(), "object", json!(object)), "choices", choices)
    }

    fn whole(&self) -> Value {
        let mut message = json!({"role": "assistant", "content": self.text, "refusal": null});
        if !self.calls.is_empty() {
            let calls = self.calls.iter().map(|it| it.json(it.arguments)).collect();
            message = with(message, "tool_calls", calls);
        }
        let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": self.finish()});
        with(self.object("chat.completion", json!([choice])), "usage", self.usage.clone())
    }

    /// The events of a stream; with usage, each but the last says `"usage": null`, as the real one does.
    fn events(&self, chunks: &Chunks, with_usage: bool) -> Vec<Bytes> {
        let chunk = |choices: Value, usage: &Value| {
            let mut chunk = self.object("chat.completion.chunk", choices);
            if with_usage {
                chunk = with(chunk, "usage", usage.clone());
            }
            Bytes::from(format!("data: {chunk}\n\n"))
        };
        let delta = |delta: Value, finish: Option<&str>| {
            chunk(json!([{"index": 0, "delta": delta, "finish_reason": finish}]), &Value::Null)
        };
        let first = self.text.map_or(Value::Null, |_| json!(""));
        let mut events = vec![delta(json!({"role": "assistant", "content": first}), None)];
        for piece in chunks.cut(self.text.unwrap_or_default()) {
            events.push(delta(json!({"content": piece}), None));
        }
        for (i, call) in self.calls.iter().enumerate() {
            events.push(delta(json!({"tool_calls": [with(call.json(""), "index", json!(i))]}), None));
            for piece in chunks.cut(call.arguments) {
                events.push(delta(json!({"tool_calls": [{"index": i, "function": {"arguments": piece}}]}), None));
            }
        }
        events.push(delta(json!({}), Some(self.finish())));
        if with_usage {
            events.push(chunk(json!([]), &self.usage));
        }
        events.push(Bytes::from_static(b"data: [DONE]\n\n"));
        events
    }
}

struct Called<'a> {
    id: String,
    name: &'a str,
    arguments: &'a str,
}

impl Called<'_> {
    fn json(&self, arguments: &str) -> Value {
        json!({"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}})
    }
}

fn with(mut object: Value, name: &str, value: Value) -> Value {
    if let Value::Object(fields) = &mut object {
        fields.insert(name.to_owned(), value);
    }
    object
}

fn paced(events: Vec<Bytes>, every: Duration) -> Response {
    let pieces = stream::unfold((events.into_iter(), Duration::ZERO), move |(mut events, wait)| async move {
        let event = events.next()?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Some((Ok::<_, Infallible>(event), (events, every)))
    });
    ([(CONTENT_TYPE, "text/event-stream")], Body::from_stream(pieces)).into_response()
}
