use std::time::Duration;

use kit::{Class, Shutdown, Tasks};
use llm::scripted::{Script, Server};
use llm::{Call, Error, Finish, Message, Usage};
use serde_json::{Value, json};

use crate::{ask, client, tool};

async fn serve(yaml: &str) -> (Server, Tasks) {
    let tasks = Tasks::new(Shutdown::new());
    let script = Script::parse(yaml).unwrap();
    (Server::listen(script, "127.0.0.1:0".parse().unwrap(), &tasks).await.unwrap(), tasks)
}

#[tokio::test]
async fn an_answer_is_streamed_and_its_usage_counted() {
    let (server, _tasks) = serve(
        "models: [m]\nrules:\n- {match: {user: {equals: hi}}, answer: 'one two  três', usage: {input: 100, output: 20}}",
    )
    .await;
    let mut pieces = Vec::new();
    let got = client(&server.base_url(), None)
        .chat(&ask("hi"), &mut Usage::default(), |it| pieces.push(it.to_owned()))
        .await
        .unwrap();
    assert_eq!(pieces, ["one", " two", "  três"]);
    assert_eq!(got.message, Message::Assistant { text: "one two  três".into(), calls: Vec::new() });
    assert_eq!(got.usage, Usage { input: 100, output: 20, estimated: false });
    assert_eq!(got.finish, Finish::Stop);
}

#[tokio::test]
async fn a_conversation_with_tools_goes_through_its_rules() {
    let (server, _tasks) = serve(
        "- match: {model: m, results: 0}
  answer: Let me see.
  calls:
  - {name: execute_command, arguments: {command: 'echo é'}}
  - {name: execute_command, arguments: '{broken'}
  - {name: list_directory}
  chunks: {bytes: 3}
- {match: {results: 3}, answer: done}",
    )
    .await;
    let client = client(&server.base_url(), None);
    let mut request = ask("go");
    request.tools = vec![tool("execute_command"), tool("list_directory")];
    let got = client.chat(&request, &mut Usage::default(), |_| {}).await.unwrap();
    let Message::Assistant { text, calls } = &got.message else { panic!("{got:?}") };
    assert_eq!((text.as_str(), &got.finish), ("Let me see.", &Finish::Calls));
    let said: Vec<_> = calls.iter().map(|it| (it.name.as_str(), it.arguments.as_str())).collect();
    let first = json!({"command": "echo é"}).to_string();
    assert_eq!(said, [("execute_command", first.as_str()), ("execute_command", "{broken"), ("list_directory", "{}")]);

    let calls = calls.clone();
    request.messages.push(got.message.clone());
    let unanswered = client.chat(&request, &mut Usage::default(), |_| {}).await.unwrap_err();
    assert_eq!(unanswered.class(), Class::Rejected);
    assert!(unanswered.to_string().contains("did not have response messages: call_"), "{unanswered}");
    let result = |it: &Call| Message::Tool { call: it.id.clone(), output: "ok".into() };
    request.messages.extend(calls.iter().map(result));
    assert_eq!(
        client.chat(&request, &mut Usage::default(), |_| {}).await.unwrap().message,
        Message::Assistant { text: "done".into(), calls: vec![] }
    );
    // The results of an earlier turn do not count for the next.
    request
        .messages
        .extend([Message::Assistant { text: "done".into(), calls: vec![] }, Message::User { text: "again".into() }]);
    assert_eq!(client.chat(&request, &mut Usage::default(), |_| {}).await.unwrap().finish, Finish::Calls);
}

#[tokio::test]
async fn a_model_that_stumbles_says_how_long_to_wait_and_then_answers() {
    let (server, _tasks) = serve(
        "models: [m]
rules:
- {times: 1, status: 503}
- {times: 1, status: 429, message: Slow down., retryAfter: 1500ms}
- {answer: at last, delay: 1ms, chunks: {words: 1, every: 1ms}}",
    )
    .await;
    let client = client(&server.base_url(), None);
    let error = client.chat(&ask("go"), &mut Usage::default(), |_| {}).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry(None));
    assert_eq!(error.to_string(), "the model provider answered 503 Service Unavailable: scripted failure 503");
    let error = client.chat(&ask("go"), &mut Usage::default(), |_| {}).await.unwrap_err();
    assert_eq!(error.class(), Class::Retry(Some(Duration::from_secs(2))));
    assert_eq!(error.to_string(), "the model provider answered 429 Too Many Requests: Slow down.");
    let got = client.chat(&ask("go"), &mut Usage::default(), |_| {}).await.unwrap();
    assert_eq!(got.message, Message::Assistant { text: "at last".into(), calls: vec![] });
}

#[tokio::test]
async fn what_is_not_in_the_script_is_refused() {
    let (server, _tasks) =
        serve("key: sk-right\nrules:\n- {match: {model: m, user: {contains: one}}, answer: a}").await;
    let chat = async |key, text| client(&server.base_url(), key).chat(&ask(text), &mut Usage::default(), |_| {}).await;
    for (key, text, status, said) in [
        (None, "one", 401, "You didn't provide an API key."),
        (Some("sk-wrong"), "one", 401, "Incorrect API key provided."),
        (Some("sk-right\n"), "two", 400, "The script has no rule for model \"m\", user \"two\", 0 tool results."),
    ] {
        let error = chat(key, text).await.unwrap_err();
        assert!(matches!(error, Error::Refused { status: it, .. } if it == status), "{error}");
        assert!(error.class() == Class::Rejected && error.to_string().contains(said), "{error}");
    }
    assert!(chat(Some("sk-right"), "one or two").await.is_ok());
    let mut other = ask("one");
    other.model = "other".into();
    let error =
        client(&server.base_url(), Some("sk-right")).chat(&other, &mut Usage::default(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("404 Not Found: The model `other` does not exist"), "{error}");
}

#[tokio::test]
async fn others_clients_are_served_too() {
    let (server, _tasks) = serve("- {match: {model: m}, answer: a b, usage: {input: 3, output: 2}}").await;
    let http = kit::http::client().unwrap();
    let get = async |path: &str| http.get(format!("{}{path}", server.base_url())).send().await.unwrap();
    let models: Value = get("/models").await.json().await.unwrap();
    assert_eq!((models["data"].as_array().unwrap().len(), models["data"][0]["id"].as_str()), (1, Some("m")));
    assert_eq!(get("/nothing").await.status(), 404);
    let post = async |body: String| {
        http.post(format!("{}/chat/completions", server.base_url())).body(body).send().await.unwrap()
    };
    let question = |more: Value| {
        let mut body =
            json!({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let whole: Value = post(question(json!({}))).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], "a b");
    assert_eq!(whole["usage"], json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}));
    let bare = post(question(json!({"stream": true}))).await.text().await.unwrap();
    assert!(bare.ends_with("data: [DONE]\n\n") && !bare.contains("usage"), "{bare}");
    let asked = question(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let counted = post(asked).await.text().await.unwrap();
    assert!(counted.contains("\"usage\":null") && counted.contains("\"total_tokens\":5"), "{counted}");
    assert_eq!(post("{".into()).await.status(), 400);
    assert_eq!(post(" ".repeat((16 << 20) + 1)).await.status(), 413);
}

#[tokio::test]
async fn the_example_script_does_what_it_says() {
    let (server, _tasks) = serve(include_str!("../../../../examples/model.yaml")).await;
    let client = client(&server.base_url(), None);
    let mut request = ask("Which day is it?");
    request.model = "scripted".into();
    request.tools = vec![tool("execute_command")];
    let called = client.chat(&request, &mut Usage::default(), |_| {}).await.unwrap();
    let Message::Assistant { calls, .. } = &called.message else { panic!("{called:?}") };
    assert_eq!((called.finish, calls[0].name.as_str()), (Finish::Calls, "execute_command"));
    let output = Message::Tool { call: calls[0].id.clone(), output: "Monday".into() };
    request.messages.extend([called.message.clone(), output]);
    assert_eq!(client.chat(&request, &mut Usage::default(), |_| {}).await.unwrap().finish, Finish::Stop);
}
