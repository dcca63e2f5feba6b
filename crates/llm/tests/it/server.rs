use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use kit::{Shutdown, Tasks};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// A server that writes, to each connection in turn, the next of the given bytes whatever it is asked.
pub(crate) struct Raw {
    at: SocketAddr,
    pub(crate) tasks: Tasks,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    /// Told when an answer is written, and when a connection that is held open was closed by the client.
    pub(crate) written: Arc<Notify>,
    pub(crate) closed: Arc<Notify>,
}

/// What happens after the bytes are written.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Then {
    Close,
    Hold,
}

impl Raw {
    pub(crate) async fn start(answers: Vec<Vec<u8>>, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let raw = Self {
            at: listener.local_addr().unwrap(),
            tasks: Tasks::new(Shutdown::new()),
            asked: Arc::default(),
            written: Arc::default(),
            closed: Arc::default(),
        };
        let (asked, written, closed) = (raw.asked.clone(), raw.written.clone(), raw.closed.clone());
        raw.tasks.tenant("raw server", async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let question = read(&mut stream).await;
                asked.lock().unwrap().push(question);
                // The client may hang up in the middle: that is a thing to test.
                let _ = stream.write_all(&answer).await;
                written.notify_one();
                if then == Then::Hold {
                    let _ = stream.read(&mut [0]).await;
                    closed.notify_one();
                } else {
                    let _ = stream.shutdown().await;
                }
            }
        });
        raw
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.at)
    }

    /// The head (in lower case) and the body of each request.
    pub(crate) fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().unwrap().clone()
    }
}

async fn read(stream: &mut TcpStream) -> (String, Value) {
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0, "the client hung up before it had asked");
        bytes.extend_from_slice(&piece[..read]);
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let length = head.lines().find_map(|it| it.strip_prefix("content-length: ")).unwrap().parse::<usize>().unwrap();
        if bytes.len() == end + 4 + length {
            return (head, serde_json::from_slice(&bytes[end + 4..]).unwrap());
        }
    }
}

/// A response whose body ends with the connection.
pub(crate) fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n{body}").into_bytes()
}

pub(crate) fn stream(events: &[&str]) -> Vec<u8> {
    let body: String = events.iter().map(|it| format!("data: {it}\n\n")).collect();
    response("200 OK", "content-type: text/event-stream\r\n", &body)
}

pub(crate) fn whole(body: &str) -> Vec<u8> {
    response("200 OK", "content-type: application/json; charset=utf-8\r\n", body)
}
