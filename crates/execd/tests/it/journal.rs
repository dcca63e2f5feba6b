use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::json;

use crate::house::{Answer, Execd, Run};

/// Stream and text of a line, whose time must be one.
#[track_caller]
fn parts(line: &str) -> (String, String) {
    let mut parts = line.splitn(3, ' ');
    let (time, stream, text) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    assert!(time.len() == 30 && time.starts_with("20") && time.ends_with('Z'), "{line:?}");
    (stream.to_owned(), text.to_owned())
}

#[track_caller]
fn log(execd: &Execd, query: &str) -> Vec<(String, String)> {
    execd.get(&format!("/insula/v1/log{query}")).ok().text().split_terminator('\n').map(parts).collect()
}

fn texts(lines: &[(String, String)]) -> Vec<&str> {
    lines.iter().map(|(_, text)| text.as_str()).collect()
}

struct Follower(BufReader<UnixStream>);

impl Follower {
    fn connect(execd: &Execd, query: &str) -> Self {
        let mut stream = execd.connect();
        write!(stream, "GET /insula/v1/log?follow=1{query} HTTP/1.1\r\nHost: execd\r\n\r\n").unwrap();
        let mut follower = Self(BufReader::new(stream));
        assert_eq!(follower.raw().as_deref(), Some("HTTP/1.1 200 OK\r\n"));
        while follower.raw().unwrap() != "\r\n" {}
        follower
    }

    fn raw(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line).unwrap() {
            0 => None,
            _ => Some(String::from_utf8_lossy(&line).into_owned()),
        }
    }

    /// The next line; `None` at the end. The sizes of chunks are passed over.
    fn next(&mut self) -> Option<(String, String)> {
        loop {
            let line = self.raw()?;
            if line.len() > 31 {
                return Some(parts(line.trim_end_matches('\n')));
            }
        }
    }
}

#[test]
fn what_commands_print_is_kept_with_its_time_and_stream() {
    let execd = Execd::open();
    assert_eq!(log(&execd, ""), []);
    assert_eq!(execd.run("echo out; printf 'part\\n\\n ial'").code, 0);
    assert_eq!(execd.run("echo err >&2; exit 3").code, 3);
    let session = execd.post("/session", &json!({})).ok().json()["session_id"].as_str().unwrap().to_owned();
    Run::of(execd.post(&format!("/session/{session}/run"), &json!({"command": "echo in a session"})));
    let mut follower = Follower::connect(&execd, "&tail=0");
    execd.post("/command", &json!({"command": "echo behind; echo it >&2", "background": true})).ok();
    assert_eq!(follower.next().unwrap(), ("stdout".into(), "behind".into()));
    assert_eq!(follower.next().unwrap(), ("stdout".into(), "it".into()));
    let all = log(&execd, "");
    assert_eq!(texts(&all), ["out", "part", "", " ial", "err", "in a session", "behind", "it"]);
    assert!(all.iter().all(|(stream, text)| (stream == "stderr") == (text == "err")), "{all:?}");
    assert_eq!(texts(&log(&execd, "?tail=2")), ["behind", "it"]);
    assert_eq!(log(&execd, "?tail=0"), []);
    assert_eq!(log(&execd, "?tail=99"), all);
    assert_eq!(execd.get("/insula/v1/log?tail=-1").problem(400), "INVALID_PARAMETER");
    // Also what was begun when the client left, which ends the command. The shell would write it in two pieces.
    let both = "f=$(mktemp); printf 'whole\\nbegun' >$f; cat $f; rm $f; exec sleep 3141";
    let (_, mut stream) = execd.begin(&json!({"command": both}));
    assert_eq!(stream.event().unwrap()["text"], "whole");
    stream.leave();
    assert_eq!((follower.next().unwrap().1, follower.next().unwrap().1), ("whole".into(), "begun".into()));
}

#[test]
fn only_the_newest_is_kept_in_whole_lines() {
    let execd = Execd::open();
    assert_eq!(execd.run("seq 1 200000").out.len(), 200_000);
    let all = log(&execd, "");
    let kept: Vec<u32> = all.iter().map(|(_, text)| text.parse().unwrap()).collect();
    assert!(kept.windows(2).all(|two| two[0] + 1 == two[1]) && kept.last() == Some(&200_000));
    let bytes: usize = all.iter().map(|(_, text)| text.len() + 1).sum();
    assert!((200 << 10..=256 << 10).contains(&bytes), "{bytes}");
}

#[test]
fn a_follower_that_does_not_read_holds_nobody_up_and_is_told_what_it_missed() {
    let execd = Execd::open();
    let mut slow = Follower::connect(&execd, "");
    assert_eq!(execd.run("echo 0").code, 0);
    // However busy the machine is, what is lost comes after something.
    let mut seen = vec![slow.next().unwrap()];
    assert_eq!(execd.run("seq 1 2000000").out.len(), 2_000_000);
    assert_eq!(execd.run("echo the last").code, 0);
    loop {
        let (stream, text) = slow.next().unwrap();
        if text == "the last" {
            break;
        }
        seen.push((stream, text));
    }
    let at = seen.iter().position(|(stream, _)| stream == "lost").unwrap();
    assert!(seen[at].1.ends_with("bytes of this log were dropped before they were read"), "{:?}", seen[at]);
    assert!(seen[at - 1].1.parse::<u32>().unwrap() < seen[at + 1].1.parse::<u32>().unwrap());
    assert_eq!(seen.last().unwrap().1, "2000000");

    let mut others: Vec<_> = (1..32).map(|_| Follower::connect(&execd, "&tail=0")).collect();
    let mut stream = execd.connect();
    write!(stream, "GET /insula/v1/log?follow=1 HTTP/1.1\r\nHost: execd\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(Answer::read(stream).problem(429), "TOO_MANY");
    // Its end is theirs.
    drop(execd);
    assert!(slow.next().is_none() && others.iter_mut().all(|other| other.next().is_none()));
}
