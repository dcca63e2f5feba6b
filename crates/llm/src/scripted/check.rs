use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::{Value, json};

/// Why a request is refused, as OpenAI says it.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    message: String,
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind: "invalid_request_error", param: None, code: None }
    }

    pub(super) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(super) fn kind(self, kind: &'static str) -> Self {
        Self { kind, ..self }
    }

    pub(super) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

fn invalid(param: impl Into<String>, message: impl Into<String>) -> Refusal {
    Refusal { param: Some(param.into()), ..Refusal::new(StatusCode::BAD_REQUEST, message) }
}

/// Every parameter of the reference; the real one refuses what it does not know.
const PARAMETERS: &[&str] = &[
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "modalities",
    "model",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
];
const ROLES: &[&str] = &["system", "assistant", "user", "function", "tool", "developer"];
const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh"];

/// What OpenAI refuses in a request to chat completions, whatever the model.
pub(super) fn check(body: &Value) -> Result<(), Refusal> {
    let Some(fields) = body.as_object() else {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "We could not parse the JSON body of your request: it is no object.",
        ));
    };
    if let Some(name) = fields.keys().find(|it| !PARAMETERS.contains(&it.as_str())) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("Unrecognized request argument supplied: {name}")));
    }
    if !fields.get("model").is_some_and(Value::is_string) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "you must provide a model parameter"));
    }
    let streams = match fields.get("stream") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(it)) => *it,
        Some(_) => return Err(invalid("stream", "Invalid type for 'stream': expected a boolean.")),
    };
    if !streams && fields.get("stream_options").is_some_and(|it| !it.is_null()) {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
        return Err(invalid("stream_options", message));
    }
    if let Some(effort) = fields.get("reasoning_effort").filter(|it| !it.is_null()) {
        one_of("reasoning_effort", effort, EFFORTS)?;
    }
    if let Some(tools) = fields.get("tools") {
        for (i, tool) in list("tools", tools)?.iter().enumerate() {
            let name = tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            check_name(&format!("tools[{i}].function.name"), name)?;
        }
    }
    let messages =
        fields.get("messages").ok_or_else(|| invalid("messages", "Missing required parameter: 'messages'."))?;
    let messages = list("messages", messages)?;
    for (i, message) in messages.iter().enumerate() {
        check_message(&format!("messages[{i}]"), message)?;
    }
    check_pairs(messages)
}

fn check_message(at: &str, message: &Value) -> Result<(), Refusal> {
    let role = message.get("role").ok_or_else(|| invalid(at, format!("Missing required parameter: '{at}.role'.")))?;
    one_of(&format!("{at}.role"), role, ROLES)?;
    let calls = message.get("tool_calls").filter(|it| !it.is_null());
    if let Some(calls) = calls {
        let at = format!("{at}.tool_calls");
        for (i, call) in list(&at, calls)?.iter().enumerate() {
            for (field, pointer) in [("id", "/id"), ("function.arguments", "/function/arguments")] {
                if !call.pointer(pointer).is_some_and(Value::is_string) {
                    return Err(invalid(&at, format!("Missing required parameter: '{at}[{i}].{field}'.")));
                }
            }
            let name = call.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            check_name(&format!("{at}[{i}].function.name"), name)?;
        }
    }
    match message.get("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) if !parts.is_empty() => Ok(()),
        None | Some(Value::Null) if calls.is_some() && role == "assistant" => Ok(()),
        _ => Err(invalid(format!("{at}.content"), "Invalid value for 'content': expected a string, got null.")),
    }
}

fn check_pairs(messages: &[Value]) -> Result<(), Refusal> {
    let mut open = BTreeSet::new();
    let unanswered = |open: &BTreeSet<&str>| {
        let ids = open.iter().copied().collect::<Vec<_>>().join(", ");
        let message = format!(
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. \
             The following tool_call_ids did not have response messages: {ids}"
        );
        Err(invalid("messages", message))
    };
    for (i, message) in messages.iter().enumerate() {
        if message.get("role").and_then(Value::as_str) == Some("tool") {
            if !open.remove(message.get("tool_call_id").and_then(Value::as_str).unwrap_or_default()) {
                let message = "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with \
                               'tool_calls'.";
                return Err(invalid(format!("messages.[{i}].role"), message));
            }
            continue;
        }
        if !open.is_empty() {
            return unanswered(&open);
        }
        let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        open = calls.filter_map(|it| it.get("id").and_then(Value::as_str)).collect();
    }
    if open.is_empty() { Ok(()) } else { unanswered(&open) }
}

fn list<'a>(at: &str, value: &'a Value) -> Result<&'a [Value], Refusal> {
    let list = value.as_array().ok_or_else(|| invalid(at, format!("Invalid type for '{at}': expected an array.")))?;
    if list.is_empty() {
        let message = format!(
            "Invalid '{at}': empty array. Expected an array with minimum length 1, but got an empty array instead."
        );
        return Err(invalid(at, message).code("empty_array"));
    }
    Ok(list)
}

fn one_of(at: &str, value: &Value, known: &[&str]) -> Result<(), Refusal> {
    if value.as_str().is_some_and(|it| known.contains(&it)) {
        return Ok(());
    }
    let known = known.iter().map(|it| format!("'{it}'")).collect::<Vec<_>>().join(", ");
    let got = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Err(invalid(at, format!("Invalid value: '{got}'. Supported values are: {known}.")).code("invalid_value"))
}

fn check_name(at: &str, name: &str) -> Result<(), Refusal> {
    let good =
        (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if good {
        return Ok(());
    }
    let message = format!(
        "Invalid '{at}': string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'."
    );
    Err(invalid(at, message).code("invalid_value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(change: Value) -> String {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        check(&body).err().map_or_else(String::new, |it| it.message)
    }

    #[test]
    fn what_the_real_one_refuses_is_refused_in_its_words() {
        let calls = json!([{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        let asks = json!({"role": "assistant", "content": null, "tool_calls": calls});
        let tells = json!({"role": "tool", "tool_call_id": "a", "content": "x"});
        assert_eq!(
            said(json!({"messages": [asks, tells, {"role": "user", "content": [{"type": "text", "text": "x"}]}]})),
            ""
        );
        for (change, words) in [
            (json!({"messages": [asks]}), "did not have response messages: a"),
            (json!({"messages": [asks, {"role": "user", "content": "x"}]}), "did not have response messages: a"),
            (json!({"messages": [tells]}), "must be a response to a preceeding message with 'tool_calls'"),
            (json!({"messages": [asks, tells, tells]}), "must be a response to a preceeding message with 'tool_calls'"),
            (json!({"messages": []}), "Invalid 'messages': empty array"),
            (
                json!({"messages": [{"role": "robot", "content": "x"}]}),
                "Invalid value: 'robot'. Supported values are: 'system'",
            ),
            (json!({"messages": [{"role": "assistant", "content": null}]}), "expected a string, got null"),
            (
                json!({"messages": [{"role": "assistant", "tool_calls": []}]}),
                "Invalid 'messages[0].tool_calls': empty array",
            ),
            (json!({"model": 1}), "you must provide a model parameter"),
            (json!({"tools": []}), "Invalid 'tools': empty array"),
            (
                json!({"tools": [{"function": {"name": "a.b"}}]}),
                "Invalid 'tools[0].function.name': string does not match",
            ),
            (json!({"stream_options": {"include_usage": true}}), "only allowed when 'stream' is enabled"),
            (json!({"reasoning_effort": "off"}), "Invalid value: 'off'. Supported values are: 'none'"),
            (json!({"thinking": "high"}), "Unrecognized request argument supplied: thinking"),
        ] {
            let message = said(change.clone());
            assert!(message.contains(words), "{change}: {message}");
        }
    }
}
