//! Stands where execd stands in a sandbox, and does whatever a test asks it to do there.
//!
//! As the first process it serves HTTP on descriptor 3: `GET /ping`, execd's bind, `POST /run` (a JSON array, executed;
//! answered with its exit code in a header and what it printed), `POST /echo` (the body, as it comes), `GET /bind` (what
//! it was bound with), and an upgrade to an echo. Started with arguments it makes one system call.
#![allow(unsafe_code, reason = "tries system calls")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["call", number, args @ ..] => call(number, args),
        ["abstract", name] => connect_abstract(name),
        ["as", uid, program, args @ ..] => {
            let error = Command::new(program).args(args).uid(uid.parse().unwrap()).exec();
            println!("{error}");
        }
        _ => serve(),
    }
}

/// Prints `open` and the result, or the error's name. Arguments: numbers, or `s:TEXT`.
fn call(number: &str, args: &[&str]) {
    let texts: Vec<_> = args.iter().map(|it| std::ffi::CString::new(it.trim_start_matches("s:")).unwrap()).collect();
    let value = |at: usize| match args.get(at) {
        None => 0,
        Some(it) if it.starts_with("s:") => texts[at].as_ptr() as i64,
        Some(it) => it.parse().unwrap(),
    };
    // SAFETY: the arguments are what the test says; strings outlive the call.
    let done =
        unsafe { libc::syscall(number.parse().unwrap(), value(0), value(1), value(2), value(3), value(4), value(5)) };
    match done {
        -1 => println!("{}", std::io::Error::last_os_error().raw_os_error().unwrap()),
        done => println!("open {done}"),
    }
}

fn connect_abstract(name: &str) {
    use std::os::linux::net::SocketAddrExt;
    let at = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    match std::os::unix::net::UnixStream::connect_addr(&at) {
        Ok(_) => println!("open"),
        Err(error) => println!("{error}"),
    }
}

fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // SAFETY: the node left a listening socket there, and nobody else takes it.
        let listener = unsafe { std::os::unix::net::UnixListener::from_raw_fd(3) };
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let bound = Arc::new(Mutex::new(Bytes::new()));
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let bound = bound.clone();
                    tokio::task::spawn_local(async move {
                        let service = hyper::service::service_fn(move |request| answer(request, bound.clone()));
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .with_upgrades()
                            .await;
                    });
                }
            })
            .await;
    });
}

type Body = BoxBody<Bytes, hyper::Error>;

fn text(it: impl Into<Bytes>) -> Body {
    Full::new(it.into()).map_err(|never| match never {}).boxed()
}

async fn answer(mut request: Request<Incoming>, bound: Arc<Mutex<Bytes>>) -> Result<Response<Body>, Infallible> {
    if request.headers().contains_key("upgrade") {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::task::spawn_local(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let response = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header("connection", "upgrade")
            .header("upgrade", "echo");
        return Ok(response.body(text("")).unwrap());
    }
    let path = request.uri().path().to_owned();
    let token = request.headers().get(wire::execd::TOKEN_HEADER).cloned();
    Ok(match path.as_str() {
        "/ping" => Response::new(text("pong")),
        wire::execd::BIND => {
            *bound.lock().unwrap() = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(text(r#"{"generation":1}"#))
        }
        "/bind" => {
            let mut response = Response::new(text(bound.lock().unwrap().clone()));
            response.headers_mut().extend(token.map(|it| (http::HeaderName::from_static("seen-token"), it)));
            response
        }
        // SAFETY: ends this process, nothing else.
        "/exit" => unsafe { libc::_exit(7) },
        "/echo" => Response::new(request.into_body().boxed()),
        "/run" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let args: Vec<String> = serde_json::from_slice(&body).unwrap();
            let ran = tokio::task::spawn_blocking(move || {
                Command::new(&args[0]).args(&args[1..]).stdin(Stdio::null()).output()
            });
            match ran.await.unwrap() {
                Ok(output) => {
                    let code = output.status.code().unwrap_or(-1).to_string();
                    let both = [output.stdout, output.stderr].concat();
                    Response::builder().header("exit-code", code).body(text(both)).unwrap()
                }
                Err(error) => Response::builder().header("exit-code", "-2").body(text(error.to_string())).unwrap(),
            }
        }
        _ => Response::builder().status(404).body(text("")).unwrap(),
    })
}
