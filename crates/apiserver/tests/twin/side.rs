//! One of the two servers.

use std::time::Duration;

use futures::TryStreamExt;
use http::Request;
use http_body_util::BodyExt;
use kube::client::Body;

/// How long the events of a watch are waited for.
const EVENTS: Duration = Duration::from_secs(10);

pub(crate) struct Side(pub(crate) kube::Client);

#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) content: String,
    pub(crate) warnings: Vec<String>,
    pub(crate) location: Option<String>,
    pub(crate) text: String,
}

impl Side {
    /// `events`: reads so many lines, and then leaves.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
        events: Option<usize>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.0.send(request.body(Body::from(body.as_bytes().to_vec())).unwrap()).await;
        let response = match response {
            Ok(response) => response,
            Err(error) => return Answer { text: format!("no answer: {}", kit::chain(&error)), ..Answer::default() },
        };
        let (parts, body) = response.into_parts();
        let header = |value: &http::HeaderValue| value.to_str().unwrap_or("not text").to_owned();
        let mut answer = Answer {
            code: parts.status.as_u16(),
            content: parts.headers.get("content-type").map(header).unwrap_or_default(),
            warnings: parts.headers.get_all("warning").iter().map(header).collect(),
            location: parts.headers.get("location").map(header),
            text: String::new(),
        };
        let Some(events) = events.filter(|_| answer.code == 200) else {
            let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            answer.text = String::from_utf8_lossy(&bytes).into_owned();
            return answer;
        };
        let mut stream = body.into_data_stream();
        let mut bytes = Vec::new();
        let read = async {
            while bytes.iter().filter(|it| **it == b'\n').count() < events {
                match stream.try_next().await {
                    Ok(Some(more)) => bytes.extend_from_slice(&more),
                    _ => return,
                }
            }
        };
        let in_time = tokio::time::timeout(EVENTS, read).await.is_ok();
        // More than was asked for may have come in the last piece.
        answer.text = String::from_utf8_lossy(&bytes).lines().take(events).map(|line| format!("{line}\n")).collect();
        if !in_time {
            answer.text += "no further event\n";
        }
        answer
    }
}
