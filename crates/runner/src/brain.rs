//! One attempt at one run: ask, act, log, until there is an answer.

use std::time::Duration;

use jiff::Timestamp;
use kit::{Backoff, Class, SecretString};
use ledger::{Cause, Lease, Outcome, Step, Tokens, Turn};
use llm::{Call, Completion, Effort, Finish, Message, Request, Tool};
use serde_json::{Map, Value};

use crate::tools::{self, Output};
use crate::transcript::{Answer, Damaged, Next, Transcript};
use crate::{Shared, key, window};

/// How often the model is asked in one run, tries not counted, as in Sympozium's agent-runner.
const TURNS: u32 = 50;
/// How often one question is asked while the provider is down or not reached. Overload (429) has no such limit.
const TRIES: u32 = 10;
/// How often one question is asked while its answers are broken.
const TRIES_BROKEN: u32 = 3;
/// Calls of one answer that are made: as many tools as OpenAI allows.
const CALLS: usize = 128;
/// Bytes of a call's arguments that are shown; all of them are in the model's answer.
const SHOWN: usize = 64 << 10;
/// What the model is told of a call that was begun, and whose result nobody knows.
const LOST: &str = "interrupted, outcome unknown: the call had begun when the system stopped; whether it took effect is not known, and it was not repeated";

/// Why an attempt ends without an outcome.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The run is no longer ours.
    Lost,
    Ledger(ledger::Error),
    Damaged(Damaged),
}

pub(crate) struct Attempt<'a> {
    shared: &'a Shared,
    lease: &'a Lease,
    history: Vec<Turn>,
    transcript: Transcript,
    /// What has happened and is not in the log yet: written with the next step, before anything else is waited for.
    unlogged: Vec<Step>,
    tools: Vec<Tool>,
    backoff: Backoff,
    deadline: Timestamp,
    /// What went wrong last and is not over.
    trouble: Option<Trouble>,
    doing: Doing,
    /// What the question has cost that is being asked.
    spent: llm::Usage,
}

#[derive(Debug)]
struct Trouble {
    cause: Cause,
    why: String,
}

/// What a run is waiting for when its time is up.
#[derive(Debug, Default)]
enum Doing {
    #[default]
    Nothing,
    /// The model is asked, and has begun to answer or not.
    Asking { answers: bool },
    /// The tool acts.
    Calling(String),
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(shared: &'a Shared, lease: &'a Lease, history: Vec<Turn>, transcript: Transcript) -> Self {
        let rules = &lease.ticket.job.tools;
        let mut tools = shared.tools.as_ref().map(|it| it.list(&lease.ticket)).unwrap_or_default();
        tools.retain(|tool| tools::refusal(rules, &tool.name).is_none());
        let deadline = lease.started.checked_add(lease.ticket.timeout).unwrap_or(Timestamp::MAX);
        let backoff = shared.backoff.clone();
        Self {
            shared,
            lease,
            history,
            transcript,
            unlogged: Vec::new(),
            tools,
            backoff,
            deadline,
            trouble: None,
            doing: Doing::Nothing,
            spent: llm::Usage::default(),
        }
    }

    pub(crate) fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// The outcome of a run that took too long; what its last question cost is logged.
    pub(crate) async fn late(&mut self) -> Result<Outcome, Stop> {
        let (cause, why) = match (&self.trouble, &self.doing) {
            (Some(Trouble { cause, why }), _) => (*cause, why.clone()),
            (None, Doing::Asking { answers: false }) => {
                (Cause::Provider, "the model provider had not begun to answer".to_owned())
            }
            (None, Doing::Asking { answers: true }) => (Cause::Timeout, "the model was answering".to_owned()),
            (None, Doing::Calling(tool)) => (Cause::Timeout, format!("the tool {tool} was acting")),
            (None, Doing::Nothing) => (Cause::Timeout, String::new()),
        };
        let error = format!("timeout: the run took longer than {}; {why}", self.limit());
        self.spend()?;
        self.log().await?;
        Ok(Outcome::failed(cause, error.trim_end_matches("; ")))
    }

    /// Goes on from the log to the end. May be dropped at any point; what was logged then stays true.
    pub(crate) async fn drive(&mut self) -> Result<Outcome, Stop> {
        let mut client = None;
        loop {
            match self.transcript.next() {
                Next::End(answer) => {
                    self.log().await?;
                    return Ok(match answer {
                        Answer { text, cut: Some(cut) } if text.is_empty() => {
                            Outcome::failed(Cause::Provider, format!("{cut} before it said anything"))
                        }
                        Answer { text, cut } => Outcome::Succeeded { answer: text, cut },
                    });
                }
                Next::Lost(call) => self.returned(&call, Output::failed(LOST))?,
                Next::Call(call) => self.call(&call).await?,
                Next::Ask { turn } if turn > TURNS => {
                    self.log().await?;
                    let error = format!("the model was asked {TURNS} times and came to no end");
                    return Ok(Outcome::failed(Cause::Other, error));
                }
                Next::Ask { turn } => {
                    let client = match &client {
                        Some(client) => client,
                        None => match self.client().await? {
                            Ok(found) => client.insert(found),
                            Err(error) => return Ok(failed(Cause::Other, &error)),
                        },
                    };
                    if let Some(outcome) = self.ask(client, turn).await? {
                        self.log().await?;
                        return Ok(outcome);
                    }
                }
            }
        }
    }

    /// The model, with its key. Where that is missing this waits, up to the run's timeout: it heals by itself.
    async fn client(&mut self) -> Result<Result<llm::Client, llm::Error>, Stop> {
        self.log().await?;
        let job = &self.lease.ticket.job;
        let key = match job.secret.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => Some(self.key(name).await?),
            None => None,
        };
        let given = match self.shared.providers.get(&job.provider) {
            Some(ours) if job.base_url.is_empty() => ours,
            _ => &job.base_url,
        };
        let base_url = llm::base_url(&job.provider, given);
        Ok(base_url.and_then(|base_url| llm::Client::new(&base_url, key, self.shared.http.clone())))
    }

    async fn key(&mut self, name: &str) -> Result<SecretString, Stop> {
        loop {
            let error = match key::read(&self.shared.client, &self.lease.ticket.namespace, name).await {
                Ok(key) => {
                    self.trouble = None;
                    self.backoff.reset();
                    return Ok(key);
                }
                Err(error) => kit::chain(&error),
            };
            if self.trouble.as_ref().is_none_or(|trouble| trouble.why != error) {
                self.append(Step::Noted { text: format!("waiting: {error}") }).await?;
            }
            self.trouble = Some(Trouble { cause: Cause::Other, why: error });
            self.wait().await;
        }
    }

    /// Asks one question until it is answered. An outcome is the run's end.
    async fn ask(&mut self, client: &llm::Client, turn: u32) -> Result<Option<Outcome>, Stop> {
        let job = &self.lease.ticket.job;
        let request = self.request();
        self.append(Step::Asked { turn, model: job.model.clone() }).await?;
        let (mut down, mut broken) = (0, 0);
        loop {
            let (ledger, run, epoch) = (&self.shared.ledger, &self.lease.run, self.lease.epoch);
            self.doing = Doing::Asking { answers: false };
            let doing = &mut self.doing;
            let hear = |text: &str| {
                *doing = Doing::Asking { answers: true };
                ledger.stream(run, epoch, text);
            };
            let answer = client.chat(&request, &mut self.spent, hear).await;
            self.doing = Doing::Nothing;
            let error = match answer {
                Ok(completion) => {
                    self.spent = llm::Usage::default();
                    return self.answered(completion).map(|()| None);
                }
                Err(error) => error,
            };
            self.spend()?;
            let Class::Retry(after) = error.class() else { return Ok(Some(failed(Cause::Provider, &error))) };
            let why = kit::chain(&error);
            let (tries, limit) = match &error {
                llm::Error::Refused { status, .. } if status.as_u16() == 429 => (&mut 0, TRIES),
                llm::Error::Broken { .. } | llm::Error::BrokeOff { .. } | llm::Error::CutOff { .. } => {
                    (&mut broken, TRIES_BROKEN)
                }
                _ => (&mut down, TRIES),
            };
            *tries += 1;
            if *tries == limit {
                return Ok(Some(Outcome::failed(Cause::Provider, format!("{why} (asked {tries} times)"))));
            }
            let wait = self.backoff.pause().max(after.unwrap_or_default());
            if self.left() < wait {
                let error = format!("timeout: too little is left of the run's {} to ask again; {why}", self.limit());
                return Ok(Some(Outcome::failed(Cause::Provider, error)));
            }
            self.trouble = Some(Trouble { cause: Cause::Provider, why: why.clone() });
            self.append(Step::Retrying { why, wait }).await?;
            self.shared.clock.until(self.shared.clock.now().saturating_add(wait).unwrap_or(Timestamp::MAX)).await;
        }
    }

    /// Counts a question that brought no answer.
    fn spend(&mut self) -> Result<(), Stop> {
        match tokens(std::mem::take(&mut self.spent)) {
            Tokens { total: 0, .. } => Ok(()),
            usage => self.happened(Step::Spent { usage }),
        }
    }

    fn answered(&mut self, completion: Completion) -> Result<(), Stop> {
        let Completion { message, usage, finish } = completion;
        let cut = match finish {
            Finish::Stop | Finish::Calls => None,
            Finish::Length => Some("the model's answer was cut at its limit of tokens".to_owned()),
            Finish::Filtered => Some("the model provider's filter cut the answer".to_owned()),
            Finish::Other(why) => Some(format!("the model stopped: {why}")),
        };
        let usage = tokens(usage);
        let message = serde_json::to_value(message).unwrap_or_default();
        self.trouble = None;
        self.backoff.reset();
        self.happened(Step::Answered { message, usage, cut })
    }

    async fn call(&mut self, call: &Call) -> Result<(), Stop> {
        let Call { id, name, arguments } = call;
        let mut shown = arguments.clone();
        if shown.len() > SHOWN {
            shown.truncate(shown.floor_char_boundary(SHOWN));
            shown.push_str(" [cut]");
        }
        self.append(Step::Called { call_id: id.clone(), name: name.clone(), arguments: shown }).await?;
        self.doing = Doing::Calling(name.clone());
        let output = self.act(name, arguments).await;
        self.doing = Doing::Nothing;
        self.returned(call, output)
    }

    async fn act(&self, name: &str, arguments: &str) -> Output {
        let ticket = &self.lease.ticket;
        if self.transcript.results() >= CALLS {
            return Output::failed(format!(
                "not called: no more than {CALLS} calls of one answer are made; call it again if it is still needed"
            ));
        }
        if let Some(refusal) = tools::refusal(&ticket.job.tools, name) {
            return Output::failed(refusal);
        }
        let known = self.tools.iter().any(|tool| tool.name == name);
        let Some(hands) = self.shared.tools.as_ref().filter(|_| known) else {
            let names: Vec<_> = self.tools.iter().map(|tool| tool.name.as_str()).collect();
            let there_are = if names.is_empty() {
                "this run has no tools".to_owned()
            } else {
                format!("this run has {}", names.join(", "))
            };
            return Output::failed(format!("there is no tool {name:?}: {there_are}"));
        };
        match llm::from_json::<Map<String, Value>>(arguments.as_bytes()) {
            Ok(arguments) => hands.call(ticket, name, &arguments).await,
            Err(error) => Output::failed(format!("the arguments of {name} are not a JSON object: {error}")),
        }
    }

    fn returned(&mut self, call: &Call, output: Output) -> Result<(), Stop> {
        let Output { text: output, failed } = output.bounded();
        self.happened(Step::Returned { call_id: call.id.clone(), output, failed })
    }

    /// Takes in what has happened; it is logged with the next step.
    fn happened(&mut self, step: Step) -> Result<(), Stop> {
        self.transcript.add(&step).map_err(Stop::Damaged)?;
        self.unlogged.push(step);
        Ok(())
    }

    /// Logs what is about to happen, and all that has happened before.
    async fn append(&mut self, step: Step) -> Result<(), Stop> {
        self.happened(step)?;
        self.log().await
    }

    /// Logs what has happened. A ledger that cannot write now is waited for.
    async fn log(&mut self) -> Result<(), Stop> {
        let steps = std::mem::take(&mut self.unlogged);
        if steps.is_empty() {
            return Ok(());
        }
        let mut before = None;
        loop {
            let (run, epoch) = (&self.lease.run, self.lease.epoch);
            let Err(error) = self.shared.ledger.append_all(run, epoch, steps.clone()).await else { break };
            match error.class() {
                Class::Retry(_) => {
                    let trouble = Trouble { cause: Cause::Other, why: kit::chain(&error) };
                    let earlier = self.trouble.replace(trouble);
                    before.get_or_insert(earlier);
                    self.wait().await;
                }
                Class::Gone => return Err(Stop::Lost),
                Class::Conflict | Class::Rejected | Class::Bug => return Err(Stop::Ledger(error)),
            }
        }
        if let Some(before) = before {
            self.trouble = before;
        }
        Ok(())
    }

    async fn wait(&mut self) {
        let wait = self.backoff.pause();
        let until = self.shared.clock.now().saturating_add(wait).unwrap_or(Timestamp::MAX);
        self.shared.clock.until(until).await;
    }

    /// The run's timeout, as people write it.
    fn limit(&self) -> String {
        shown(self.lease.ticket.timeout)
    }

    fn left(&self) -> Duration {
        Duration::try_from(self.deadline.duration_since(self.shared.clock.now())).unwrap_or_default()
    }

    fn request(&self) -> Request {
        let job = &self.lease.ticket.job;
        let mut rest = Vec::with_capacity(self.transcript.messages().len() + 2);
        if !job.system.is_empty() {
            rest.push(Message::System { text: job.system.clone() });
        }
        let history_at = rest.len();
        rest.push(Message::User { text: job.task.clone() });
        rest.extend_from_slice(self.transcript.messages());
        let history = window::fitting(window::of(&job.model), &rest, &self.tools, &self.history);
        let mut messages = rest;
        let turns = history.iter().flat_map(|Turn { task, answer }| {
            let answer = Message::Assistant { text: answer.clone(), calls: Vec::new() };
            [Message::User { text: task.clone() }, answer]
        });
        messages.splice(history_at..history_at, turns);
        let thinking = job.thinking.as_deref().and_then(Effort::parse);
        Request { model: job.model.clone(), messages, tools: self.tools.clone(), thinking }
    }
}

fn tokens(usage: llm::Usage) -> Tokens {
    Tokens { input: usage.input, output: usage.output, total: usage.input.saturating_add(usage.output) }
}

fn failed(cause: Cause, error: &(dyn std::error::Error + 'static)) -> Outcome {
    Outcome::failed(cause, kit::chain(error))
}

/// As people write it: 2s, 10m, 1h30m.
fn shown(duration: Duration) -> String {
    let (seconds, rest) = (duration.as_secs(), duration.subsec_millis());
    if seconds == 0 || rest > 0 {
        return format!("{duration:?}");
    }
    let parts = [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect()
}
