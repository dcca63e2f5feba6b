//! Random requests against a model of what they come to: a map of names, and the events that its changes are.

use std::collections::BTreeMap;

use http::Method;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Value, json};

use crate::watches::Events;
use crate::{Answer, House};

/// Every object here has this label: others write in the namespace too.
const OURS: &str = "labelSelector=model";
const HELD: &str = "example.com/held";

#[derive(Clone, Debug)]
enum Revision {
    Unsaid,
    Current,
    Old,
}

#[derive(Clone, Debug)]
enum Op {
    Create { name: usize, tier: u8, value: u8, held: bool, dry: bool },
    Update { name: usize, tier: u8, value: u8, revision: Revision, dry: bool },
    Merge { name: usize, value: Option<u8> },
    TestAndSet { name: usize, is: u8, then: u8 },
    LetGo { name: usize },
    Delete { name: usize, revision: Revision, dry: bool },
    DeleteTier { tier: u8 },
    Look { limit: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let revision = || prop_oneof![Just(Revision::Unsaid), Just(Revision::Current), Just(Revision::Old)];
    let (name, tier, value, dry) = (0..4_usize, 0..2_u8, 0..3_u8, prop::bool::weighted(0.15));
    prop_oneof![
        4 => (name.clone(), tier.clone(), value.clone(), any::<bool>(), dry)
            .prop_map(|(name, tier, value, held, dry)| Op::Create { name, tier, value, held, dry }),
        4 => (name.clone(), tier.clone(), value.clone(), revision(), dry)
            .prop_map(|(name, tier, value, revision, dry)| Op::Update { name, tier, value, revision, dry }),
        2 => (name.clone(), prop::option::of(value.clone())).prop_map(|(name, value)| Op::Merge { name, value }),
        2 => (name.clone(), value.clone(), value).prop_map(|(name, is, then)| Op::TestAndSet { name, is, then }),
        2 => name.clone().prop_map(|name| Op::LetGo { name }),
        3 => (name, revision(), dry).prop_map(|(name, revision, dry)| Op::Delete { name, revision, dry }),
        1 => tier.prop_map(|tier| Op::DeleteTier { tier }),
        1 => (1..4_usize).prop_map(|limit| Op::Look { limit }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    rev: u64,
    uid: String,
    tier: u8,
    value: Option<u8>,
    held: bool,
    deleting: bool,
}

impl Known {
    fn of(object: &Value) -> Self {
        let meta = &object["metadata"];
        Self {
            rev: meta["resourceVersion"].as_str().unwrap().parse().unwrap(),
            uid: meta["uid"].as_str().unwrap().to_owned(),
            tier: meta["labels"]["tier"].as_str().unwrap().parse().unwrap(),
            value: object["data"]["k"].as_str().map(|it| it.parse().unwrap()),
            held: meta["finalizers"] == json!([HELD]),
            deleting: meta["deletionTimestamp"].is_string(),
        }
    }

    fn body(&self, name: &str) -> Value {
        let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": name, "labels": {"model": "", "tier": self.tier.to_string()}}});
        if let Some(value) = self.value {
            object["data"] = json!({"k": value.to_string()});
        }
        if self.held {
            object["metadata"]["finalizers"] = json!([HELD]);
        }
        object
    }

    /// The same but for the revision.
    fn is_like(&self, other: &Self) -> bool {
        Self { rev: other.rev, ..self.clone() } == *other
    }
}

/// What a watcher is told: the type, the name, and the object.
type Told = (String, String, Known);

struct Model<'a> {
    house: &'a House,
    maps: String,
    live: BTreeMap<String, Known>,
    last: u64,
    /// What watchers of everything, and of tier 0, are told.
    told: [Vec<Told>; 2],
}

impl Model<'_> {
    fn url(&self, name: &str, query: &str) -> String {
        format!("{}/{name}{query}", self.maps)
    }

    /// Takes over what a write has made of an object (`None`: it is gone).
    fn becomes(&mut self, name: &str, next: Option<Known>) {
        let before = self.live.get(name).cloned();
        let Some(rev) = next.as_ref().map(|it| it.rev) else {
            let gone = self.live.remove(name).unwrap();
            for (at, told) in self.told.iter_mut().enumerate() {
                if at == 0 || gone.tier == 0 {
                    told.push(("DELETED".into(), name.into(), gone.clone()));
                }
            }
            return;
        };
        assert!(rev > self.last, "revision {rev} after {}", self.last);
        self.last = rev;
        let next = next.unwrap();
        for (at, told) in self.told.iter_mut().enumerate() {
            let fits = |it: &Known| at == 0 || it.tier == 0;
            let event = match (before.as_ref().is_some_and(fits), fits(&next)) {
                (false, true) => ("ADDED", next.clone()),
                (true, true) => ("MODIFIED", next.clone()),
                // As it last was in their eyes.
                (true, false) => ("DELETED", before.clone().unwrap()),
                (false, false) => continue,
            };
            told.push((event.0.into(), name.into(), event.1));
        }
        self.live.insert(name.to_owned(), next);
    }

    /// An update that is taken: what is told is what was asked for, and only a change makes a revision.
    fn updated(&mut self, name: &str, wanted: Known, answer: Answer, dry: bool) {
        let now = Known::of(&answer.is(200));
        assert!(now.is_like(&wanted), "{now:?} for {wanted:?}");
        let before = self.live[name].clone();
        if wanted.deleting && !wanted.held {
            if !dry {
                self.becomes(name, None);
            }
        } else if dry || wanted.is_like(&before) {
            assert_eq!(now.rev, before.rev, "nothing was to be written");
        } else {
            self.becomes(name, Some(now));
        }
    }

    fn mark(&mut self, name: &str, answer: Option<Value>) {
        let known = self.live[name].clone();
        match (known.held, known.deleting, answer) {
            (false, ..) => self.becomes(name, None),
            (true, true, _) => {}
            (true, false, Some(object)) => {
                let now = Known::of(&object);
                assert!(now.is_like(&Known { deleting: true, ..known }));
                self.becomes(name, Some(now));
            }
            (true, false, None) => panic!("{name} was to stay"),
        }
    }

    async fn run(&mut self, op: Op) {
        let name_of = |at: usize| format!("o{at}");
        let dry_run = |dry: bool| if dry { "?dryRun=All" } else { "" };
        match op {
            Op::Create { name, tier, value, held, dry } => {
                let name = name_of(name);
                let wanted = Known { rev: 0, uid: String::new(), tier, value: Some(value), held, deleting: false };
                let path = format!("{}{}", self.maps, dry_run(dry));
                let answer = self.house.post(&path, &wanted.body(&name)).await;
                if self.live.contains_key(&name) {
                    assert_eq!(answer.is(409)["reason"], "AlreadyExists");
                } else if !dry {
                    let now = Known::of(&answer.is(201));
                    assert!(now.is_like(&Known { uid: now.uid.clone(), ..wanted }));
                    self.becomes(&name, Some(now));
                } else {
                    assert!(answer.is(201)["metadata"]["resourceVersion"].is_null());
                }
            }
            Op::Update { name, tier, value, revision, dry } => {
                let name = name_of(name);
                let known = self.live.get(&name).cloned();
                let mut wanted = known.clone().unwrap_or(Known {
                    rev: 0,
                    uid: String::new(),
                    tier,
                    value: None,
                    held: false,
                    deleting: false,
                });
                (wanted.tier, wanted.value) = (tier, Some(value));
                let mut body = wanted.body(&name);
                match revision {
                    Revision::Unsaid => {}
                    Revision::Current => body["metadata"]["resourceVersion"] = json!(wanted.rev.to_string()),
                    Revision::Old => body["metadata"]["resourceVersion"] = json!("1"),
                }
                let answer = self.house.put(&self.url(&name, dry_run(dry)), &body).await;
                match (known, revision) {
                    (None, _) => assert_eq!(answer.is(404)["reason"], "NotFound"),
                    (Some(_), Revision::Old) => assert_eq!(answer.is(409)["reason"], "Conflict"),
                    (Some(_), _) => self.updated(&name, wanted, answer, dry),
                }
            }
            Op::Merge { name, value } => {
                let name = name_of(name);
                let patch = json!({"data": {"k": value.map(|it| it.to_string())}});
                let answer = self.house.patch(&self.url(&name, ""), "merge", &patch).await;
                match self.live.get(&name).cloned() {
                    None => drop(answer.is(404)),
                    Some(known) => self.updated(&name, Known { value, ..known }, answer, false),
                }
            }
            Op::TestAndSet { name, is, then } => {
                let name = name_of(name);
                let patch = json!([{"op": "test", "path": "/data/k", "value": is.to_string()},
                    {"op": "replace", "path": "/data/k", "value": then.to_string()}]);
                let answer = self.house.patch(&self.url(&name, ""), "json", &patch).await;
                match self.live.get(&name).cloned() {
                    None => drop(answer.is(404)),
                    Some(known) if known.value == Some(is) => {
                        self.updated(&name, Known { value: Some(then), ..known }, answer, false);
                    }
                    Some(_) => drop(answer.is(422)),
                }
            }
            Op::LetGo { name } => {
                let name = name_of(name);
                let patch = json!({"metadata": {"finalizers": null}});
                let answer = self.house.patch(&self.url(&name, ""), "merge", &patch).await;
                match self.live.get(&name).cloned() {
                    None => drop(answer.is(404)),
                    Some(known) => self.updated(&name, Known { held: false, ..known }, answer, false),
                }
            }
            Op::Delete { name, revision, dry } => {
                let name = name_of(name);
                let known = self.live.get(&name).cloned();
                let said = match (&revision, &known) {
                    (Revision::Unsaid, _) => json!({}),
                    (Revision::Current, Some(known)) => {
                        json!({"uid": known.uid, "resourceVersion": known.rev.to_string()})
                    }
                    _ => json!({"resourceVersion": "1"}),
                };
                let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": said,
                    "dryRun": if dry { json!(["All"]) } else { json!([]) }});
                let json = [("content-type", "application/json")];
                let answer = self.house.send(Method::DELETE, &self.url(&name, ""), &json, options.to_string()).await;
                match (known, revision) {
                    (None, _) => drop(answer.is(404)),
                    (Some(_), Revision::Old) => assert_eq!(answer.is(409)["reason"], "Conflict"),
                    (Some(_), _) if dry => drop(answer.is(200)),
                    (Some(_), _) => {
                        let answer = answer.is(200);
                        self.mark(&name, (answer["kind"] == "ConfigMap").then_some(answer));
                    }
                }
            }
            Op::DeleteTier { tier } => {
                let path = format!("{}?{OURS},tier%3D{tier}", self.maps);
                self.house.send(Method::DELETE, &path, &[], "").await.is(200);
                let all: Vec<_> = self.live.iter().filter(|it| it.1.tier == tier).map(|it| it.0.clone()).collect();
                for name in all {
                    let held = self.live[&name].held;
                    let object = if held { Some(self.house.get(&self.url(&name, "")).await.is(200)) } else { None };
                    self.mark(&name, object);
                }
            }
            Op::Look { limit } => {
                let mut shown = BTreeMap::new();
                let mut token = String::new();
                loop {
                    let path = format!("{}?{OURS}&limit={limit}&continue={token}", self.maps);
                    let page = self.house.get(&path).await.is(200);
                    let items = page["items"].as_array().unwrap();
                    assert!(items.len() <= limit);
                    let named = |it: &Value| (it["metadata"]["name"].as_str().unwrap().to_owned(), Known::of(it));
                    shown.extend(items.iter().map(named));
                    token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
                    if token.is_empty() {
                        break;
                    }
                }
                assert_eq!(shown, self.live);
                for name in (0..4).map(name_of) {
                    let answer = self.house.get(&self.url(&name, "")).await;
                    match self.live.get(&name) {
                        Some(known) => assert_eq!(Known::of(&answer.is(200)), *known),
                        None => drop(answer.is(404)),
                    }
                }
            }
        }
    }
}

async fn story(house: &House, namespace: &str, ops: Vec<Op>) {
    let maps = format!("/api/v1/namespaces/{namespace}/configmaps");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    house.post("/api/v1/namespaces", &namespace).await.is(201);
    let from = house.get(&format!("{maps}?{OURS}")).await.is(200)["metadata"]["resourceVersion"].clone();
    let from = from.as_str().unwrap();
    let last = from.parse().unwrap();
    let mut model = Model { house, maps: maps.clone(), live: BTreeMap::new(), last, told: Default::default() };
    for op in ops {
        model.run(op).await;
    }
    model.run(Op::Look { limit: 2 }).await;
    // The last word, so that what comes before it is all there was.
    let end = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "end", "labels": {"model": "", "tier": "0"}}});
    house.post(&maps, &end).await.is(201);
    for (selector, told) in ["", ",tier%3D0"].iter().zip(&model.told) {
        let mut events = Events::at(house, &maps, &format!("{OURS}{selector}&resourceVersion={from}")).await;
        let mut told = told.iter();
        let mut rev: u64 = last;
        loop {
            let event = events.next().await.unwrap();
            let now = Known::of(&event["object"]);
            assert!(now.rev > rev, "revisions go up");
            rev = now.rev;
            let name = event["object"]["metadata"]["name"].as_str().unwrap();
            if name == "end" {
                break;
            }
            let (kind, whose, known) = told.next().unwrap_or_else(|| panic!("not expected: {event}"));
            assert_eq!((&event["type"], name), (&json!(kind), whose.as_str()));
            // A deletion has a revision of its own.
            assert!(now.is_like(known) && (kind == "DELETED" || now.rev == known.rev), "{event} for {known:?}");
        }
        assert_eq!(told.next(), None);
    }
}

#[test]
fn random_requests_are_answered_as_a_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let house = runtime.block_on(House::open());
    let config = ProptestConfig {
        cases: 48,
        max_shrink_iters: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(5),
        ..ProptestConfig::default()
    };
    let number = std::cell::Cell::new(0);
    let told = TestRunner::new(config).run(&prop::collection::vec(op(), 1..50), |ops| {
        number.set(number.get() + 1);
        runtime.block_on(story(&house, &format!("n{}", number.get()), ops));
        Ok(())
    });
    told.unwrap_or_else(|why| panic!("{why}"));
}
