//! `exec` and `attach`: a command in a container, and the container's own streams, over Kubernetes' channels.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use wire::execd::EXEC;
use wire::{query, websocket};

use super::channels::{Carrier, Protocol, carry};
use super::door::Pods;
use super::process::Process;
use super::{CONTAINER, Found, Kubelet, Refused, Target, ask, is_running, plain, spdy, without};
use crate::engine::{Engine, Sandbox};
use crate::pod::ExecConfig;
use crate::proxy::{Body, full};

/// How long the connections may take to become what was agreed on.
pub(super) const UPGRADE: Duration = Duration::from_secs(10);
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

/// What the channels are connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Command,
    /// The container's first process.
    Container,
}

impl Asked {
    fn parse(query: &str, to: To) -> Result<Self, Refused> {
        let refused = |why: &str| Refused(StatusCode::BAD_REQUEST, why.to_owned());
        let mut asked = Self::default();
        for (name, value) in query::pairs(query) {
            let flag = value == b"1";
            match name.as_slice() {
                b"command" if to == To::Command => {
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
        if to == To::Command && asked.command.is_empty() {
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
    kubelet: &Kubelet,
    target: Target<'_>,
    container: &str,
    to: To,
    request: Request<()>,
) -> Result<Response<Body>, Refused> {
    let asked = Asked::parse(request.uri().query().unwrap_or_default(), to)?;
    match kubelet.find(target) {
        Some(Found::Sandbox(engine, sandbox)) => {
            in_sandbox(kubelet, engine, &sandbox, container, to, asked, request).await
        }
        Some(Found::Pod(pods, pod)) => in_pod(kubelet, pods, &pod, container, to, asked, request),
        None => Err(Refused(StatusCode::NOT_FOUND, "pod does not exist".to_owned())),
    }
}

async fn in_sandbox(
    kubelet: &Kubelet,
    engine: &Engine,
    sandbox: &Sandbox,
    container: &str,
    to: To,
    asked: Asked,
    mut request: Request<()>,
) -> Result<Response<Body>, Refused> {
    if to == To::Container {
        return Err(without("attach: its first process takes no input; exec starts one that does"));
    }
    if container != CONTAINER {
        return Err(Refused(StatusCode::NOT_FOUND, format!("container not found ({container:?})")));
    }
    is_running(sandbox)?;
    let (carrier, protocol, switched) = handshake(request.headers())?;
    let headers = [
        (header::UPGRADE, "websocket"),
        (header::CONNECTION, "Upgrade"),
        (header::SEC_WEBSOCKET_VERSION, websocket::VERSION),
        (header::SEC_WEBSOCKET_KEY, KEY),
    ];
    let mut started = ask(engine, sandbox, &asked.path(), &headers).await?;
    let (theirs, ours) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut started));
    // When the client has gone meanwhile, its command goes with the connection to execd.
    kubelet.session("exec", async move {
        let both = tokio::time::timeout(UPGRADE, async { tokio::try_join!(theirs, ours) }).await;
        if let Ok(Ok((theirs, ours))) = both {
            let process = Process::of_execd(TokioIo::new(ours));
            Box::pin(carry(TokioIo::new(theirs), process, &asked, carrier, protocol)).await;
        }
    });
    Ok(switch(switched))
}

fn in_pod(
    kubelet: &Kubelet,
    pods: &Arc<dyn Pods>,
    pod: &Pod,
    container: &str,
    to: To,
    asked: Asked,
    mut request: Request<()>,
) -> Result<Response<Body>, Refused> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let state = pods.state(&uid);
    let runs =
        state.as_ref().is_some_and(|it| it.containers.iter().any(|it| it.name == container && it.exit.is_none()));
    let frozen = state.filter(|it| it.frozen).map(|it| it.config.frozen());
    let process = match to {
        _ if let Some(why) = frozen
            && runs =>
        {
            Err(why)
        }
        To::Command if !runs => Err(format!("container not found ({container:?})")),
        To::Command => {
            let config = ExecConfig {
                args: asked.command.clone(),
                // As containerd does.
                env: asked.tty.then(|| ("TERM".to_owned(), "xterm".to_owned())).into_iter().collect(),
                stdin: asked.stdin,
                stdout: asked.stdout,
                stderr: asked.stderr,
                tty: asked.tty,
            };
            Ok(Process::of_exec(pods.exec(&uid, container, config)))
        }
        To::Container => {
            let attached = if runs { pods.attach(&uid, container, asked.stdin) } else { None };
            let full_name = format!(
                "{}_{}",
                pod.metadata.name.as_deref().unwrap_or_default(),
                pod.metadata.namespace.as_deref().unwrap_or_default()
            );
            attached
                .map(Process::of_container)
                .ok_or_else(|| format!("container {container} not found in pod {full_name}"))
        }
    };
    let (carrier, protocol, switched) = handshake(request.headers())?;
    let process = match (process, carrier) {
        (Ok(process), _) => process,
        (Err(why), Carrier::Spdy) => return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, why)),
        // As the API server tells it, who asks a kubelet over SPDY for a client of WebSocket.
        (Err(why), Carrier::WebSocket) => Process::failed(format!("unable to upgrade connection: {why}")),
    };
    let theirs = hyper::upgrade::on(&mut request);
    kubelet.session("exec", async move {
        if let Ok(Ok(theirs)) = tokio::time::timeout(UPGRADE, theirs).await {
            Box::pin(carry(TokioIo::new(theirs), process, &asked, carrier, protocol)).await;
        }
    });
    Ok(switch(switched))
}

/// That from here on something else is spoken.
pub(super) fn switch(headers: HeaderMap) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response
}

/// What is spoken, and the headers of the answer that says so.
fn handshake(headers: &HeaderMap) -> Result<(Carrier, Protocol, HeaderMap), Refused> {
    let over_websocket = Protocol::OVER_WEBSOCKET.map(Protocol::name);
    let (carrier, chosen, answer) = upgrade(headers, &Protocol::OVER_SPDY.map(Protocol::name), &over_websocket)?;
    let protocol = Protocol::OVER_WEBSOCKET.into_iter().find(|it| it.name() == chosen).unwrap_or(Protocol::V4);
    Ok((carrier, protocol, answer))
}

/// What carries what is spoken, its name (one of those that we speak over it), and the headers of the answer that says so.
pub(super) fn upgrade(
    headers: &HeaderMap,
    over_spdy: &[&'static str],
    over_websocket: &[&'static str],
) -> Result<(Carrier, &'static str, HeaderMap), Refused> {
    let values = |name| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let mut answer = HeaderMap::new();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if values("upgrade").any(|it| it.eq_ignore_ascii_case(spdy::NAME.as_bytes())) {
        let protocol = choose(values(VERSION), over_spdy)?;
        answer.insert(header::UPGRADE, HeaderValue::from_static(spdy::NAME));
        answer.insert(VERSION, HeaderValue::from_static(protocol));
        return Ok((Carrier::Spdy, protocol, answer));
    }
    let unable = |why: &dyn std::fmt::Display| Refused(StatusCode::BAD_REQUEST, format!("unable to upgrade: {why}"));
    let accept = websocket::accept(values).map_err(|why| unable(&why))?;
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let mut protocol = "";
    // Where one without a name will do, none need be offered.
    if !over_websocket.contains(&"") || values("sec-websocket-protocol").next().is_some() {
        protocol = choose(values("sec-websocket-protocol"), over_websocket)?;
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    answer.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(accept).map_err(|why| unable(&why))?);
    Ok((Carrier::WebSocket, protocol, answer))
}

/// The first protocol of the client's that we speak.
fn choose<'a>(theirs: impl Iterator<Item = &'a [u8]>, ours: &[&'static str]) -> Result<&'static str, Refused> {
    let theirs: Vec<String> = theirs
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|it| String::from_utf8_lossy(it.trim_ascii()).into_owned())
        .collect();
    let chosen = theirs.iter().find_map(|it| ours.iter().find(|ours| **ours == it));
    chosen.copied().ok_or_else(|| {
        let (theirs, ours) = (theirs.join(" "), ours.join(" "));
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
        let read = |query| Asked::parse(query, To::Command).map_err(|refused| refused.1);
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
