//! A client of WebSocket that names its ports beforehand, as those do that know nothing of SPDY: each port has a channel
//! of data and one of errors, which begin with its number.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use wire::query;
use wire::websocket::{Broken, Message, Opcode, Side, frame};

use super::super::Refused;
use super::super::channels::write;
use super::super::websocket::Messages;
use super::session::{Fed, Input, SLOWEST, Say, Streams, To, WAITING, forward};

/// A channel's number is a byte.
const MOST: usize = 64;

/// The ports that a query names.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, Refused> {
    let refused = |why: String| Refused(StatusCode::BAD_REQUEST, why);
    let mut ports = Vec::new();
    for (_, value) in query::pairs(query).filter(|(name, _)| name == b"port") {
        for text in String::from_utf8_lossy(&value).split(',') {
            let port = text.parse().ok().filter(|port| *port > 0u16);
            ports.push(port.ok_or_else(|| refused(format!("unable to parse {text:?} as a port")))?);
        }
    }
    match ports.len() {
        0 => Err(refused("query parameter \"port\" is required".to_owned())),
        1..=MOST => Ok(ports),
        more => Err(refused(format!("{more} ports: at most {MOST} are forwarded at once"))),
    }
}

/// Serves a client until it goes, or until all its connections are over.
pub(super) async fn serve<C: AsyncRead + AsyncWrite + Send>(client: C, ports: &[u16], to: To) {
    let (from, client) = tokio::io::split(client);
    let (say, frames) = mpsc::channel(WAITING);
    let say = Say::over_channels(say);
    let mut out = std::pin::pin!(write(client, frames, frame(Side::Server, Opcode::Ping, &[]), SLOWEST));
    let (mut inputs, mut all) = (Vec::new(), FuturesUnordered::new());
    for (at, port) in (0..).zip(ports.iter().copied()) {
        let (input, output) = Input::new();
        inputs.push(Some(input));
        let (to, say) = (to.clone(), say.clone());
        let streams = Streams { data: 2 * at, error: 2 * at + 1 };
        all.push(async move {
            for channel in [streams.data, streams.error] {
                say.data(channel, false, &port.to_le_bytes()).await;
            }
            forward(to, port, streams, output, say).await;
        });
    }
    let over = tokio::select! {
        over = listen(Messages::new(from, Side::Client), inputs, &say) => over,
        _ = &mut out => return,
        () = async { while all.next().await.is_some() {} } => None,
    };
    say.farewell(over, out).await;
}

async fn listen<R>(mut from: Messages<R>, mut inputs: Vec<Option<Input>>, say: &Say) -> Option<Broken>
where
    R: AsyncRead + Unpin,
{
    loop {
        let mut data = match from.next().await {
            Err(broken) => return Some(broken),
            Ok(None | Some(Message::Close)) => return None,
            Ok(Some(Message::Pong)) => continue,
            Ok(Some(Message::Ping(data))) => {
                say.pong(&data);
                continue;
            }
            Ok(Some(Message::Binary(data) | Message::Text(data))) => data,
        };
        let Some(channel) = data.first().filter(|it| *it % 2 == 0) else { continue };
        let Some(slot) = inputs.get_mut(usize::from(channel / 2)) else { continue };
        data.drain(..1);
        if let Some(input) = slot
            && input.feed(false, data).await != Fed::Taken
        {
            *slot = None;
        }
    }
}
