use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use ledger::{Action, Change, Event, Gate, Job, Location, RunId, Seq, State, Step, Ticket, Tokens};
use llm::Message;
use serde_json::{Map, Value, json};

use super::*;

mod model;
mod runs;

use model::{Model, Reply};

const KEY: &str = "sk-very-secret";

/// Tools that write down what they are asked.
#[derive(Default)]
struct Notebook {
    acted: Mutex<Vec<String>>,
    /// For the tool `hang`: it has begun, and it was dropped.
    hanging: Shutdown,
    dropped: Arc<AtomicBool>,
}

struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Tools for Notebook {
    fn list(&self, _: &Ticket) -> Vec<llm::Tool> {
        let tool = |name: &&str| llm::Tool {
            name: (*name).to_owned(),
            description: String::new(),
            parameters: json!({"type": "object"}),
        };
        ["write", "hang", "panic"].iter().map(tool).collect()
    }

    fn call<'a>(&'a self, _: &'a Ticket, name: &'a str, arguments: &'a Map<String, Value>) -> BoxFuture<'a, Output> {
        Box::pin(async move {
            match name {
                "hang" => {
                    let _dropped = Dropped(self.dropped.clone());
                    self.hanging.begin();
                    std::future::pending().await
                }
                "panic" => panic!("the tool's own"),
                _ => {
                    let what = arguments["what"].as_str().unwrap().to_owned();
                    self.acted.lock().unwrap().push(what.clone());
                    Output { text: format!("wrote {what}"), failed: what == "nonsense" }
                }
            }
        })
    }
}

/// A ledger, a model, a cluster with Secrets, and a runner over them.
struct House {
    clock: Clock,
    ledger: Ledger,
    tasks: Tasks,
    tools: Arc<Notebook>,
    model: Arc<Model>,
    secrets: Secrets,
}

type Secrets = Arc<Mutex<HashMap<String, Vec<(&'static str, &'static str)>>>>;

impl House {
    async fn new(script: impl Fn(usize, &Value) -> Reply + Send + Sync + 'static) -> Self {
        Self::at(Clock::system(), script).await
    }

    async fn at(clock: Clock, script: impl Fn(usize, &Value) -> Reply + Send + Sync + 'static) -> Self {
        let secrets = Secrets::default();
        secrets.lock().unwrap().insert("model-key".to_owned(), vec![("API_KEY", KEY), ("OTHER", "x")]);
        let ledger = Ledger::open(Location::Memory, clock.clone()).unwrap();
        let model = Model::listen(script).await;
        let house = Self {
            clock,
            ledger,
            tasks: Tasks::new(Shutdown::new()),
            tools: Arc::default(),
            model: Arc::new(model),
            secrets,
        };
        house.start_runner();
        house
    }

    /// Another process over that ledger, with the same model.
    fn again(&self, ledger: Ledger) -> Self {
        let (tasks, tools) = (Tasks::new(Shutdown::new()), Arc::default());
        let (model, secrets) = (self.model.clone(), self.secrets.clone());
        let house = Self { clock: self.clock.clone(), ledger, tasks, tools, model, secrets };
        house.start_runner();
        house
    }

    fn start_runner(&self) {
        let shared = Shared {
            ledger: self.ledger.clone(),
            client: cluster(self.secrets.clone()),
            clock: self.clock.clone(),
            http: kit::http::client().unwrap(),
            providers: [("ours".to_owned(), self.model.base_url())].into(),
            tools: Some(self.tools.clone()),
            backoff: Backoff::new(Duration::from_millis(2), Duration::from_millis(10)),
        };
        let runner = Runner { shared: Arc::new(shared), tasks: self.tasks.clone(), concurrency: 50 };
        self.tasks.platform("runner", runner.run(self.tasks.shutdown().clone()));
    }

    fn ticket(&self, run: &str) -> Ticket {
        Ticket {
            run: run.into(),
            namespace: "default".to_owned(),
            name: run.to_owned(),
            instance: "me".to_owned(),
            session: String::new(),
            created: Timestamp::UNIX_EPOCH,
            limit: 50,
            timeout: Duration::from_secs(60),
            job: Job {
                task: format!("task of {run}"),
                model: "m".to_owned(),
                base_url: self.model.base_url(),
                secret: Some("model-key".to_owned()),
                ..Job::default()
            },
        }
    }

    async fn done(&self, run: &str) -> ledger::Run {
        let run = RunId::from(run);
        let mut changes = self.ledger.changes();
        loop {
            match self.ledger.run(&run).await.unwrap() {
                Some(found) if matches!(found.state, State::Done(_)) => return found,
                _ => while !matches!(changes.next().await, Some(Change::Run { run: it, .. }) if it == run) {},
            }
        }
    }

    async fn run(&self, ticket: Ticket) -> ledger::Run {
        let run = ticket.run.clone();
        self.ledger.submit(ticket).await.unwrap();
        self.done(run.as_str()).await
    }

    /// The error of a run that must fail.
    async fn fails(&self, ticket: Ticket) -> String {
        match self.run(ticket).await.state {
            State::Done(Outcome::Failed { error, .. }) => error,
            state => panic!("not failed: {state:?}"),
        }
    }

    async fn log(&self, run: &str) -> Vec<Step> {
        let mut follow = self.ledger.follow(&run.into(), Seq(0));
        let mut steps = Vec::new();
        while let Some(event) = follow.next().await.unwrap() {
            if let Event::Entry(entry) = event {
                steps.push(entry.step.clone());
            }
        }
        steps
    }
}

fn answer(run: &ledger::Run) -> &str {
    match &run.state {
        State::Done(Outcome::Succeeded { answer, .. }) => answer,
        state => panic!("not succeeded: {state:?}"),
    }
}

/// An API server that knows Secrets only.
fn cluster(secrets: Secrets) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let name = request.uri().path().strip_prefix("/api/v1/namespaces/default/secrets/").unwrap().to_owned();
        let found = secrets.lock().unwrap().get(&name).cloned();
        async move {
            let (status, body) = match found {
                Some(data) => {
                    let data = data.into_iter().map(|(key, it)| (key.to_owned(), ByteString(it.into()))).collect();
                    (200, serde_json::to_value(Secret { data: Some(data), ..Secret::default() }).unwrap())
                }
                None => {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                        "reason": "NotFound", "message": "not found"});
                    (404, status)
                }
            };
            let body = kube::client::Body::from(body.to_string().into_bytes());
            Ok::<_, std::convert::Infallible>(http::Response::builder().status(status).body(body).unwrap())
        }
    });
    kube::Client::new(service, "default")
}
