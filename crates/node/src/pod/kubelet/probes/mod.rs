//! Probes and hooks, acted on: commands, HTTP, TCP and gRPC, from inside the pod's own network where no host is named.

mod grpc;
mod hook;
mod http;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Pod, Probe};

use super::spec;
use super::world::{Ran, Wire, World};
use crate::pod::StartError;
pub(super) use hook::hook;

/// What a probe keeps of an answer or an output.
pub(super) const MOST: usize = 10 << 10;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Passed,
    /// Passed, and there is something to be said.
    Warned(String),
    Failed(String),
    /// Nobody knows: the probe itself did not work. Counts for nothing.
    Unknown(String),
}

/// A pod, seen from its node.
pub(super) struct Target<'a, W> {
    pub world: &'a W,
    pub pod: &'a Pod,
    pub container: &'a Container,
    /// As messages name it.
    pub address: String,
}

pub(super) async fn probe<W: World>(target: &Target<'_, W>, probe: &Probe) -> Found {
    let seconds = probe.timeout_seconds.unwrap_or(1).max(1);
    let limit = Duration::from_secs(seconds.unsigned_abs().into());
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        let said = format!("command timed out: \"{}\" timed out after {seconds}s", command.join(" "));
        return match tokio::time::timeout(limit, target.exec(command)).await {
            Err(_) => Found::Failed(said),
            Ok(Ok(ran)) if ran.code == 0 => Found::Passed,
            Ok(Ok(ran)) => Found::Failed(text(&ran.output)),
            Ok(Err(error)) => Found::Unknown(kit::chain(&error)),
        };
    }
    if let Some(get) = &probe.http_get {
        return http::probe(target, get, limit).await;
    }
    if let Some(grpc) = &probe.grpc {
        return grpc::probe(target, grpc, limit, seconds).await;
    }
    let Some(tcp) = &probe.tcp_socket else {
        return Found::Unknown("missing probe handler".to_owned());
    };
    let port = match spec::port(target.container, &tcp.port) {
        Ok(port) => port,
        Err(error) => return Found::Unknown(error),
    };
    let host = tcp.host.as_deref().filter(|it| !it.is_empty());
    let place = place(host.unwrap_or(&target.address), port);
    match tokio::time::timeout(limit, target.dial(host, port)).await {
        Ok(Ok(_)) => Found::Passed,
        Ok(Err(error)) => Found::Failed(dialed(&place, &error)),
        Err(_) => Found::Failed(format!("dial tcp {place}: i/o timeout")),
    }
}

impl<W: World> Target<'_, W> {
    async fn exec(&self, command: Vec<String>) -> Result<Ran, StartError> {
        self.world.exec(spec::uid(self.pod), &self.container.name, command, MOST).await
    }

    /// Without a host: inside the pod.
    async fn dial(&self, host: Option<&str>, port: u16) -> io::Result<Box<dyn Wire>> {
        self.world.dial(spec::uid(self.pod), host, port).await
    }
}

/// As a URL has it.
fn place(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// In the words of those who look for them in events.
fn dialed(place: &str, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {place}: {why}")
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes.get(..MOST).unwrap_or(bytes)).into_owned()
}

/// Scheme, host (where one is named), port and path of what is to be got.
fn of_get(container: &Container, get: &HTTPGetAction) -> Result<http::Url, String> {
    let https = get.scheme.as_deref().is_some_and(|it| it.eq_ignore_ascii_case("https"));
    let path = get.path.as_deref().unwrap_or_default();
    Ok(http::Url {
        https,
        host: get.host.clone().filter(|it| !it.is_empty()),
        port: spec::port(container, &get.port)?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
    })
}
