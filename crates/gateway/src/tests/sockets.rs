use super::*;

use ledger::{Cause, Outcome, Step};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::Gateway;

async fn ask(stream: &mut TcpStream) {
    let request = format!("GET {EVENTS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer the-key\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// What comes until the server closes.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    // A connection that is cut off may end in a reset.
    let _ = stream.read_to_end(&mut read).await;
    read
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let house = House::new();
    house.cluster.put("u1", json!({}));
    house.submit("u1").await;
    let lease = house.ledger.lease("test").await.unwrap();
    let (chunk, count) = ("x".repeat(500_000), 30);
    for _ in 0..count {
        house.ledger.append(&lease.run, lease.epoch, Step::Noted { text: chunk.clone() }).await.unwrap();
    }
    house.ledger.finish(&lease.run, lease.epoch, Outcome::failed(Cause::Other, "x")).await.unwrap();
    let at = Gateway::listen(house.options(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = socket.connect(at).await.unwrap();
    ask(&mut stuck).await;
    stuck.readable().await.unwrap();
    // Nobody reads on: the clock, which jumps when there is nothing else to do, comes to the deadline.
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(31)).await;
    tokio::time::resume();
    let got = rest(&mut stuck).await;
    assert!(got.starts_with(b"HTTP/1.1 200 OK") && got.len() < chunk.len() * count, "{}", got.len());
}

#[tokio::test]
async fn the_end_of_the_house_ends_every_connection() {
    let house = House::new();
    house.cluster.put("u1", json!({}));
    let at = Gateway::listen(house.options(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let taken = Gateway::listen(house.options(), at).await.unwrap_err();
    assert_eq!(taken.to_string(), format!("cannot listen on {at}"));
    let mut idle = TcpStream::connect(at).await.unwrap();
    let mut follows = TcpStream::connect(at).await.unwrap();
    ask(&mut follows).await;
    let mut first = vec![0; 4096];
    let read = follows.read(&mut first).await.unwrap();
    assert!(first[..read].starts_with(b"HTTP/1.1 200 OK"));
    house.tasks.end().await;
    assert_eq!(rest(&mut idle).await, b"");
    let got = String::from_utf8(rest(&mut follows).await).unwrap();
    assert!(got.ends_with("0\r\n\r\n"), "{got}");
    house.tasks.watch().await.unwrap();
}
