//! The pods that this machine's [`Runtime`] runs, as this API asks of them.

use std::io;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use wire::node::Stats;

use super::door::{Attach, Connection, Exec, Pods, Resize};
use crate::pod::{self, ExecConfig, Log, PodState, Runtime, StartError};

/// What runs, and what it is part of.
pub(crate) struct Running<F> {
    node: String,
    runtime: Runtime,
    pods: F,
}

impl<F: Fn() -> Vec<Arc<Pod>> + Send + Sync + 'static> Running<F> {
    /// `pods` gives all Pods of this node, with the status that it gives them.
    pub(crate) fn new(node: String, runtime: Runtime, pods: F) -> Self {
        Self { node, runtime, pods }
    }
}

impl<F: Fn() -> Vec<Arc<Pod>> + Send + Sync + 'static> Pods for Running<F> {
    fn node(&self) -> String {
        self.node.clone()
    }

    fn list(&self) -> Vec<Arc<Pod>> {
        (self.pods)()
    }

    fn state(&self, uid: &str) -> Option<PodState> {
        self.runtime.state(uid)
    }

    fn log(&self, uid: &str, container: &str, attempt: u32) -> io::Result<Log> {
        self.runtime.log(uid, container, attempt)
    }

    fn exec(&self, uid: &str, container: &str, config: ExecConfig) -> BoxFuture<'static, Result<Exec, StartError>> {
        let (runtime, uid, container) = (self.runtime.clone(), uid.to_owned(), container.to_owned());
        async move {
            let mut exec = runtime.exec(&uid, &container, config).await?;
            Ok(Exec {
                stdin: exec.stdin.take().map(|it| Box::pin(it) as _),
                stdout: exec.stdout.take().map(|it| Box::pin(it) as _),
                stderr: exec.stderr.take().map(|it| Box::pin(it) as _),
                resize: exec.resize.take().map(resize),
                exit: async move {
                    // The whole of it: dropped before its end, it is killed.
                    let mut exec = exec;
                    (&mut exec.exit).await.ok()
                }
                .boxed(),
            })
        }
        .boxed()
    }

    fn attach(&self, uid: &str, container: &str, stdin: bool) -> Option<Attach> {
        let pod::Attach { stdin, output, resize: size, mut exit, outlasts_input } =
            self.runtime.attach(uid, container, stdin)?;
        Some(Attach {
            stdin: stdin.map(|it| Box::pin(it) as _),
            output,
            resize: size.map(resize),
            exit: async move { drop(exit.wait_for(Option::is_some).await) }.boxed(),
            outlasts_input,
        })
    }

    fn dial(&self, uid: &str, port: u16) -> BoxFuture<'static, io::Result<Connection>> {
        let (runtime, uid) = (self.runtime.clone(), uid.to_owned());
        async move { Ok(Box::pin(runtime.dial(&uid, port).await?) as Connection) }.boxed()
    }

    fn usage(&self, uid: &str, container: Option<&str>) -> Option<Stats> {
        self.runtime.usage(uid, container)
    }
}

fn resize(it: pod::Resize) -> Resize {
    Box::new(move |rows, columns| {
        if let Err(error) = it.to(rows, columns) {
            tracing::debug!(%error, "a terminal cannot be resized");
        }
    })
}
