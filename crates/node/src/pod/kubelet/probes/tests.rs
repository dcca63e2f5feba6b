use std::io;
use std::sync::{Arc, Mutex};

use ::http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use kit::{Clock, Shutdown, Tasks};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::pod::kubelet::stage::{Stage, ran};

const PORT: u16 = 8080;

fn stage() -> (Arc<Stage>, Tasks) {
    (Arc::new(Stage::new(Clock::starting_at(Timestamp::UNIX_EPOCH))), Tasks::new(Shutdown::new()))
}

fn container() -> (Pod, Container) {
    let meta = json!({"name": "p", "namespace": "n", "uid": "u"});
    let pod = serde_json::from_value(json!({"metadata": meta})).unwrap();
    let ports = json!([{"name": "web", "containerPort": PORT}]);
    (pod, serde_json::from_value(json!({"name": "c", "ports": ports})).unwrap())
}

async fn found(stage: &Stage, spec: Value) -> Found {
    let (pod, container) = container();
    let target = Target { world: stage, pod: &pod, container: &container, address: "10.1.0.2".to_owned() };
    probe(&target, &serde_json::from_value(spec).unwrap()).await
}

fn failed(why: &str) -> Found {
    Found::Failed(why.to_owned())
}

#[tokio::test(start_paused = true)]
async fn commands_are_cut_in_time_and_length() {
    let (stage, _) = stage();
    let long = "x".repeat(MOST + 1);
    let all = [("ok", ran(0, "fine")), ("no", ran(3, "bad\n")), ("much", ran(1, &long))];
    *stage.commands.lock().unwrap() = all.map(|(name, ran)| (name.to_owned(), ran)).into();
    let table = [
        (vec!["ok"], Found::Passed),
        (vec!["no"], failed("bad\n")),
        (vec!["much"], failed(&long[..MOST])),
        (vec!["sleep", "10"], failed("command timed out: \"sleep 10\" timed out after 2s")),
    ];
    for (command, says) in table {
        assert_eq!(
            found(&stage, json!({"exec": {"command": command}, "timeoutSeconds": 2})).await,
            says,
            "{command:?}"
        );
    }
}

/// A server in the pod, which answers by path and keeps what it was asked.
fn serve(stage: &Stage, tasks: &Tasks) -> Arc<Mutex<Vec<String>>> {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (heard, tasks) = (asked.clone(), tasks.clone());
    *stage.dial.lock().unwrap() = Some(Box::new(move |port| {
        if port != PORT {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        let heard = heard.clone();
        tasks.tenant("scripted server", async move {
            let mut read = Vec::new();
            while !read.windows(4).any(|it| it == b"\r\n\r\n") {
                let mut some = [0; 4096];
                match theirs.read(&mut some).await {
                    Ok(count) if count > 0 => read.extend_from_slice(&some[..count]),
                    _ => return,
                }
            }
            let text = String::from_utf8(read).unwrap();
            let path = text.split(' ').nth(1).unwrap().to_owned();
            heard.lock().unwrap().push(text);
            let head = match path.as_str() {
                "/slow" => return std::future::pending().await,
                "/here" => "302 Found\r\nlocation: /ok".to_owned(),
                "/round" => "302 Found\r\nlocation: /round".to_owned(),
                "/away" => "302 Found\r\nlocation: http://example.com/".to_owned(),
                path if path.starts_with("/ok") => "204 No Content".to_owned(),
                path => format!("{} Whatever", path.trim_start_matches('/')),
            };
            let (body, length) = if head.starts_with("204") {
                ("", String::new())
            } else {
                ("words", "content-length: 5\r\n".to_owned())
            };
            let _ = theirs.write_all(format!("HTTP/1.1 {head}\r\n{length}\r\n{body}").as_bytes()).await;
        });
        Ok(ours)
    }));
    asked
}

#[tokio::test(start_paused = true)]
async fn a_page_is_asked_for_as_a_kubelet_does() {
    let (stage, tasks) = stage();
    let asked = serve(&stage, &tasks);
    let refused = "Get \"http://10.1.0.2:81/\": dial tcp 10.1.0.2:81: connect: connection refused";
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    let table = [
        (json!({"port": "web", "path": "/ok?a=b"}), Found::Passed),
        (json!({"port": PORT, "path": "ok"}), Found::Passed),
        (json!({"port": PORT, "path": "/404"}), failed("HTTP probe failed with statuscode: 404")),
        (json!({"port": PORT, "path": "/304"}), Found::Passed),
        (json!({"port": PORT, "path": "/here"}), Found::Passed),
        (
            json!({"port": PORT, "path": "/round"}),
            failed("Get \"http://10.1.0.2:8080/round\": stopped after 10 redirects"),
        ),
        (
            json!({"port": PORT, "path": "/away"}),
            Found::Warned("Probe terminated redirects, Response body: words".into()),
        ),
        (json!({"port": PORT, "path": "/slow"}), Found::Failed(format!("Get \"http://10.1.0.2:8080/slow\": {late}"))),
        (json!({"port": 81}), failed(refused)),
        (json!({"port": "none"}), Found::Unknown("couldn't find port: \"none\" in container".into())),
    ];
    for (get, says) in table {
        assert_eq!(found(&stage, json!({"httpGet": get})).await, says, "{get}");
    }
    asked.lock().unwrap().clear();
    let headers = json!([{"name": "Host", "value": "me"}, {"name": "X-A", "value": "b"}]);
    found(&stage, json!({"httpGet": {"port": PORT, "path": "/ok", "httpHeaders": headers}})).await;
    let asked = asked.lock().unwrap()[0].to_lowercase();
    for line in ["get /ok http/1.1\r\n", "host: me\r\n", "x-a: b\r\n", "user-agent: kube-probe/1.34\r\n"] {
        assert!(asked.contains(line), "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_is_tried() {
    let (stage, tasks) = stage();
    serve(&stage, &tasks);
    assert_eq!(found(&stage, json!({"tcpSocket": {"port": PORT}})).await, Found::Passed);
    let refused = failed("dial tcp 10.1.0.2:81: connect: connection refused");
    assert_eq!(found(&stage, json!({"tcpSocket": {"port": 81}})).await, refused);
}

#[tokio::test(start_paused = true)]
async fn a_health_check_over_grpc() {
    let (stage, tasks) = stage();
    let spawner = tasks.clone();
    *stage.dial.lock().unwrap() = Some(Box::new(move |port| {
        if port == 81 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        spawner.tenant("scripted server", async move {
            let service = service_fn(|request: ::http::Request<hyper::body::Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let service = String::from_utf8_lossy(body.get(7..).unwrap_or_default()).into_owned();
                assert_eq!(usize::from(body[4]), body.len() - 5);
                let mut trailers = ::http::HeaderMap::new();
                let mut data = Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]);
                trailers.insert("grpc-status", "0".parse().unwrap());
                match service.as_str() {
                    "down" => data = Bytes::from_static(&[0, 0, 0, 0, 2, 8, 2]),
                    "strange" => {
                        trailers.insert("grpc-status", "12".parse().unwrap());
                        trailers.insert("grpc-message", "unknown service".parse().unwrap());
                    }
                    "slow" => std::future::pending().await,
                    _ => {}
                }
                let frames = [Ok::<_, std::convert::Infallible>(Frame::data(data)), Ok(Frame::trailers(trailers))];
                let body = StreamBody::new(futures::stream::iter(frames));
                Ok::<_, std::convert::Infallible>(Response::new(body))
            });
            let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(theirs), service).await;
        });
        Ok(ours)
    }));
    let (unserved, late) = (
        "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown service",
        "rpc error: code = DeadlineExceeded desc = context deadline exceeded",
    );
    let table = [
        (PORT, "", Found::Passed),
        (PORT, "down", failed("service unhealthy (responded with \"NOT_SERVING\")")),
        (PORT, "strange", failed(unserved)),
        (PORT, "slow", Found::Failed(format!("timeout: health rpc did not complete within 1s: {late}"))),
        (81, "", failed("timeout: failed to connect service \"10.1.0.2:81\" within 1s: context deadline exceeded")),
    ];
    for (port, service, says) in table {
        assert_eq!(found(&stage, json!({"grpc": {"port": port, "service": service}})).await, says, "{service}");
    }
}

#[tokio::test(start_paused = true)]
async fn hooks_fail_in_a_kubelets_words() {
    let (stage, _) = stage();
    let no = ran(4, "oh\n");
    *stage.commands.lock().unwrap() = [("sh -c exit".to_owned(), no)].into();
    let (pod, container) = container();
    let target = Target { world: &*stage, pod: &pod, container: &container, address: "10.1.0.2".to_owned() };
    let table = [
        (json!({"sleep": {"seconds": 3}}), None),
        (
            json!({"exec": {"command": ["sh", "-c", "exit"]}}),
            Some(
                "Exec lifecycle hook ([sh -c exit]) for Container \"c\" in Pod \"p_n(u)\" failed - error: command 'sh -c \
                 exit' exited with 4: , message: \"oh\\n\"",
            ),
        ),
        (
            json!({"httpGet": {"path": "/", "port": 81}}),
            Some(
                "HTTP lifecycle hook (/) for Container \"c\" in Pod \"p_n(u)\" failed - error: Get \
                 \"http://10.1.0.2:81/\": dial tcp 10.1.0.2:81: connect: connection refused",
            ),
        ),
    ];
    for (spec, says) in table {
        let said = hook(&target, &serde_json::from_value(spec).unwrap()).await;
        assert_eq!(said.err().as_deref(), says);
    }
}
