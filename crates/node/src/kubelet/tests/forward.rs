//! portForward.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use wire::websocket::{Decoder, Message, Opcode, Side, frame};

use super::scripted::{Scripted, UID, ask};

const SPDY: &str = "Upgrade: SPDY/3.1\r\nConnection: Upgrade\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";
const TUNNEL: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n";

/// kubectl's end: SPDY, in the messages of a WebSocket or not.
struct Client {
    stream: DuplexStream,
    tunnel: Option<Decoder>,
    received: Vec<u8>,
    begun: bool,
}

#[derive(Debug, PartialEq)]
enum Said {
    Reply(u32),
    Reset(u32),
    Data(u32, String),
    Last(u32, String),
}

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        match self.tunnel {
            // Frames need not be messages.
            Some(_) => {
                for piece in bytes.chunks(7) {
                    self.stream.write_all(&frame(Side::Client, Opcode::Binary, &[piece])).await.unwrap();
                }
            }
            None => self.stream.write_all(bytes).await.unwrap(),
        }
    }

    async fn stream(&mut self, id: u32, headers: &[(&str, &str)]) {
        let length = |text: &[u8]| (text.len() as u32).to_be_bytes().to_vec();
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]) {
            block.extend(length(text));
            block.extend(text);
        }
        // Not packed: a block as it is, and an empty one; before the first, zlib's head.
        let head: &[u8] = if std::mem::replace(&mut self.begun, true) { &[] } else { &[0x78, 1] };
        let size = block.len() as u16;
        let packed = [head, &[0], &size.to_le_bytes(), &(!size).to_le_bytes(), &block, &[0, 0, 0, 255, 255]].concat();
        let payload = [&id.to_be_bytes(), [0; 6].as_slice(), &packed].concat();
        self.send(&[&[0x80, 3, 0, 1], length(&payload).as_slice(), &payload].concat()).await;
    }

    /// Both streams of a connection: its number, and the next one.
    async fn connection(&mut self, id: u32, port: &str) {
        let request = id.to_string();
        for (at, kind) in ["error", "data"].into_iter().enumerate() {
            let id = id + 2 * at as u32;
            self.stream(id, &[("port", port), ("streamtype", kind), ("requestid", &request)]).await;
            assert_eq!(self.next().await, Said::Reply(id));
        }
    }

    async fn data(&mut self, id: u32, last: bool, text: &str) {
        let length = (text.len() as u32).to_be_bytes();
        let head = [u8::from(last), length[1], length[2], length[3]];
        self.send(&[&id.to_be_bytes(), head.as_slice(), text.as_bytes()].concat()).await;
    }

    async fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.received.len() < count {
            match &mut self.tunnel {
                None => assert!(self.stream.read_buf(&mut self.received).await.unwrap() > 0),
                Some(decoder) => match decoder.message().unwrap() {
                    Some(Message::Binary(data)) => self.received.extend(data),
                    Some(other) => panic!("{other:?}"),
                    None => assert!(self.stream.read_buf(decoder.received()).await.unwrap() > 0),
                },
            }
        }
        self.received.drain(..count).collect()
    }

    async fn next(&mut self) -> Said {
        let id = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let (head, data) = loop {
            let head = self.bytes(8).await;
            let data = self.bytes((id(&head[4..]) & 0xff_ffff) as usize).await;
            // Whether we are there is asked now and then.
            if head[..4] != [0x80, 3, 0, 6] {
                break (head, data);
            }
        };
        match (head[0] & 0x80 != 0, head[3]) {
            (true, 2) => Said::Reply(id(&data)),
            (true, 3) => Said::Reset(id(&data)),
            (true, other) => panic!("a frame of type {other}"),
            (false, _) => {
                let text = String::from_utf8(data).unwrap();
                if head[4] == 1 { Said::Last(id(&head), text) } else { Said::Data(id(&head), text) }
            }
        }
    }
}

async fn open(pods: &std::sync::Arc<Scripted>, tunnel: bool) -> Client {
    let path = format!("portForward/n/p/{UID}");
    let (stream, (status, said)) = ask(&pods.kubelet(), "POST", &path, if tunnel { TUNNEL } else { SPDY }).await;
    assert_eq!(status, 101, "{said}");
    let named = if tunnel { "sec-websocket-protocol: SPDY/3.1+" } else { "x-stream-protocol-version: " };
    assert!(said.contains(&format!("{named}portforward.k8s.io\r\n")), "{said}");
    let tunnel = tunnel.then(|| Decoder::new(Side::Server));
    Client { stream, tunnel, received: Vec::new(), begun: false }
}

#[tokio::test]
async fn many_connections_go_through_one() {
    for tunnel in [false, true] {
        let pods = Scripted::new(json!({}));
        let (mut web, mut other) = (pods.listen(80), pods.listen(5432));
        let mut client = open(&pods, tunnel).await;
        client.connection(1, "80").await;
        client.connection(5, "5432").await;
        let (mut first, mut second) = (web.recv().await.unwrap(), other.recv().await.unwrap());
        client.data(7, false, "second").await;
        client.data(3, true, "first").await;
        let mut asked = [0; 6];
        second.read_exact(&mut asked).await.unwrap();
        assert_eq!(&asked, b"second");
        // The end of what was asked is not the end of the answer.
        let mut asked = String::new();
        first.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "first");
        first.write_all(b"answer").await.unwrap();
        assert_eq!(client.next().await, Said::Data(3, "answer".into()));
        drop(first);
        assert_eq!((client.next().await, client.next().await), (Said::Last(1, "".into()), Said::Last(3, "".into())));
        // One whose client gives it up is closed.
        client.send(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 5]).await;
        assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
        assert_eq!((client.next().await, client.next().await), (Said::Last(5, "".into()), Said::Last(7, "".into())));
        // The rest goes with the client.
        client.connection(9, "80").await;
        let mut third = web.recv().await.unwrap();
        drop(client);
        assert_eq!(third.read(&mut [0]).await.unwrap(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_with_one_connection_is_its_own_affair() {
    let pods = Scripted::new(json!({}));
    let mut listening = pods.listen(80);
    let mut client = open(&pods, false).await;
    client.connection(1, "81").await;
    let Said::Last(1, why) = client.next().await else { panic!("an error is told") };
    assert_eq!(
        why,
        format!(
            "error forwarding port 81 to pod p, uid {UID}: failed to connect to localhost:81 inside the pod: connect: connection refused"
        )
    );
    assert_eq!(client.next().await, Said::Last(3, "".into()));
    for (at, headers) in [
        &[("streamtype", "data")][..],
        &[("port", "0"), ("streamtype", "data")],
        &[("port", "65536"), ("streamtype", "data")],
        &[("port", "80"), ("streamtype", "other"), ("requestid", "x")],
        &[("port", "80")],
    ]
    .into_iter()
    .enumerate()
    {
        let id = 101 + 2 * at as u32;
        client.stream(id, headers).await;
        assert_eq!(client.next().await, Said::Reset(id), "{headers:?}");
    }
    // Half of one is given up in time.
    client.stream(201, &[("port", "80"), ("streamtype", "error"), ("requestid", "half")]).await;
    client.stream(203, &[("port", "80"), ("streamtype", "error"), ("requestid", "half")]).await;
    assert_eq!((client.next().await, client.next().await), (Said::Reply(201), Said::Reset(203)));
    client.stream(205, &[("port", "80"), ("streamtype", "data"), ("requestid", "other half")]).await;
    assert_eq!(client.next().await, Said::Reply(205));
    let mut told = [client.next().await, client.next().await];
    told.sort_by_key(|it| matches!(it, Said::Reset(_)));
    assert_eq!(told, [Said::Last(201, "timed out waiting for streams".into()), Said::Reset(205)]);

    // One that takes nothing holds up the others for a while, and is given up.
    client.connection(301, "80").await;
    client.connection(305, "80").await;
    let (stuck, mut other) = (listening.recv().await.unwrap(), listening.recv().await.unwrap());
    for _ in 0..40 {
        client.data(303, false, &"x".repeat(32 << 10)).await;
    }
    client.data(307, false, "still here").await;
    let mut asked = [0; 10];
    other.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"still here");
    let mut told = [client.next().await, client.next().await, client.next().await];
    told.sort_by_key(|it| !matches!(it, Said::Reset(_)));
    assert_eq!(told, [Said::Reset(303), Said::Last(301, "".into()), Said::Last(303, "".into())]);
    drop(stuck);
}

#[tokio::test]
async fn who_names_the_ports_has_two_channels_for_each() {
    let pods = Scripted::new(json!({}));
    let mut web = pods.listen(80);
    let headers = TUNNEL.replace("SPDY/3.1+portforward", "v4.channel");
    let path = format!("portForward/n/p/{UID}");
    for query in ["", "?port=", "?port=0", "?port=80,x"] {
        assert_eq!(ask(&pods.kubelet(), "GET", &format!("{path}{query}"), &headers).await.1.0, 400, "{query}");
    }
    let (mut stream, (status, said)) = ask(&pods.kubelet(), "GET", &format!("{path}?port=80%2C81"), &headers).await;
    assert_eq!(status, 101, "{said}");
    let mut decoder = Decoder::new(Side::Server);
    let mut said: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    let why = format!(
        "error forwarding port 81 to pod p, uid {UID}: failed to connect to localhost:81 inside the pod: connect: connection refused"
    );
    let refused = [&[81, 0], why.as_bytes()].concat();
    let mut connection = None;
    loop {
        match decoder.message().unwrap() {
            Some(Message::Binary(data)) => said.entry(data[0]).or_default().extend(&data[1..]),
            Some(Message::Close) => break,
            Some(other) => panic!("{other:?}"),
            None => assert!(stream.read_buf(decoder.received()).await.unwrap() > 0),
        }
        if said.get(&3) == Some(&refused) && said.len() == 4 && connection.is_none() {
            // One that is not there says nothing of the others.
            stream.write_all(&frame(Side::Client, Opcode::Binary, &[b"\0", b"ask"])).await.unwrap();
            stream.write_all(&frame(Side::Client, Opcode::Binary, &[b"\x08", b"nobody"])).await.unwrap();
            let it = connection.insert(web.recv().await.unwrap());
            let mut asked = [0; 3];
            it.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"ask");
            it.write_all(b"answer").await.unwrap();
            it.shutdown().await.unwrap();
        }
    }
    assert_eq!(said[&0], b"P\0answer");
    assert_eq!((said[&1].as_slice(), said[&2].as_slice()), (&b"P\0"[..], &b"Q\0"[..]));
}

#[tokio::test]
async fn an_upgrade_to_tcp_is_one_ports_connection_once_that_is_there() {
    let pods = Scripted::new(json!({}));
    let mut web = pods.listen(80);
    let headers = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
    let path = format!("portForward/n/p/{UID}");
    for (query, code, why) in [
        ("", 400, "query parameter"),
        ("?port=x", 400, "as a port"),
        ("?port=80,81", 400, "2 ports: an upgrade to tcp has one"),
        ("?port=81", 502, "connect: connection refused"),
    ] {
        let (_, (status, said)) = ask(&pods.kubelet(), "POST", &format!("{path}{query}"), headers).await;
        assert!(status == code && said.contains(why), "{query}: {status} {said}");
    }
    let (mut stream, (status, said)) = ask(&pods.kubelet(), "POST", &format!("{path}?port=80"), headers).await;
    assert!(status == 101 && said.to_lowercase().contains("upgrade: tcp\r\n"), "{said}");
    let mut pod = web.recv().await.unwrap();
    stream.write_all(b"ask").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut asked = String::new();
    pod.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "ask");
    // After the end of what comes, the answer still is wanted.
    pod.write_all(b"answer").await.unwrap();
    drop(pod);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}
