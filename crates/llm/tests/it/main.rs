//! The client against the scripted model and against servers that misbehave, over loopback.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is a test, and so are its helpers"
)]

mod refusals;
mod scripted;
mod server;
mod strays;
mod wire;

use llm::{Client, Message, Request, Tool};
use serde_json::json;

fn client(base_url: &str, key: Option<&str>) -> Client {
    Client::new(base_url, key.map(kit::SecretString::from), kit::http::client().unwrap()).unwrap()
}

/// A question of one user message to the model `m`.
fn ask(text: &str) -> Request {
    Request {
        model: "m".into(),
        messages: vec![Message::User { text: text.into() }],
        tools: Vec::new(),
        thinking: None,
    }
}

fn tool(name: &str) -> Tool {
    let parameters = json!({"type": "object", "properties": {"command": {"type": "string"}}});
    Tool { name: name.into(), description: "Does it.".into(), parameters }
}
