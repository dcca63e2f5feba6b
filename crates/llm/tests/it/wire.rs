//! What goes over the wire, and the forms of it that servers in use are known to send.

use kit::Class;
use llm::{Call, Effort, Error, Finish, Message, Usage};
use serde_json::{Value, json};

use crate::server::{Raw, Then, response, stream, whole};
use crate::{ask, client, tool};

/// What is odd about it, the answer, and what it means; no usage: the provider gave none.
type Case = (&'static str, Vec<u8>, Message, Finish, Option<Usage>);

fn call(id: &str, arguments: &str) -> Call {
    Call { id: id.into(), name: "f".into(), arguments: arguments.into() }
}

#[tokio::test]
async fn a_question_is_written_as_openai_wants_it() {
    let raw = Raw::start(vec![whole(r#"{"choices":[{"message":{"content":"x"}}]}"#); 2], Then::Close).await;
    let mut request = ask("hi");
    request.messages = vec![
        Message::System { text: "be kind".into() },
        Message::User { text: "hi".into() },
        Message::Assistant { text: String::new(), calls: vec![call("a", "{broken")] },
        Message::Tool { call: "a".into(), output: "out".into() },
        Message::Assistant { text: "so".into(), calls: vec![] },
    ];
    request.tools = vec![tool("f")];
    request.thinking = Effort::parse("high");
    client(&raw.base_url(), Some(" sk-key\n")).chat(&request, &mut Usage::default(), |_| {}).await.unwrap();
    request.tools.clear();
    request.thinking = Effort::parse("off");
    client(&format!("{}/", raw.base_url()), None).chat(&request, &mut Usage::default(), |_| {}).await.unwrap();
    let [(head, full), (bare_head, bare)] = raw.asked().try_into().unwrap();
    assert!(head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nauthorization: bearer sk-key\r\n") && head.contains("content-type: application/json"));
    assert!(bare_head.starts_with("post /v1/chat/completions ") && !bare_head.contains("authorization"));
    let messages = json!([
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": null,
         "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{broken"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "out"},
        {"role": "assistant", "content": "so"},
    ]);
    let f = json!({"name": "f", "description": "Does it.", "parameters": tool("f").parameters});
    let mut wanted =
        json!({"model": "m", "messages": messages, "stream": true, "stream_options": {"include_usage": true}});
    assert_eq!(bare, wanted);
    wanted["tools"] = json!([{"type": "function", "function": f}]);
    wanted["reasoning_effort"] = json!("high");
    assert_eq!(full, wanted);
}

#[test]
fn a_message_in_the_log_is_read_as_it_was_written() {
    let messages = [
        (Message::System { text: "s".into() }, json!({"role": "system", "text": "s"})),
        (Message::User { text: "u\u{0}é".into() }, json!({"role": "user", "text": "u\u{0}é"})),
        (Message::Assistant { text: String::new(), calls: vec![] }, json!({"role": "assistant", "text": ""})),
        (
            Message::Assistant { text: "t".into(), calls: vec![call("a", "{\"x\": 1.0e3}")] },
            json!({"role": "assistant", "text": "t", "calls": [{"id": "a", "name": "f", "arguments": "{\"x\": 1.0e3}"}]}),
        ),
        (Message::Tool { call: "a".into(), output: "o".into() }, json!({"role": "tool", "call": "a", "output": "o"})),
    ];
    for (message, logged) in messages {
        assert_eq!(serde_json::to_value(&message).unwrap(), logged);
        assert_eq!(serde_json::from_value::<Message>(logged).unwrap(), message);
    }
}

#[tokio::test]
async fn answers_in_every_form_in_use_are_understood() {
    let text = |text: &str| Message::Assistant { text: text.into(), calls: vec![] };
    let calls = |calls: &[Call]| Message::Assistant { text: String::new(), calls: calls.to_vec() };
    let counted = Some(Usage { input: 7, output: 3, estimated: false });
    let cases: Vec<Case> = vec![
        (
            "reasoning is read over, and usage may come with any chunk",
            stream(&[
                r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":"hm","reasoning":"hm"}}],"usage":null}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"yes"}}],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"!","reasoning_details":[{"text":"hm"}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10,"completion_tokens_details":{"reasoning_tokens":2}}}"#,
                "[DONE]",
            ]),
            text("yes!"),
            Finish::Stop,
            counted,
        ),
        (
            "no [DONE], zeros for usage, a second choice",
            stream(&[
                r#"{"choices":[{"index":1,"delta":{"content":"not this"}},{"delta":{"content":"this"}}]}"#,
                r#"{"choices":[{"delta":{},"finish_reason":"length"}],"usage":{"prompt_tokens":0,"completion_tokens":0}}"#,
            ]),
            text("this"),
            Finish::Length,
            None,
        ),
        (
            "a pair of surrogates cut apart between two pieces, and half a pair in arguments",
            stream(&[
                r#"{"choices":[{"index":0,"delta":{"content":"a\ud83d"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"\ude00b","tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":\"\ud83d\"}"}}]},"finish_reason":"tool_calls"}]}"#,
                "[DONE]",
            ]),
            Message::Assistant { text: "a\u{fffd}\u{fffd}b".into(), calls: vec![call("a", "{\"x\":\"\u{fffd}\"}")] },
            Finish::Calls,
            None,
        ),
        (
            "no finish reason, content in parts, no content type",
            response(
                "200 OK",
                "",
                "data: {\"choices\":[{\"delta\":{\"content\":[{\"type\":\"thinking\",\"thinking\":[]},{\"type\":\"text\",\"text\":\"part\"}]}}]}\n\ndata: [DONE]\n\n",
            ),
            text("part"),
            Finish::Stop,
            None,
        ),
        (
            "calls interleaved by index",
            stream(&[
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}},{"index":1,"id":"b","function":{"name":"f","arguments":"{\"y\""}}]}}]}"#,
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"x\":1}"}},{"index":1,"id":"b","function":{"name":"f","arguments":":2}"}}]}}]}"#,
                r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
            ]),
            calls(&[call("a", "{\"x\":1}"), call("b", "{\"y\":2}")]),
            Finish::Calls,
            None,
        ),
        (
            "whole calls under one index, arguments as an object, and none at all",
            stream(&[
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":{"x":1}}}]}}]}"#,
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"b","function":{"name":"f","arguments":null}}]},"finish_reason":"stop"}]}"#,
            ]),
            calls(&[call("a", "{\"x\":1}"), call("b", "{}")]),
            Finish::Calls,
            None,
        ),
        (
            "calls without index",
            stream(&[
                r#"{"choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{"}}]}}]}"#,
                r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"}"}}]}}]}"#,
                r#"{"choices":[{"delta":{"tool_calls":[{"id":"b","function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#,
            ]),
            calls(&[call("a", "{}"), call("b", "{}")]),
            Finish::Calls,
            None,
        ),
        (
            "plain JSON to a request for a stream",
            whole(
                r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":"I will not."},"finish_reason":"content_filter"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#,
            ),
            text("I will not."),
            Finish::Filtered,
            counted,
        ),
    ];
    for (what, answer, message, finish, usage) in cases {
        let raw = Raw::start(vec![answer], Then::Close).await;
        let mut heard = String::new();
        let got =
            client(&raw.base_url(), None).chat(&ask("four"), &mut Usage::default(), |it| heard.push_str(it)).await;
        let got = got.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!((&got.message, &got.finish), (&message, &finish), "{what}");
        let Message::Assistant { text, .. } = &got.message else { panic!("{what}") };
        assert_eq!(&heard, text, "{what}");
        let size: usize = match &message {
            Message::Assistant { text, calls } => {
                text.len().div_ceil(4) + calls.iter().map(|it| 1 + it.arguments.len().div_ceil(4)).sum::<usize>()
            }
            _ => 0,
        };
        // "four" is one token, and four are around each message.
        assert_eq!(got.usage, usage.unwrap_or(Usage { input: 5, output: size as u64, estimated: true }), "{what}");
    }
}

#[tokio::test]
async fn calls_without_ids_get_ids_that_differ() {
    let answer = whole(
        r#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"f"}},{"id":"","function":{"name":"f"}},{"id":"a","function":{"name":"f"}}]}}]}"#,
    );
    let raw = Raw::start(vec![answer], Then::Close).await;
    let got = client(&raw.base_url(), None).chat(&ask("x"), &mut Usage::default(), |_| {}).await.unwrap();
    let Message::Assistant { calls, .. } = got.message else { panic!() };
    let ids: std::collections::HashSet<_> = calls.iter().map(|it| it.id.as_str()).collect();
    assert!(ids.len() == 3 && ids.contains("a") && !ids.contains(""), "{ids:?}");
}

#[tokio::test]
async fn a_provider_that_refuses_how_it_is_asked_is_asked_otherwise_and_remembered() {
    let refuse = |body: &str| response("400 Bad Request", "content-type: application/json\r\n", body);
    let good = whole(r#"{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}"#);
    let answers = vec![
        refuse(r#"{"detail":[{"loc":["body","stream_options"],"msg":"extra fields not permitted"}]}"#),
        refuse(r#"{"error":{"message":"Unsupported value.","param":"stream"}}"#),
        good.clone(),
        good,
        refuse(r#"{"error":"the upstream is unhappy with stream_options"}"#),
    ];
    let raw = Raw::start(answers, Then::Close).await;
    let first = client(&raw.base_url(), None);
    first.chat(&ask("x"), &mut Usage::default(), |_| {}).await.unwrap();
    first.clone().chat(&ask("x"), &mut Usage::default(), |_| {}).await.unwrap();
    let refused = first.chat(&ask("x"), &mut Usage::default(), |_| {}).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }) && refused.class() == Class::Rejected);
    let asked: Vec<_> =
        raw.asked().iter().map(|(_, it)| (it["stream"].clone(), it["stream_options"].clone())).collect();
    let with_usage = (json!(true), json!({"include_usage": true}));
    let plain = (Value::Null, Value::Null);
    assert_eq!(asked, [with_usage, (json!(true), Value::Null), plain.clone(), plain.clone(), plain]);
}

#[tokio::test]
async fn a_call_of_nothing_is_a_call_and_is_sent_back_under_a_name_that_providers_take() {
    let calls = r#"[{"id":"a","function":{"arguments":"{}"}},{"id":"b","function":{"name":"","arguments":"{}"}},
                    {"id":"c","function":{"name":"rm -rf é"}},{"id":"d","function":{"name":"f"}}]"#;
    let first = whole(&format!(r#"{{"choices":[{{"message":{{"tool_calls":{calls}}}}}]}}"#));
    let second = whole(r#"{"choices":[{"message":{"content":"x"}}]}"#);
    let raw = Raw::start(vec![first, second], Then::Close).await;
    let client = client(&raw.base_url(), None);
    let mut request = ask("hi");
    let got = client.chat(&request, &mut Usage::default(), |_| {}).await.unwrap();
    let Message::Assistant { calls, .. } = &got.message else { panic!("{got:?}") };
    let named: Vec<_> = calls.iter().map(|it| (it.id.as_str(), it.name.as_str())).collect();
    assert_eq!(named, [("a", ""), ("b", ""), ("c", "rm -rf é"), ("d", "f")]);
    let results: Vec<_> = calls.iter().map(|it| Message::Tool { call: it.id.clone(), output: "no".into() }).collect();
    request.messages.push(got.message);
    request.messages.extend(results);
    client.chat(&request, &mut Usage::default(), |_| {}).await.unwrap();
    let sent = &raw.asked()[1].1["messages"][1]["tool_calls"];
    let names: Vec<_> = sent.as_array().unwrap().iter().map(|it| it["function"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["_", "_", "rm_-rf__", "f"]);
}
