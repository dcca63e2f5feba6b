//! Providers that lose their way in the middle of an answer.

use std::time::Duration;

use kit::Class;
use llm::{Error, Usage};

use crate::server::{Raw, Then, response, stream, whole};
use crate::{ask, client};

const HALF: &str = r#"{"choices":[{"delta":{"content":"half"}}]}"#;

#[tokio::test]
async fn half_an_answer_and_broken_json_are_no_answer() {
    let sized = |length: usize, body: &str| {
        response("200 OK", &format!("content-type: application/json\r\ncontent-length: {length}\r\n"), body)
    };
    let many = r#"{"id":"a","function":{"name":"f"}},"#.replace("\"a\"", "null").repeat(513);
    for (answer, said) in [
        (stream(&[HALF]), "was cut off in its middle"),
        (
            response("200 OK", "content-type: text/event-stream\r\ncontent-length: 500\r\n", "data: "),
            "was cut off in its middle",
        ),
        (
            response("200 OK", "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n", "5\r\ndata:\r\n"),
            "was cut off in its middle",
        ),
        (stream(&[]), "was cut off in its middle"),
        (sized(100, "{"), "was cut off in its middle"),
        (whole("{"), "is broken: no valid JSON: EOF"),
        (stream(&[HALF, r#"{"choices":[{"delta":{"content":"#]), "is broken: no valid JSON: EOF"),
        (whole(r#"{"choices":[{"message":{"tool_calls":"x"}}]}"#), "is broken: no valid JSON: invalid type"),
        (whole("{}"), "is broken: it has no choices"),
        (stream(&["[DONE]"]), "is broken: it has no choices"),
        (
            whole(&format!(r#"{{"choices":[{{"message":{{"tool_calls":[{}]}}}}]}}"#, many.trim_end_matches(','))),
            "is broken: more than 512 tool calls",
        ),
    ] {
        let raw = Raw::start(vec![answer], Then::Close).await;
        let error = client(&raw.base_url(), None).chat(&ask("hi"), &mut Usage::default(), |_| {}).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error} instead of {said}");
        assert_eq!(error.class(), Class::Retry(None), "{error}");
    }
}

#[tokio::test]
async fn ten_megabytes_are_too_large_in_whatever_form_and_the_connection_is_closed() {
    let text = "x".repeat(1 << 20);
    let sized = |body: &str| {
        response("200 OK", &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()), body)
    };
    let megabyte = format!(r#"{{"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#);
    let arguments = format!(
        r#"{{"choices":[{{"delta":{{"tool_calls":[{{"index":0,"id":"a","function":{{"name":"f","arguments":"{text}"}}}}]}}}}]}}"#
    );
    for answer in [
        stream(&[megabyte.as_str(); 10]),
        stream(&[arguments.as_str(); 10]),
        stream(&["x".repeat(20 << 20).as_str()]),
        sized(&format!(r#"{{"choices":[{{"message":{{"content":"{}"}}}}]}}"#, "x".repeat(10 << 20))),
        sized(&" ".repeat(20 << 20)),
    ] {
        let raw = Raw::start(vec![answer], Then::Hold).await;
        let mut heard = 0;
        let error = client(&raw.base_url(), None)
            .chat(&ask("hi"), &mut Usage::default(), |it| heard += it.len())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }) && error.class() == Class::Rejected, "{error}");
        assert!(heard <= 4 << 20);
        raw.closed.notified().await;
    }
}

#[tokio::test]
async fn what_a_failed_question_cost_is_known() {
    let estimated = |input, output| Usage { input, output, estimated: true };
    let figures = r#"{"choices":[],"usage":{"prompt_tokens":70,"completion_tokens":5}}"#;
    let known = Usage { input: 70, output: 5, estimated: false };
    // "hi" and what is around it are five tokens, "half" is one.
    for (what, answer, spent) in [
        ("cut off", stream(&[HALF]), estimated(5, 1)),
        ("cut off after figures", stream(&[HALF, figures]), known),
        ("broken", whole("{"), estimated(5, 0)),
        ("broken off", stream(&[HALF, r#"{"error":{"message":"no"}}"#]), estimated(5, 1)),
        ("refused", response("503 Busy", "content-length: 0\r\n", ""), Usage::default()),
        ("a web page", response("200 OK", "content-type: text/html\r\n", "<html>"), Usage::default()),
        ("nothing", Vec::new(), Usage::default()),
    ] {
        let raw = Raw::start(vec![answer], Then::Close).await;
        let mut told = known;
        client(&raw.base_url(), None).chat(&ask("hi"), &mut told, |_| {}).await.unwrap_err();
        assert_eq!(told, spent, "{what}");
    }
}

#[tokio::test]
async fn a_head_without_end_is_a_broken_answer_and_no_trouble_of_the_network() {
    let endless = "x-more: and more of it, and more, and more\r\n".repeat(20_000);
    for head in [format!("HTTP/1.1 200 OK\r\n{endless}"), "SSH-2.0-OpenSSH_9.6\r\n\r\n".to_owned()] {
        let raw = Raw::start(vec![head.into_bytes()], Then::Hold).await;
        let error = client(&raw.base_url(), None).chat(&ask("hi"), &mut Usage::default(), |_| {}).await.unwrap_err();
        assert!(matches!(error, Error::Broken { .. }), "{error:?}");
        assert!(error.to_string().contains("is broken: it is not HTTP as it should be: "), "{error}");
    }
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let begun = response("200 OK", "content-type: text/event-stream\r\n", &format!("data: {HALF}\n\n"));
    let open = response("200 OK", "content-type: text/event-stream\r\n", "");
    for (answer, patience) in [(Vec::new(), 300), (open, 300), (begun, 120)] {
        let raw = Raw::start(vec![answer], Then::Hold).await;
        let chat = async {
            let client = client(&raw.base_url(), None);
            let mut spent = Usage::default();
            let error = client.chat(&ask("hi"), &mut spent, |_| {}).await.unwrap_err();
            assert_eq!(spent.input, 5, "it was sent");
            error
        };
        // The clock stands still, and jumps, only after all that comes has been written.
        let pause = async {
            raw.written.notified().await;
            tokio::time::pause();
            tokio::time::Instant::now()
        };
        let (error, from) = tokio::join!(chat, pause);
        let waited = from.elapsed();
        tokio::time::resume();
        assert!(matches!(error, Error::Silent { .. }) && error.class() == Class::Retry(None), "{error}");
        assert!(error.to_string().ends_with(&format!("sent nothing for {patience} s")), "{error}");
        assert!(waited.abs_diff(Duration::from_secs(patience)) < Duration::from_secs(5), "{waited:?}");
        raw.closed.notified().await;
    }
}

#[tokio::test]
async fn a_question_that_is_dropped_is_hung_up() {
    let begun = response("200 OK", "content-type: text/event-stream\r\n", &format!("data: {HALF}\n\n"));
    let raw = Raw::start(vec![begun], Then::Hold).await;
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let client = client(&raw.base_url(), None);
    let (request, mut spent) = (ask("hi"), Usage::default());
    tokio::select! {
        done = client.chat(&request, &mut spent, |it| heard.send(it.to_owned()).unwrap()) => panic!("{done:?}"),
        it = hears.recv() => assert_eq!(it.unwrap(), "half"),
    }
    raw.closed.notified().await;
}
