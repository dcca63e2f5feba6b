//! Through the proxy's own socket, to servers on loopback that the policy names.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Place {
    proxy: SocketAddr,
    server: SocketAddr,
    tasks: Tasks,
}

/// A server that answers each request with all that it was sent.
async fn server(tasks: &Tasks, begin: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let handle = move |mut stream: TcpStream, _, seat| async move {
        let _seat: Seat = seat;
        let mut got = String::new();
        let is_whole = |it: &str| match it.contains("transfer-encoding") {
            true => it.ends_with("0\r\n\r\n"),
            false => it.contains("\r\n\r\n"),
        };
        while !is_whole(&got) {
            let mut piece = [0; 1024];
            let Ok(count @ 1..) = stream.read(&mut piece).await else { return };
            got.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        let answer = format!("{begin}content-length: {}\r\n\r\n{got}", got.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    };
    let (stop, limit) = (tasks.shutdown().clone(), Limit::new(8, 8));
    tasks.tenant("server", forward::accept(listener, stop, tasks.clone(), limit, handle));
    at
}

const GOOD: &str = "HTTP/1.1 200 OK\r\nconnection: close, x-hop\r\nx-hop: 1\r\nx-kept: 1\r\n";

/// `rules`: SERVER stands for where the server is.
async fn place(rules: &[&str], upstream: Option<&'static str>) -> Place {
    let tasks = Tasks::new(Shutdown::new());
    let server = server(&tasks, upstream.unwrap_or(GOOD)).await;
    let policy = Egress::new(rules.iter().map(|it| it.replace("SERVER", &server.to_string()))).unwrap();
    let mut matcher = Matcher::builder();
    if upstream.is_some() {
        matcher = matcher.all(format!("http://user:word@{server}"));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    serve(listener, Proxy::new(policy, matcher.build(), None, tasks.clone()));
    Place { proxy, server, tasks }
}

impl Place {
    /// All that is answered, until the other side has no more to say.
    async fn ask(&self, text: &str) -> String {
        let text = text.replace("SERVER", &self.server.to_string());
        let mut stream = TcpStream::connect(self.proxy).await.unwrap();
        let mut said = Vec::new();
        // What is refused before it was read may end in a reset.
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.read_to_end(&mut said).await;
        String::from_utf8(said).unwrap()
    }
}

#[tokio::test]
async fn what_is_allowed_is_tunnelled_or_passed_on_without_what_is_between_neighbours() {
    let place = place(&["deny", "SERVER"], None).await;
    let tunnelled = place.ask("CONNECT SERVER HTTP/1.1\r\nhost: SERVER\r\n\r\nGET /in HTTP/1.1\r\n\r\n").await;
    let (proxy, server) = tunnelled.split_once("\r\n\r\n").unwrap();
    assert!(proxy.starts_with("HTTP/1.1 200 OK"), "{proxy}");
    assert!(server.starts_with("HTTP/1.1 200 OK") && server.ends_with("GET /in HTTP/1.1\r\n\r\n"), "{server}");

    let head =
        "host: elsewhere\r\nproxy-authorization: secret\r\nconnection: close, x-mine\r\nx-mine: 1\r\nx-end: 1\r\n";
    let passed = place.ask(&format!("GET http://user@SERVER/a?b=c HTTP/1.1\r\n{head}\r\n")).await;
    let (answer, request) = passed.split_once("\r\n\r\n").unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("x-kept") && !answer.contains("x-hop"),
        "{answer}"
    );
    let is = format!("GET /a?b=c HTTP/1.1\r\nhost: {}\r\nx-end: 1\r\n\r\n", place.server);
    assert_eq!(request, is);

    let head = "host: SERVER\r\nconnection: close\r\ntransfer-encoding: chunked\r\n";
    let passed = place.ask(&format!("POST http://SERVER HTTP/1.1\r\n{head}\r\n2\r\nab\r\n0\r\n\r\n")).await;
    assert!(passed.contains("POST / HTTP/1.1") && passed.ends_with("2\r\nab\r\n0\r\n\r\n"), "{passed}");
    place.tasks.end().await;
}

const CLOSE: &str = "connection: close\r\n";

#[tokio::test]
async fn what_is_not_allowed_private_or_nonsense_is_refused_with_a_reason() {
    let open = place(&["allow"], None).await;
    let closed = place(&["example.org"], None).await;
    // As long as it may be and not at its end: all of it is read, and the answer is not lost in a reset.
    let mut long = "GET http://example.org/ HTTP/1.1\r\nx: ".to_owned();
    long.push_str(&"x".repeat(HEAD - long.len() - CLOSE.len()));
    let many = format!("GET http://example.org/ HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(FIELDS + 1));
    for (place, request, status, why) in [
        (&open, "CONNECT SERVER HTTP/1.1\r\n\r\n", 403, "insula up --egress 127.0.0.1:"),
        (&open, "GET http://SERVER/ HTTP/1.1\r\n\r\n", 403, "this machine"),
        (&open, "CONNECT localhost:80 HTTP/1.1\r\n\r\n", 403, "this machine"),
        (&open, "CONNECT host.insula.internal:80 HTTP/1.1\r\n\r\n", 403, "this machine"),
        (&open, "CONNECT 169.254.169.254:80 HTTP/1.1\r\n\r\n", 403, "private"),
        (&open, "CONNECT [::ffff:10.0.0.1]:80 HTTP/1.1\r\n\r\n", 403, "private"),
        (&open, "CONNECT 0x7f.1:80 HTTP/1.1\r\n\r\n", 403, "private"),
        (&closed, "CONNECT example.com:443 HTTP/1.1\r\n\r\n", 403, "pods may not go to example.com:443"),
        (&closed, "GET http://93.184.215.14/ HTTP/1.1\r\n\r\n", 403, "pods may not go to 93.184.215.14:80"),
        (&open, "GET /here HTTP/1.1\r\nhost: example.org\r\n\r\n", 400, "this is the proxy"),
        (&open, "GET ftp://example.org/ HTTP/1.1\r\n\r\n", 400, "CONNECT"),
        (&open, "CONNECT example.org HTTP/1.1\r\n\r\n", 400, "names no host and port"),
        (&open, "CONNECT example.org:0 HTTP/1.1\r\n\r\n", 400, "names no host and port"),
        (&open, "GET http://a..b/ HTTP/1.1\r\n\r\n", 400, "no name of a host"),
        (&open, &long, 431, ""),
        (&open, &many, 431, ""),
    ] {
        let request = request.replacen("\r\n", &format!("\r\n{CLOSE}"), 1);
        let said = place.ask(&request).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")) && said.contains(why), "{request:.99}: {said}");
    }
    open.tasks.end().await;
    closed.tasks.end().await;
}

#[tokio::test]
async fn where_this_machine_needs_a_proxy_itself_pods_go_by_it_too() {
    let auth = "proxy-authorization: Basic dXNlcjp3b3Jk\r\n";
    let passing = place(&["allow"], Some(GOOD)).await;
    let passed = passing.ask("GET http://example.org/a HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert!(passed.contains("GET http://example.org/a HTTP/1.1\r\nhost: example.org\r\n"), "{passed}");
    assert!(passed.contains(auth), "{passed}");
    for near in ["router", "metadata.google.internal", "printer.local", "10.0.0.1"] {
        let said = passing.ask(&format!("CONNECT {near}:80 HTTP/1.1\r\nconnection: close\r\n\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 403 ") && said.contains("is private"), "{said}");
    }
    passing.tasks.end().await;

    let refusing = place(&["allow"], Some("HTTP/1.1 407 No\r\nconnection: close\r\n")).await;
    let said = refusing.ask("CONNECT example.org:443 HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 502 ") && said.contains("it answers 407"), "{said}");
    refusing.tasks.end().await;
}

#[tokio::test]
async fn a_tunnel_goes_through_the_proxy_of_this_machine() {
    let tasks = Tasks::new(Shutdown::new());
    // The other proxy is one of ours.
    let server = server(&tasks, GOOD).await;
    let behind = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = behind.local_addr().unwrap();
    let policy = Egress::new(["deny".to_owned(), format!("host.insula.internal:{}", server.port())]).unwrap();
    serve(behind, Proxy::new(policy, Matcher::builder().build(), None, tasks.clone()));
    let reached =
        reach::tunnel(TcpStream::connect(at).await.unwrap(), "host.insula.internal", server.port(), None).await;
    let Reached::Place(mut stream) = reached.unwrap() else { panic!() };
    stream.write_all(b"GET /through HTTP/1.1\r\n\r\n").await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with("GET /through HTTP/1.1\r\n\r\n"), "{said}");
    tasks.end().await;
}
