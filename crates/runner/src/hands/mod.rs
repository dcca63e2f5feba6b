//! The tools that act in the sandbox of a run's session: commands and files.

mod ask;
mod tell;

use std::time::Duration;

use futures::future::BoxFuture;
use kit::{Backoff, Class};
use ledger::Ticket;
use sandbox::{Command, Error, Hand, Owner, Sandboxes, Want};
use serde_json::{Map, Value};

use crate::tools::{Output, Tools};
use ask::Ask;

/// How long a sandbox is waited for while the machine or the node has none to give.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a call is begun: a sandbox may end between its claim and the call.
const TRIES: usize = 3;

/// `execute_command`, `read_file`, `write_file` and `list_directory`, with the parameters and limits of Sympozium's
/// agent-runner, in a sandbox that is claimed at the first call.
pub struct Hands {
    sandboxes: Sandboxes,
}

impl Hands {
    pub fn new(sandboxes: Sandboxes) -> Self {
        Self { sandboxes }
    }

    async fn claim(&self, ticket: &Ticket) -> Result<Hand, Error> {
        let wanted = ticket.job.sandbox.clone().unwrap_or_default();
        let want = Want {
            image: wanted.image,
            runtime_class: wanted.runtime_class,
            cpu: wanted.cpu,
            memory: wanted.memory,
            ..Want::default()
        };
        let owner = Owner {
            namespace: ticket.namespace.clone(),
            instance: ticket.instance.clone(),
            session: ticket.session.clone(),
            run: ticket.run.clone(),
            run_name: ticket.name.clone(),
        };
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let patient = async {
            loop {
                match self.sandboxes.claim(&owner, &want).await {
                    Err(error) if matches!(error.class(), Class::Retry(_) | Class::Conflict) => {
                        tracing::warn!(run = %ticket.run, error = kit::chain(&error), "no sandbox now; trying again");
                        tokio::time::sleep(backoff.pause()).await;
                    }
                    done => return done,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, patient).await {
            Ok(done) => done,
            Err(_) => self.sandboxes.claim(&owner, &want).await,
        }
    }

    async fn act(&self, ticket: &Ticket, ask: &Ask) -> Output {
        let mut tries = 0;
        loop {
            tries += 1;
            let hand = match self.claim(ticket).await {
                Ok(hand) => hand,
                Err(error) => return Output::failed(format!("there is no sandbox: {}", kit::chain(&error))),
            };
            let error = match perform(&hand, ask).await {
                Ok(output) => return output,
                Err(error) => error,
            };
            let harmless = matches!(ask, Ask::Read { .. } | Ask::List { .. });
            return match error {
                // Nothing has happened, or nothing can: once more in a fresh one.
                Error::Ended { begun, .. } if tries < TRIES && (!begun || harmless) => continue,
                Error::Ended { why, begun } => {
                    let effect =
                        if begun { "whether the call took effect is not known" } else { "the call was not begun" };
                    Output::failed(format!(
                        "the sandbox was ended: {why}; {effect}. /workspace is kept, and the next call has a fresh sandbox"
                    ))
                }
                error => Output::failed(kit::chain(&error)),
            };
        }
    }
}

async fn perform(hand: &Hand, ask: &Ask) -> Result<Output, Error> {
    match ask {
        Ask::Execute { command, workdir, timeout } => {
            let command =
                Command { command: command.clone(), workdir: workdir.clone(), timeout: *timeout, keep: tell::OUTPUT };
            let done = hand.exec(&command, |_| {}).await?;
            Ok(tell::executed(&done, *timeout))
        }
        Ask::Read { path, offset } => Ok(tell::read(&hand.read_file(path, *offset, tell::READ).await?, *offset)),
        Ask::Write { path, content } => {
            hand.write_file(path, content.as_bytes()).await?;
            Ok(tell::wrote(path, content))
        }
        Ask::List { path } => {
            let entries = hand.list_directory(path).await?;
            Ok(tell::listed(path, entries.iter().map(|it| (it.kind.as_str(), it.size, it.path.as_str()))))
        }
    }
}

impl Tools for Hands {
    fn list(&self, _: &Ticket) -> Vec<llm::Tool> {
        ask::tools()
    }

    fn call<'a>(
        &'a self,
        ticket: &'a Ticket,
        name: &'a str,
        arguments: &'a Map<String, Value>,
    ) -> BoxFuture<'a, Output> {
        Box::pin(async move {
            match Ask::read(name, arguments) {
                Ok(ask) => self.act(ticket, &ask).await,
                Err(why) => Output::failed(why),
            }
        })
    }
}
