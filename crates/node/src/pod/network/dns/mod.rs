//! The name server of pods: services and their endpoints below `cluster.local`, and nothing else.

mod message;
#[cfg(test)]
mod tests;
mod zone;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kit::{Backoff, Tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::forward::{self, Limit, Seat};
pub(super) use zone::{Known, Zone};

pub(super) const PORT: u16 = 53;
/// The longest question that is read: one has no need of more, whatever its options.
const QUESTION: usize = 1232;
/// Most connections at a time, and of one pod; most questions need none.
const STREAMS: usize = 128;
const OF_ONE: usize = 16;
/// How long a connection may take to ask.
const IDLE: Duration = Duration::from_secs(10);

/// What is known; nothing at first. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Names {
    zone: Arc<RwLock<Option<Arc<Zone>>>>,
}

impl Names {
    pub(super) fn set(&self, zone: Zone) {
        *self.zone.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(zone));
    }

    /// What a pod of this namespace means by a name, if it is one of the cluster: as its /etc/resolv.conf would have it.
    pub(super) fn known(&self, namespace: &str, name: &str) -> Option<Known> {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let within = [format!("{namespace}.svc.cluster.local"), "svc.cluster.local".into(), "cluster.local".into()];
        let mut all = within.into_iter().map(|it| format!("{name}.{it}")).chain([name.to_owned()]);
        all.find_map(|it| zone.known(&it))
    }

    /// None where nothing can be said, not even that; and while nothing is known: who asks again is told what is, and who
    /// was told that there is nothing would believe it.
    fn answer(&self, question: &[u8], most: Option<usize>, turn: usize) -> Option<Vec<u8>> {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        message::answer(&zone, question, most, turn)
    }
}

/// Answers until the shutdown begins.
pub(super) fn serve(names: &Names, datagrams: UdpSocket, streams: TcpListener, tasks: &Tasks) {
    let (ends, by_datagram) = (tasks.shutdown().clone(), names.clone());
    tasks.tenant("names of pods", async move {
        tokio::select! {
            () = ends.begun() => {}
            () = answer_datagrams(by_datagram, datagrams) => {}
        }
    });
    let (ends, names) = (tasks.shutdown().clone(), names.clone());
    let handle = move |stream, _, seat| {
        let (names, ends) = (names.clone(), ends.clone());
        async move {
            let _seat: Seat = seat;
            tokio::select! {
                () = ends.begun() => {}
                _ = answer_stream(names, stream) => {}
            }
        }
    };
    let (stop, limit) = (tasks.shutdown().clone(), Limit::new(STREAMS, OF_ONE));
    tasks.tenant("names of pods", forward::accept(streams, stop, tasks.clone(), limit, handle));
}

async fn answer_datagrams(names: Names, socket: UdpSocket) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    let mut buffer = [0u8; QUESTION];
    let mut turn = 0usize;
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((got, from)) => {
                backoff.reset();
                turn = turn.wrapping_add(1);
                let question = buffer.get(..got).unwrap_or_default();
                if let Some(answer) = names.answer(question, Some(message::DATAGRAM), turn) {
                    // Who is gone is gone; who does not take it asks again.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read a question about a name; trying again");
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

async fn answer_stream(names: Names, mut stream: TcpStream) -> io::Result<()> {
    let mut turn = stream.peer_addr().map_or(0, |it: SocketAddr| usize::from(it.port()));
    loop {
        let asked = tokio::time::timeout(IDLE, question(&mut stream)).await;
        let question = asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        turn = turn.wrapping_add(1);
        let Some(answer) = names.answer(&question, None, turn) else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let bytes = [&length.to_be_bytes(), answer.as_slice()].concat();
        let told = stream.write_all(&bytes);
        tokio::time::timeout(IDLE, told).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten()?;
    }
}

async fn question(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > QUESTION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
