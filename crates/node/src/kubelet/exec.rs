//! `exec`: a command in a sandbox, over Kubernetes' channels.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use wire::execd::EXEC;
use wire::{query, websocket};

use crate::engine::Engine;
use crate::proxy::{Body, full};

use super::channels::{Carrier, Protocol, carry};
use super::{CONTAINER, Refused, ask, find, is_running, spdy};

/// How long the connections may take to become WebSockets.
const UPGRADE: Duration = Duration::from_secs(10);
/// Where a client of SPDY names the protocols of channels that it speaks.
const VERSION: &str = "x-stream-protocol-version";
/// Our own handshake with execd. Its answer proves nothing to us: nobody else listens there.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// What is to run, and which of its streams the client has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) command: Vec<String>,
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

impl Asked {
    fn parse(query: &str) -> Result<Self, Refused> {
        let refused = |why: &str| Refused(StatusCode::BAD_REQUEST, why.to_owned());
        let mut asked = Self::default();
        for (name, value) in query::pairs(query) {
            let flag = value == b"1";
            match name.as_slice() {
                b"command" => {
                    asked.command.push(String::from_utf8(value).map_err(|_| refused("the command is no UTF-8"))?);
                }
                b"input" => asked.stdin = flag,
                b"output" => asked.stdout = flag,
                b"error" => asked.stderr = flag,
                b"tty" => asked.tty = flag,
                _ => {}
            }
        }
        // A terminal has one output.
        asked.stderr &= !asked.tty;
        if !(asked.stdin || asked.stdout || asked.stderr) {
            return Err(refused("you must specify at least 1 of stdin, stdout, stderr"));
        }
        if asked.command.is_empty() {
            return Err(refused("you must specify a command"));
        }
        Ok(asked)
    }

    /// The path at execd that starts it.
    fn path(&self) -> String {
        let words = self.command.iter().map(|word| format!("arg={}&", query::encode(word.as_bytes())));
        format!("{EXEC}?{}pty={}", words.collect::<String>(), u8::from(self.tty))
    }
}

pub(super) async fn answer(
    engine: &Arc<Engine>,
    namespace: &str,
    pod: &str,
    container: &str,
    mut request: Request<()>,
) -> Result<Response<Body>, Refused> {
    let asked = Asked::parse(request.uri().query().unwrap_or_default())?;
    let missing = |why| Refused(StatusCode::NOT_FOUND, why);
    let sandbox = find(engine, namespace, pod).ok_or_else(|| missing("pod does not exist".to_owned()))?;
    if container != CONTAINER {
        return Err(missing(format!("container not found ({container:?})")));
    }
    is_running(&sandbox)?;
    let (carrier, protocol, switched) = handshake(request.headers())?;
    let headers = [
        (header::UPGRADE, "websocket"),
        (header::CONNECTION, "Upgrade"),
        (header::SEC_WEBSOCKET_VERSION, websocket::VERSION),
        (header::SEC_WEBSOCKET_KEY, KEY),
    ];
    let mut started = ask(engine, &sandbox, &asked.path(), &headers).await?;
    let (theirs, ours) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut started));
    let shutdown = engine.tasks.shutdown().clone();
    engine.tasks.tenant("exec", async move {
        let both = tokio::time::timeout(UPGRADE, async { tokio::try_join!(theirs, ours) }).await;
        // When the client has gone meanwhile, its command goes with the connection to execd.
        if let Ok(Ok((theirs, ours))) = both {
            let talk = carry(TokioIo::new(theirs), TokioIo::new(ours), &asked, carrier, protocol);
            tokio::select! {
                () = Box::pin(talk) => {}
                () = shutdown.begun() => {}
            }
        }
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = switched;
    Ok(response)
}

/// What is spoken, and the headers of the answer that says so.
fn handshake(headers: &HeaderMap) -> Result<(Carrier, Protocol, HeaderMap), Refused> {
    let values = |name| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let mut answer = HeaderMap::new();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if values("upgrade").any(|it| it.eq_ignore_ascii_case(spdy::NAME.as_bytes())) {
        let protocol = choose(values(VERSION))?;
        answer.insert(header::UPGRADE, HeaderValue::from_static(spdy::NAME));
        answer.insert(VERSION, HeaderValue::from_static(protocol.name()));
        return Ok((Carrier::Spdy, protocol, answer));
    }
    let unable = |why: &dyn std::fmt::Display| Refused(StatusCode::BAD_REQUEST, format!("unable to upgrade: {why}"));
    let accept = websocket::accept(values).map_err(|why| unable(&why))?;
    let protocol = choose(values("sec-websocket-protocol"))?;
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol.name()));
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(accept).map_err(|why| unable(&why))?);
    Ok((Carrier::WebSocket, protocol, answer))
}

/// The first protocol of the client's that we speak.
fn choose<'a>(theirs: impl Iterator<Item = &'a [u8]>) -> Result<Protocol, Refused> {
    let theirs: Vec<String> = theirs
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|it| String::from_utf8_lossy(it.trim_ascii()).into_owned())
        .collect();
    let chosen = theirs.iter().find_map(|it| Protocol::ALL.into_iter().find(|ours| ours.name() == it));
    chosen.ok_or_else(|| {
        let (theirs, ours) = (theirs.join(" "), Protocol::ALL.map(Protocol::name).join(" "));
        let why = format!("unable to negotiate protocol: client supports [{theirs}], server accepts [{ours}]");
        Refused(StatusCode::FORBIDDEN, format!("unable to upgrade: {why}"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_read_and_passed_on_word_by_word() {
        let read = |query| Asked::parse(query).map_err(|refused| refused.1);
        let asked =
            read("command=sh&command=-c&command=a+%26+%C3%A4&command=&input=1&output=1&error=true&tty=0").unwrap();
        assert_eq!(asked.command, ["sh", "-c", "a & ä", ""]);
        assert_eq!((asked.stdin, asked.stdout, asked.stderr, asked.tty), (true, true, false, false));
        assert_eq!(asked.path(), "/insula/v1/exec?arg=sh&arg=-c&arg=a%20%26%20%C3%A4&arg=&pty=0");
        let terminal = read("command=sh&output=1&error=1&tty=1").unwrap();
        assert!(terminal.tty && !terminal.stderr && terminal.path().ends_with("&pty=1"));
        assert_eq!(read("command=sh").unwrap_err(), "you must specify at least 1 of stdin, stdout, stderr");
        assert_eq!(
            read("error=1&tty=1&command=sh").unwrap_err(),
            "you must specify at least 1 of stdin, stdout, stderr"
        );
        assert_eq!(read("output=1").unwrap_err(), "you must specify a command");
        assert!(read("output=1&command=%ff").is_err());
    }
}
