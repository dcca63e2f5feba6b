//! The API server through its door: in process as a client library sees it, and over TLS as kubectl does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect shall fail there"
)]

mod access;
mod appliers;
mod audit;
mod classes;
mod custom;
mod documents;
mod echo;
mod hook;
mod kubectl;
mod kubelets;
mod lists;
mod metrics;
mod model;
mod objects;
mod policies;
mod proxies;
mod quotas;
mod roles;
mod rubbish;
mod serving;
mod tokens;
mod usage;
mod watches;
mod webhooks;

use apiserver::{ApiServer, Data, Error, Kubelets, OpenError, Options};
use http::{Method, Request};
use http_body_util::BodyExt;
use kit::{Clock, Shutdown, Tasks};
use kube::client::Body;
use serde_json::{Value, json};

/// A server with nothing in it, and its in-process client.
pub(crate) struct House {
    pub(crate) server: ApiServer,
    pub(crate) client: kube::Client,
    pub(crate) tasks: Tasks,
}

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{} is no JSON", self.text))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The texts of the `Warning` headers.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let text = |value: &http::HeaderValue| {
            let quoted = value.to_str().unwrap().strip_prefix("299 - \"").unwrap().strip_suffix('"').unwrap();
            quoted.replace("\\\"", "\"")
        };
        self.headers.get_all("warning").iter().map(text).collect()
    }

    #[track_caller]
    pub(crate) fn is(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.json()
    }
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::on(Data::Memory).await
    }

    pub(crate) async fn on(data: Data) -> Self {
        Self::with(data, None).await
    }

    pub(crate) async fn with(data: Data, kubelets: Option<Kubelets>) -> Self {
        loop {
            let (tasks, kubelets) = (Tasks::new(Shutdown::new()), kubelets.clone());
            // The machine's may be set back meanwhile; what is deleted once more is then due at another time.
            let clock = Clock::starting_at(Clock::system().now());
            let options =
                Options { data: data.clone(), clock, tasks: tasks.clone(), kubelets, audit: None, volumes: None };
            match ApiServer::open(options).await {
                Ok(server) => return Self { client: server.client(), server, tasks },
                // The clients of the house before are on their way out.
                Err(Error::Store(OpenError::InUse { .. })) => tokio::task::yield_now().await,
                Err(error) => panic!("{}", kit::chain(&error)),
            }
        }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Answer {
        send(&self.client, method, path, headers, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, object: &Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    /// Waits until an object is so, which a loop of the server makes it.
    pub(crate) async fn becomes(&self, collection: &str, name: &str, is: impl Fn(&Value) -> bool) -> Value {
        let path = format!("{collection}?watch=1&timeoutSeconds=60&fieldSelector=metadata.name%3D{name}");
        let mut body = self.client.send(Request::get(&path).body(Body::empty()).unwrap()).await.unwrap().into_body();
        let mut seen = Vec::new();
        loop {
            let frame = body.frame().await.unwrap_or_else(|| panic!("not yet: {}", String::from_utf8_lossy(&seen)));
            seen.extend(frame.unwrap().into_data().unwrap());
            let mut lines = seen.split(|it| *it == b'\n').filter_map(|it| serde_json::from_slice::<Value>(it).ok());
            if let Some(last) = lines.next_back().map(|it| it["object"].clone()).filter(&is) {
                return last;
            }
        }
    }

    /// Waits until an object is gone, which a loop of the server may do.
    pub(crate) async fn gone(&self, collection: &str, name: &str) {
        let found = self.get(&format!("{collection}/{name}")).await;
        if found.code == 404 {
            return;
        }
        let from = found.is(200)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let path = format!(
            "{collection}?watch=1&timeoutSeconds=60&resourceVersion={from}&fieldSelector=metadata.name%3D{name}"
        );
        let mut body = self.client.send(Request::get(&path).body(Body::empty()).unwrap()).await.unwrap().into_body();
        let mut seen = String::new();
        while !seen.contains(r#"{"type":"DELETED""#) {
            let frame = body.frame().await.unwrap_or_else(|| panic!("{name} does not go: {seen}"));
            seen.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
        }
    }

    /// `language` is `json`, `merge`, `strategic-merge` or `apply`.
    pub(crate) async fn patch(&self, path: &str, language: &str, patch: &Value) -> Answer {
        let media_type = match language {
            "apply" => "application/apply-patch+yaml".to_owned(),
            language => format!("application/{language}-patch+json"),
        };
        self.send(Method::PATCH, path, &[("content-type", &media_type)], patch.to_string()).await
    }
}

/// Asks as the client does, and reads the answer to its end.
pub(crate) async fn send(
    client: &kube::Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Vec<u8>>,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("user-agent", "tests/1");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = client.send(request.body(Body::from(body.into())).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    Answer { code: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub(crate) fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}
