//! A model that does what a test says, good or bad.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::stream;

use super::*;

pub(super) enum Reply {
    Text(&'static str),
    /// Tools and their arguments.
    Calls(Vec<(&'static str, String)>),
    Status(u16, Vec<(&'static str, &'static str)>, String),
    /// JSON as it is.
    Raw(String),
    /// Pieces of text as a stream, which then breaks off.
    Half(&'static [&'static str]),
    /// ... which then says nothing more.
    Hang(&'static [&'static str]),
    /// ... which then ends as it should.
    Stream(&'static [&'static str]),
}

type Script = dyn Fn(usize, &Value) -> Reply + Send + Sync;

pub(super) struct Model {
    address: SocketAddr,
    seen: Arc<Seen>,
    _tasks: Tasks,
}

struct Seen {
    script: Box<Script>,
    asked: Mutex<Vec<(HeaderMap, Value)>>,
    open: tokio::sync::watch::Sender<usize>,
}

/// One request in the works; the client going away drops it.
struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

impl Model {
    /// `script` gets the number of the request, from 0, and its body.
    pub(super) async fn listen(script: impl Fn(usize, &Value) -> Reply + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = tokio::sync::watch::Sender::new(0);
        let seen = Arc::new(Seen { script: Box::new(script), asked: Mutex::default(), open });
        let router = Router::new().fallback(reply).with_state(seen.clone());
        let tasks = Tasks::new(Shutdown::new());
        tasks.tenant("model", async move { axum::serve(listener, router).await.unwrap() });
        Self { address, seen, _tasks: tasks }
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(super) fn asked(&self) -> Vec<(HeaderMap, Value)> {
        self.seen.asked.lock().unwrap().clone()
    }

    /// The messages of one request, as "role: content".
    pub(super) fn messages(&self, request: usize) -> Vec<String> {
        let asked = self.asked();
        let messages = asked[request].1["messages"].as_array().unwrap();
        messages.iter().map(|it| format!("{}: {}", it["role"].as_str().unwrap(), text(it))).collect()
    }

    /// What the tools told the model, as of its last request.
    pub(super) fn told(&self) -> Vec<String> {
        let last = self.asked().len() - 1;
        self.messages(last).iter().filter_map(|it| it.strip_prefix("tool: ")).map(str::to_owned).collect()
    }

    pub(super) async fn open_requests(&self, count: usize) {
        self.seen.open.subscribe().wait_for(|open| *open == count).await.unwrap();
    }
}

fn text(message: &Value) -> String {
    message["content"].as_str().unwrap_or_default().to_owned()
}

/// Tool results since the task.
pub(super) fn results(body: &Value) -> usize {
    body["messages"].as_array().unwrap().iter().filter(|it| it["role"] == "tool").count()
}

async fn reply(State(seen): State<Arc<Seen>>, headers: HeaderMap, body: Bytes) -> Response {
    seen.open.send_modify(|open| *open += 1);
    let open = Open(seen.clone());
    let body: Value = serde_json::from_slice(&body).unwrap();
    let number = {
        let mut asked = seen.asked.lock().unwrap();
        asked.push((headers, body.clone()));
        asked.len() - 1
    };
    let json = |body: Value| ([("content-type", "application/json")], body.to_string()).into_response();
    let whole = |message: Value| {
        let usage = json!({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120});
        let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
        json(json!({"object": "chat.completion", "choices": [choice], "usage": usage}))
    };
    match (seen.script)(number, &body) {
        Reply::Text(text) => whole(json!({"role": "assistant", "content": text})),
        Reply::Calls(calls) => {
            let calls: Vec<_> = calls
                .iter()
                .enumerate()
                .map(|(index, (name, arguments))| {
                    let id = format!("call-{}-{index}", results(&body));
                    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
                })
                .collect();
            whole(json!({"role": "assistant", "content": null, "tool_calls": calls}))
        }
        Reply::Status(status, headers, said) => {
            let error = json!({"error": {"message": said, "type": "x"}}).to_string();
            let mut response = Response::builder().status(status).header("content-type", "application/json");
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Body::from(error)).unwrap()
        }
        Reply::Raw(body) => ([("content-type", "application/json")], body).into_response(),
        Reply::Half(pieces) => stream_of(pieces, End::Broken, open),
        Reply::Hang(pieces) => stream_of(pieces, End::Never, open),
        Reply::Stream(pieces) => stream_of(pieces, End::Good, open),
    }
}

enum End {
    Good,
    Broken,
    Never,
}

fn stream_of(pieces: &'static [&'static str], end: End, open: Open) -> Response {
    let event = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        Bytes::from(format!("data: {}\n\n", json!({"object": "chat.completion.chunk", "choices": [choice]})))
    };
    let mut events: Vec<_> =
        pieces.iter().map(|piece| Ok::<_, std::io::Error>(event(json!({"content": piece}), Value::Null))).collect();
    match end {
        End::Good => {
            events.push(Ok(event(json!({}), json!("stop"))));
            events.push(Ok(Bytes::from("data: [DONE]\n\n")));
        }
        End::Broken | End::Never => {}
    }
    let tail = stream::once(async move {
        let _open = open;
        match end {
            End::Good => Ok(Bytes::new()),
            End::Broken => {
                tokio::task::yield_now().await; // The beginning is sent.
                Err(std::io::Error::other("cut"))
            }
            End::Never => std::future::pending().await,
        }
    });
    let body = Body::from_stream(stream::StreamExt::chain(stream::iter(events), tail));
    ([("content-type", "text/event-stream")], body).into_response()
}
