//! `GET containerLogs`: what a container printed, or the commands of a sandbox.
//!
//! A container's log is read by [`crate::pod::Log`]. Of a sandbox, execd keeps the lines, with time and stream
//! ([`wire::execd::LOG`]); here they become what the kubelet makes of a container's log: the last `tailLines` lines, of
//! those the ones since a time, each with its time before it if that is asked for, all cut at `limitBytes`.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kit::Shutdown;
use wire::query;

use super::door::Pods;
use super::{CONTAINER, Found, Kubelet, Refused, Target, ask, is_running, plain, spec};
use crate::engine::{Engine, Sandbox};
use crate::pod::{LogOptions, Stream};
use crate::proxy::{Body, Fault};

/// Longer than any line of execd's.
const LONGEST: usize = 64 << 10;

/// `PodLogOptions`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<u64>,
    /// Bytes.
    limit: Option<u64>,
    since: Option<Timestamp>,
    stream: Option<Stream>,
}

pub(super) async fn answer(
    kubelet: &Kubelet,
    target: Target<'_>,
    container: &str,
    query: &str,
) -> Result<Response<Body>, Refused> {
    let options = Options::parse(query, kubelet.clock.now())?;
    let pod = target.name;
    let missing = |why| Refused(StatusCode::NOT_FOUND, why);
    let known = |known| match known {
        true => Ok(()),
        false => Err(missing(format!("container {container:?} not found in pod {pod:?}"))),
    };
    match kubelet.find(target).ok_or_else(|| missing(format!("pod {pod:?} does not exist")))? {
        Found::Sandbox(engine, sandbox) => {
            known(container == CONTAINER)?;
            of_sandbox(kubelet, engine, &sandbox, pod, options).await
        }
        Found::Pod(pods, pod) => {
            known(spec::has(&pod, container))?;
            of_container(kubelet, pods.as_ref(), &pod, container, options)
        }
    }
}

fn of_container(
    kubelet: &Kubelet,
    pods: &dyn Pods,
    pod: &Pod,
    container: &str,
    options: Options,
) -> Result<Response<Body>, Refused> {
    let refused = |why| Refused(StatusCode::BAD_REQUEST, why);
    let id = spec::logged(pod, container, options.previous).map_err(refused)?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let state = pods.state(uid);
    let bare = id.split_once("://").map_or(id.as_str(), |(_, bare)| bare);
    let attempt = state.iter().flat_map(|it| &it.containers).find(|it| it.name == container && it.id == bare);
    let log = match attempt.map(|it| pods.log(uid, container, it.attempt)) {
        Some(Ok(log)) => log,
        Some(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(refused(format!("failed to open the log of container {container:?}: {error}")));
        }
        _ => return Ok(plain(StatusCode::OK, format!("unable to retrieve container logs for {id}"))),
    };
    let pieces = log.read(LogOptions {
        follow: options.follow,
        timestamps: options.timestamps,
        tail: options.tail,
        limit: options.limit,
        since: options.since,
        stream: options.stream,
    });
    let pieces = pieces.take_until(kubelet.tasks.shutdown().begun());
    Ok(logged(pieces.map(|piece| piece.map_err(Fault::from))))
}

async fn of_sandbox(
    kubelet: &Kubelet,
    engine: &Engine,
    sandbox: &Sandbox,
    pod: &str,
    options: Options,
) -> Result<Response<Body>, Refused> {
    if options.previous {
        let why = format!("previous terminated container {CONTAINER:?} in pod {pod:?} not found");
        return Err(Refused(StatusCode::BAD_REQUEST, why));
    }
    is_running(sandbox)?;
    let mut path = format!("{}?follow={}", wire::execd::LOG, u8::from(options.follow));
    if let Some(lines) = options.tail {
        path.push_str(&format!("&tail={lines}"));
    }
    let response = ask(engine, sandbox, &path, &[]).await?;
    let log = Kept { from: response.into_body(), received: Vec::new(), since: options.since.map(written), options };
    let shutdown = kubelet.tasks.shutdown().clone();
    Ok(logged(stream::unfold((log, shutdown), |(mut log, shutdown)| async move {
        let piece = log.next(&shutdown).await?;
        Some((Ok(piece), (log, shutdown)))
    })))
}

fn logged(pieces: impl stream::Stream<Item = Result<Bytes, Fault>> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

impl Options {
    fn parse(query: &str, now: Timestamp) -> Result<Self, Refused> {
        let undecodable = || Refused(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#.to_owned());
        let invalid = || Refused(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#.to_owned());
        let (mut options, mut since_seconds) = (Self::default(), None);
        let mut seen = Vec::new();
        for (name, value) in query::pairs(query) {
            if seen.contains(&name) {
                continue;
            }
            let text = std::str::from_utf8(&value).map_err(|_| undecodable())?;
            // As Kubernetes reads a flag: all but these two is yes.
            let flag = !(text.eq_ignore_ascii_case("false") || text == "0");
            let number = || text.parse::<i64>().map_err(|_| undecodable());
            let least = |least: i64| number()?.try_into().ok().filter(|it| *it >= least as u64).ok_or_else(invalid);
            match name.as_slice() {
                b"follow" => options.follow = flag,
                b"previous" => options.previous = flag,
                b"timestamps" => options.timestamps = flag,
                b"tailLines" => options.tail = Some(least(0)?),
                b"limitBytes" => options.limit = Some(least(1)?),
                b"sinceSeconds" => since_seconds = Some(least(1)?),
                b"sinceTime" if !text.is_empty() => {
                    options.since = Some(text.parse().map_err(|_| undecodable())?);
                }
                b"stream" => {
                    options.stream = match text {
                        "All" => None,
                        "Stdout" => Some(Stream::Stdout),
                        "Stderr" => Some(Stream::Stderr),
                        _ => return Err(invalid()),
                    }
                }
                _ => {}
            }
            seen.push(name);
        }
        if let Some(seconds) = since_seconds {
            if options.since.is_some() {
                return Err(invalid());
            }
            let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            options.since = Some(now.checked_sub(ago).unwrap_or(Timestamp::MIN));
        }
        // The last lines are looked for among all.
        if options.stream.is_some() && options.tail.is_some() {
            return Err(invalid());
        }
        Ok(options)
    }
}

/// As execd writes it: times are compared as text. (Years before 0 begin with a minus, which is less than any digit.)
fn written(time: Timestamp) -> String {
    format!("{time:.9}")
}

/// A log on its way from execd.
struct Kept {
    from: Incoming,
    received: Vec<u8>,
    options: Options,
    since: Option<String>,
}

impl Kept {
    /// What there is next; `None` at the end, which is the sandbox's end for who follows.
    async fn next(&mut self, shutdown: &Shutdown) -> Option<Bytes> {
        loop {
            let out = self.take();
            if !out.is_empty() {
                return Some(out.into());
            }
            if self.options.limit == Some(0) || self.received.len() > LONGEST {
                return None;
            }
            let frame = tokio::select! {
                frame = self.from.frame() => frame?.ok()?,
                () = shutdown.begun() => return None,
            };
            if let Ok(data) = frame.into_data() {
                self.received.extend_from_slice(&data);
            }
        }
    }

    /// What whole lines become.
    fn take(&mut self) -> Vec<u8> {
        let Some(end) = self.received.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.received.split_off(end + 1);
        let lines = std::mem::replace(&mut self.received, rest);
        let mut out = Vec::new();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.options.write(line, self.since.as_deref(), &mut out);
        }
        out
    }
}

impl Options {
    /// Writes one line of execd's as it was asked for.
    fn write(&mut self, line: &[u8], since: Option<&str>, out: &mut Vec<u8>) {
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(text)) = (parts.next(), parts.next(), parts.next()) else { return };
        let other = self.stream.is_some_and(|wanted| stream != wanted.name().as_bytes());
        if other || since.is_some_and(|since| time < since.as_bytes()) {
            return;
        }
        let before = out.len();
        if self.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        if let Some(left) = &mut self.limit {
            let written = out.len() - before;
            let kept = written.min(usize::try_from(*left).unwrap_or(usize::MAX));
            out.truncate(before + kept);
            *left -= kept as u64;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-21T10:00:00Z";

    fn parse(query: &str) -> Result<Options, u16> {
        Options::parse(query, NOW.parse().unwrap()).map_err(|refused| refused.0.as_u16())
    }

    #[test]
    fn options_are_read_as_the_kubelet_reads_them() {
        assert_eq!(parse(""), Ok(Options::default()));
        let all = parse("follow=true&previous=false&timestamps=&tailLines=0&limitBytes=1&sinceSeconds=60&more=x");
        let want = Options {
            follow: true,
            previous: false,
            timestamps: true,
            tail: Some(0),
            limit: Some(1),
            since: Some("2026-11-21T09:59:00Z".parse().unwrap()),
            stream: None,
        };
        assert_eq!(all, Ok(want));
        assert_eq!(parse("stream=Stderr").map(|it| it.stream), Ok(Some(Stream::Stderr)));
        let since = |query| written(parse(query).unwrap().since.unwrap());
        assert_eq!(since("sinceTime=2026-11-21T11%3A00%3A00.5%2B01%3A00"), "2026-11-21T10:00:00.500000000Z");
        assert!(since("sinceSeconds=9223372036854775807").starts_with('-'));
        for undecodable in ["tailLines=x", "tailLines=", "limitBytes=1.5", "sinceTime=yesterday", "follow=%ff"] {
            assert_eq!(parse(undecodable), Err(400), "{undecodable}");
        }
        let both = format!("sinceSeconds=1&sinceTime={NOW}");
        for invalid in
            ["tailLines=-1", "limitBytes=0", "sinceSeconds=0", &both, "stream=x", "stream=Stdout&tailLines=1"]
        {
            assert_eq!(parse(invalid), Err(422), "{invalid}");
        }
    }

    #[test]
    fn lines_are_chosen_and_cut() {
        let log = "2026-11-21T09:00:00.000000001Z stdout one\n2026-11-21T09:00:00.000000002Z stderr \n\
                   2026-11-21T09:00:00.000000003Z stdout  three  \n";
        let shown = |query| {
            let (mut options, mut out) = (parse(query).unwrap(), Vec::new());
            let since = options.since.map(written);
            log.split_inclusive('\n').for_each(|line| options.write(line.as_bytes(), since.as_deref(), &mut out));
            (String::from_utf8(out).unwrap(), options.limit)
        };
        assert_eq!(shown(""), ("one\n\n three  \n".into(), None));
        assert_eq!(shown("sinceTime=2026-11-21T09:00:00.000000002Z"), ("\n three  \n".into(), None));
        assert_eq!(shown("timestamps=1").0.lines().next(), Some("2026-11-21T09:00:00.000000001Z one"));
        assert_eq!(shown("stream=Stderr"), ("\n".into(), None));
        assert_eq!(shown("limitBytes=7"), ("one\n\n t".into(), Some(0)));
        assert_eq!(shown("limitBytes=12&timestamps=1").0, "2026-11-21T0");
        assert_eq!(shown("limitBytes=100"), ("one\n\n three  \n".into(), Some(86)));
    }
}
