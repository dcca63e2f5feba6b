//! Providers that say no, and addresses where there is no provider.

use std::time::Duration;

use kit::Class;
use llm::{Error, Usage, base_url};

use crate::server::{Raw, Then, response, stream, whole};
use crate::{ask, client};

const KEY: &str = "sk-very-secret-key";

async fn error(answer: Vec<u8>) -> Error {
    let raw = Raw::start(vec![answer], Then::Close).await;
    client(&raw.base_url(), Some(KEY)).chat(&ask("hi"), &mut Usage::default(), |_| {}).await.unwrap_err()
}

#[tokio::test]
async fn a_refusal_says_what_the_provider_said_and_whether_to_try_again() {
    let json = "content-type: application/json\r\n";
    let html = "content-type: text/html\r\n";
    let date = "date: Wed, 21 Oct 2015 07:28:00 GMT\r\nretry-after: Wed, 21 Oct 2015 07:29:30 GMT\r\n";
    let retry = Class::Retry(None);
    for (answer, class, said) in [
        (
            response(
                "401 Unauthorized",
                json,
                r#"{"error":{"message":"Bad key.","type":"x","code":"invalid_api_key"}}"#,
            ),
            Class::Rejected,
            "401 Unauthorized: Bad key.",
        ),
        (response("403 Forbidden", json, r#"{"error":"no"}"#), Class::Rejected, "403 Forbidden: no"),
        (response("404 Not Found", json, r#"{"message":"no model"}"#), Class::Rejected, "404 Not Found: no model"),
        (
            response("404 Not Found", html, "<html><title>nginx</title>"),
            Class::Rejected,
            "404 Not Found: nothing is at http://127.0.0.1",
        ),
        (
            response("400 Bad Request", json, r#"[{"error":{"code":400,"message":"from a list"}}]"#),
            Class::Rejected,
            "400 Bad Request: from a list",
        ),
        (
            response("400 Bad Request", json, r#"{"detail":"too long","param":null}"#),
            Class::Rejected,
            "400 Bad Request: too long",
        ),
        (response("408 Request Timeout", "", ""), Class::Rejected, "408 Request Timeout"),
        (
            response("429 Too Many Requests", "retry-after: 7\r\n", "slow down"),
            Class::Retry(Some(Duration::from_secs(7))),
            "429 Too Many Requests: slow down",
        ),
        (
            response("429 Too Many Requests", date, "slow down"),
            Class::Retry(Some(Duration::from_secs(90))),
            "429 Too Many Requests: slow down",
        ),
        (
            response("429 Too Many Requests", json, r#"{"error":{"message":"Pay.","code":"insufficient_quota"}}"#),
            Class::Rejected,
            "429 Too Many Requests: Pay.",
        ),
        (
            response("502 Bad Gateway", html, "<!doctype html>\n<HEAD><TITLE> Bad gateway </TITLE></HEAD>"),
            retry,
            "502 Bad Gateway: a web page, \"Bad gateway\"",
        ),
        (response("529 Overloaded", "", "<html>"), retry, "answered 529: a web page"),
        (
            response("308 Permanent Redirect", "location: https://elsewhere/\r\n", ""),
            Class::Rejected,
            "it redirects to https://elsewhere/; look at baseURL",
        ),
        (
            response("200 OK", html, "<title>Open WebUI</title>"),
            Class::Rejected,
            "is no OpenAI-compatible API: it answered with \"text/html\": a web page, \"Open WebUI\"; look at baseURL",
        ),
        (
            response("200 OK", "content-type: text/plain\r\n", "ollama is running"),
            Class::Rejected,
            "neither JSON nor a stream of events",
        ),
        (whole(r#"{"error":{"message":"Overloaded","code":503}}"#), retry, "503 Service Unavailable: Overloaded"),
        (whole(r#"{"error":{"message":"Bad","code":"400"}}"#), Class::Rejected, "400 Bad Request: Bad"),
        (
            stream(&[
                r#"{"choices":[{"delta":{"content":"a"}}]}"#,
                r#"{"error":{"message":"GPU on fire","type":"server_error"}}"#,
            ]),
            retry,
            "broke off its answer: GPU on fire",
        ),
    ] {
        let error = error(answer).await;
        assert!(error.to_string().contains(said), "{error} instead of {said}");
        assert_eq!(error.class(), class, "{error}");
    }
}

#[tokio::test]
async fn no_text_contains_the_key_or_is_long() {
    let body = |status, body: String| response(status, "content-type: application/json\r\n", &body);
    // Wherever the cut falls, no part of the key is left before it.
    for padding in 300 - 2 * KEY.len()..312 {
        let said = error(body(
            "401 Unauthorized",
            format!(r#"{{"error":{{"message":"{}{KEY} is wrong"}}}}"#, "é".repeat(padding / 2)),
        ))
        .await
        .to_string();
        assert!(!said.contains("sk-v") && said.len() < 400, "{padding}: {said}");
    }
    for answer in [
        body("500 Internal Server Error", format!("{{\"echo\":\"Bearer {KEY}\"}}")),
        body("500 Internal Server Error", format!("not json {KEY}{}", "x".repeat(10 << 20))),
        response("200 OK", "content-type: text/html\r\n", &format!("<title>{KEY}</title>")),
        response("302 Found", &format!("location: /{KEY}\r\n"), ""),
        stream(&[&format!(r#"{{"error":{{"message":"{KEY}"}}}}"#)]),
        whole(&format!(r#"{{"choices":"{KEY}"}}"#)),
    ] {
        let error = error(answer).await;
        let all = format!("{} {error:?}", kit::chain(&error));
        assert!(!all.contains("very-secret") && all.len() < 5000, "{all}");
    }
    let unreachable = client("http://user:very-secret@127.0.0.1:1/?k=very-secret", Some(KEY))
        .chat(&ask("x"), &mut Usage::default(), |_| {})
        .await
        .unwrap_err();
    assert_eq!(unreachable.class(), Class::Retry(None));
    let all = format!("{} {unreachable:?}", kit::chain(&unreachable));
    assert!(
        all.starts_with("cannot reach the model provider at http://127.0.0.1:1/chat/completions: ")
            && !all.contains("very-secret"),
        "{all}"
    );
}

#[test]
fn a_provider_without_an_address_is_refused_with_what_to_do() {
    assert_eq!(base_url("openai", "").unwrap(), "https://api.openai.com/v1");
    assert_eq!(base_url("", " ").unwrap(), "https://api.openai.com/v1");
    assert_eq!(base_url("Ollama", "").unwrap(), "http://ollama.default.svc:11434/v1");
    assert_eq!(base_url("lm-studio", "").unwrap(), "http://localhost:1234/v1");
    assert_eq!(base_url("bedrock", "http://proxy/v1").unwrap(), "http://proxy/v1");
    for (provider, said) in [
        ("anthropic", "\"anthropic\" speaks its own API, which is not supported yet; set baseURL"),
        ("azure-openai", "\"azure-openai\" speaks its own API, which is not supported yet; set baseURL"),
        ("custom", "\"custom\" has no address that is known here; set baseURL"),
    ] {
        let error = base_url(provider, "").unwrap_err();
        assert!(error.class() == Class::Rejected && error.to_string().contains(said), "{error}");
    }
}
