//! A stream of bytes to a client of WebSocket, as upstream's API server gives it to one that asks for a log so.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use wire::websocket::{self, Message, Opcode, Side, frame};

use super::exec::{UPGRADE, switch, upgrade};
use super::websocket::Messages;
use super::{Kubelet, Refused};
use crate::proxy::Body;

/// What a message has in it; a client that offers nothing gets the bytes.
const BINARY: &str = "binary.k8s.io";
const TEXT: &str = "base64.binary.k8s.io";

pub(super) fn is_asked(headers: &HeaderMap) -> bool {
    headers.get_all(http::header::UPGRADE).iter().any(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Has the body of an answer go over the connection that the request came by.
pub(super) fn answer(
    kubelet: &Kubelet,
    mut request: Request<()>,
    response: Response<Body>,
) -> Result<Response<Body>, Refused> {
    let (_, protocol, switched) = upgrade(request.headers(), &[], &[BINARY, TEXT, ""])?;
    let client = hyper::upgrade::on(&mut request);
    kubelet.session("log", async move {
        if let Ok(Ok(client)) = tokio::time::timeout(UPGRADE, client).await {
            // Who leaves in the middle misses the rest.
            let _ = carry(TokioIo::new(client), response.into_body(), protocol == TEXT).await;
        }
    });
    Ok(switch(switched))
}

async fn carry(client: TokioIo<Upgraded>, mut body: Body, as_text: bool) -> std::io::Result<()> {
    let (read, mut write) = tokio::io::split(client);
    let mut said = Messages::new(read, Side::Client);
    let message = |data: &[u8]| match as_text {
        true => frame(Side::Server, Opcode::Text, &[BASE64.encode(data).as_bytes()]),
        false => frame(Side::Server, Opcode::Binary, &[data]),
    };
    // That we are there.
    write.write_all(&message(b"")).await?;
    loop {
        let next = tokio::select! {
            said = said.next() => match said {
                Ok(Some(Message::Ping(data))) => frame(Side::Server, Opcode::Pong, &[&data]),
                Ok(Some(Message::Close) | None) | Err(_) => return Ok(()),
                Ok(Some(_)) => continue,
            },
            part = body.frame() => match part {
                Some(Ok(part)) => match part.into_data() {
                    Ok(data) => message(&data),
                    Err(_) => continue,
                },
                Some(Err(_)) | None => break,
            },
        };
        write.write_all(&next).await?;
    }
    write.write_all(&websocket::close(Side::Server, 1000, "")).await?;
    write.shutdown().await
}
