//! The node's protocol as calls.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use wire::node::{Bind, Create, Event, Sandbox, Sandboxes, Stats};

use crate::Error;
use crate::link::{Body, Link, accepted, full};

/// Longer than a machine under load needs.
const START: Duration = Duration::from_secs(30);
/// Longer than the node waits for the kernel.
const END: Duration = Duration::from_secs(45);
const LOOK: Duration = Duration::from_secs(10);
/// The longest line of a watch: the first one names every sandbox.
const LINE: usize = 32 << 20;

const NOTHING: Option<&()> = None;

impl Link {
    pub(crate) async fn create(&self, asked: &Create) -> Result<Sandbox, Error> {
        self.call("start a sandbox", Method::POST, "/v1/sandboxes", Some(asked), START).await
    }

    pub(crate) async fn list(&self) -> Result<Vec<Sandbox>, Error> {
        let all: Sandboxes = self.call("list its sandboxes", Method::GET, "/v1/sandboxes", NOTHING, LOOK).await?;
        Ok(all.sandboxes)
    }

    pub(crate) async fn bind(&self, id: &str, asked: &Bind) -> Result<Sandbox, Error> {
        let path = format!("/v1/sandboxes/{id}/bind");
        self.call("bind a sandbox", Method::POST, &path, Some(asked), START).await
    }

    pub(crate) async fn stats(&self, id: &str) -> Result<Stats, Error> {
        let path = format!("/v1/sandboxes/{id}/stats");
        self.call("measure a sandbox", Method::GET, &path, NOTHING, LOOK).await
    }

    /// Returns when nothing of it is left.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), Error> {
        let path = format!("/v1/sandboxes/{id}");
        match self.call::<Sandbox>("end a sandbox", Method::DELETE, &path, NOTHING, END).await {
            Ok(_) | Err(Error::Ended { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A request to a sandbox's execd; an error is what the node or execd says.
    pub(crate) async fn execd(
        &self,
        id: &str,
        method: Method,
        path: &str,
        kind: &str,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        const DOING: &str = "pass a request on";
        let path = format!("/v1/sandboxes/{id}/execd/{path}");
        accepted(DOING, self.send(DOING, method, &path, kind, body).await?).await
    }

    /// All that is there, then every change, until the node cuts it off or goes.
    pub(crate) async fn watch(&self) -> Result<Pin<Box<dyn Stream<Item = Result<Event, Error>> + Send>>, Error> {
        const DOING: &str = "tell what happens";
        let asked = self.send(DOING, Method::GET, "/v1/watch", "application/json", full(""));
        let response = tokio::time::timeout(LOOK, asked).await.map_err(Error::unreachable(DOING))??;
        let body = accepted(DOING, response).await?.into_body();
        let events = stream::unfold((body, Vec::new()), |(mut body, mut read)| async move {
            let mut seen = 0;
            loop {
                if let Some(at) = read.iter().skip(seen).position(|byte| *byte == b'\n') {
                    let rest = read.split_off(seen + at + 1);
                    let event = serde_json::from_slice(&read).map_err(|error| Error::Nonsense(error.to_string()));
                    return Some((event, (body, rest)));
                }
                seen = read.len();
                if seen > LINE {
                    return None;
                }
                let frame = body.frame().await?.ok()?;
                read.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            }
        });
        Ok(Box::pin(events))
    }
}
