//! What is asked, and how both answers are held against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::mask::{Form, Mask};
use crate::side::{Answer, Side};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    steps: Vec<Step>,
}

/// One request. `$ns` in it is the case's namespace, and part of every name outside of namespaces.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// Method and path.
    #[serde(rename = "do")]
    request: String,
    /// An object, or a text that is sent as it is.
    #[serde(default)]
    body: Option<Value>,
    /// The content type; JSON, where nothing is said.
    #[serde(default, rename = "type")]
    content: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Reads so many events of a watch.
    #[serde(default)]
    events: Option<usize>,
    /// Asks again until the answer has this code, or these values at these JSON pointers.
    #[serde(default)]
    until: Option<Until>,
    /// Values that are not compared, by JSON pointer in which `*` is any text.
    #[serde(default)]
    ignore: Vec<String>,
    /// The causes of a refusal are in any order, which is so where Go goes through a map.
    #[serde(default)]
    unordered: bool,
    /// Compares one line a value: for documents of thousands of lines.
    #[serde(default)]
    flat: bool,
    /// Compares the answer's code alone.
    #[serde(default)]
    code: bool,
    /// Compares the types and the names of the labels of these metrics alone.
    #[serde(default)]
    metrics: Vec<String>,
    /// Why the answers differ, as docs/kubernetes-api.md says it.
    #[serde(default)]
    differs: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Until {
    Code(u16),
    Values(BTreeMap<String, Value>),
}

pub(crate) enum Found {
    Same,
    Known(String),
    Different(String),
}

/// The controllers of a Kubernetes that has just begun, on a machine that does much else, take their time.
const PATIENCE: Duration = Duration::from_secs(60);

impl Case {
    pub(crate) fn all(dir: &Path) -> Vec<Self> {
        let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let cases = files.iter().flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            serde_saphyr::from_str::<Vec<Self>>(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
        });
        cases.collect()
    }

    /// Whether any request has this in it.
    pub(crate) fn mentions(&self, text: &str) -> bool {
        let in_body = |it: &Value| it.to_string().contains(text);
        self.steps.iter().any(|step| step.request.contains(text) || step.body.as_ref().is_some_and(in_body))
    }

    /// `fill`: what else is put into requests.
    pub(crate) async fn run(
        self,
        ours: &kube::Client,
        theirs: &kube::Client,
        fill: &[(&'static str, String)],
    ) -> Vec<(String, Found)> {
        let namespace = format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let (mut our, mut their) =
            (Actor::new(ours.clone(), &namespace, fill).await, Actor::new(theirs.clone(), &namespace, fill).await);
        let mut found = Vec::new();
        for step in self.steps {
            let (mine, yours) = tokio::join!(our.act(&step), their.act(&step));
            let equal = mine == yours;
            let found_here = match (&step.differs, equal) {
                (None, true) => Found::Same,
                (Some(why), false) => Found::Known(why.clone()),
                (Some(why), true) => Found::Different(format!("  no difference any more, but the case says: {why}")),
                (None, false) if step.flat => Found::Different(unlike(&yours, &mine)),
                (None, false) => Found::Different(difference(&yours, &mine)),
            };
            found.push((step.request.clone(), found_here));
        }
        our.leave().await;
        their.leave().await;
        found
    }
}

/// One side of a case.
struct Actor {
    side: Side,
    fill: Vec<(&'static str, String)>,
    mask: Mask,
}

impl Actor {
    async fn new(client: kube::Client, namespace: &str, fill: &[(&'static str, String)]) -> Self {
        let mut fill = fill.to_vec();
        fill.push(("$ns", namespace.to_owned()));
        let actor = Self { side: Side(client), fill, mask: Mask::new(namespace) };
        let text = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "$ns"}}"#;
        let body = serde_json::from_str(text).ok();
        let made = actor.ask(&Step::new("POST /api/v1/namespaces", body)).await;
        assert_eq!(made.code, 201, "{}", made.text);
        for made_for_us in ["serviceaccounts/default", "configmaps/kube-root-ca.crt"] {
            let mut step = Step::new(&format!("GET /api/v1/namespaces/$ns/{made_for_us}"), None);
            step.until = Some(Until::Code(200));
            actor.ask(&step).await;
        }
        actor
    }

    async fn act(&mut self, step: &Step) -> String {
        let answer = self.ask(step).await;
        if !step.metrics.is_empty() {
            return shapes(&answer, &step.metrics);
        }
        let form = Form { unordered: step.unordered, flat: step.flat };
        if step.code { answer.code.to_string() } else { self.mask.answer(&answer, &step.ignore, form) }
    }

    async fn ask(&self, step: &Step) -> Answer {
        let fill = |text: &str| self.fill.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value));
        let (method, path) = step.request.split_once(' ').expect("method and path");
        let body = match &step.body {
            None => String::new(),
            Some(Value::String(text)) => fill(text),
            Some(object) => fill(&object.to_string()),
        };
        let content = step.content.as_deref().or_else(|| step.body.as_ref().map(|_| "application/json"));
        let mut headers: Vec<(&str, &str)> = vec![("user-agent", "twin/1")];
        headers.extend(content.map(|it| ("content-type", it)));
        headers.extend(step.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let patient = async {
            loop {
                let answer = self.side.ask(method, &fill(path), &headers, &body, step.events).await;
                if step.until.as_ref().is_none_or(|until| until.holds(&answer, fill)) {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, patient).await {
            Ok(answer) => answer,
            Err(_) => Answer { text: format!("not as awaited within {PATIENCE:?}"), ..Answer::default() },
        }
    }

    async fn leave(&self) {
        self.ask(&Step::new("DELETE /api/v1/namespaces/$ns", None)).await;
    }
}

/// Each metric with its type, and with the labels that any of its samples has.
fn shapes(answer: &Answer, metrics: &[String]) -> String {
    let mut shapes = format!("{} {}\n", answer.code, answer.content);
    for metric in metrics {
        let kind = answer.text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {metric} ")));
        let mut samples = BTreeSet::new();
        for line in answer.text.lines() {
            let (name, labels) = line.rsplit_once(' ').unwrap_or_default().0.split_once('{').unwrap_or((line, ""));
            let name = name.split(' ').next().unwrap_or_default();
            if name.strip_prefix(metric.as_str()).is_some_and(|part| matches!(part, "" | "_bucket" | "_sum" | "_count"))
            {
                let names = labels.split("\",").filter_map(|label| label.split_once("=\"")).map(|(name, _)| name);
                samples.insert(format!("{name} {}", names.collect::<Vec<_>>().join(",")));
            }
        }
        shapes.push_str(&format!("{metric}: {kind:?} {samples:#?}\n"));
    }
    shapes
}

impl Step {
    fn new(request: &str, body: Option<Value>) -> Self {
        Self {
            request: request.to_owned(),
            body,
            content: None,
            headers: BTreeMap::new(),
            events: None,
            until: None,
            ignore: Vec::new(),
            unordered: false,
            flat: false,
            code: false,
            metrics: Vec::new(),
            differs: None,
        }
    }
}

impl Until {
    fn holds(&self, answer: &Answer, fill: impl Fn(&str) -> String) -> bool {
        match self {
            Self::Code(code) => answer.code == *code,
            Self::Values(values) => {
                let Ok(body) = serde_json::from_str::<Value>(&answer.text) else { return false };
                values.iter().all(|(pointer, value)| body.pointer(&fill(pointer)).unwrap_or(&Value::Null) == value)
            }
        }
    }
}

/// The lines that are not in both, where each is another one.
fn unlike(theirs: &str, ours: &str) -> String {
    let (theirs, ours): (BTreeSet<_>, BTreeSet<_>) = (theirs.lines().collect(), ours.lines().collect());
    let mut lines: Vec<_> = theirs.difference(&ours).map(|it| (*it, '-')).collect();
    lines.extend(ours.difference(&theirs).map(|it| (*it, '+')));
    lines.sort_unstable();
    let count = lines.len();
    let shown = lines.into_iter().take(60).map(|(line, sign)| format!("  {sign} {line}\n"));
    format!("{}  {count} lines in all", shown.collect::<String>())
}

/// The lines that are not in both, with their neighbours.
fn difference(theirs: &str, ours: &str) -> String {
    let (theirs, ours): (Vec<_>, Vec<_>) = (theirs.lines().collect(), ours.lines().collect());
    // The longest common subsequence: answers are short.
    let mut common = vec![vec![0_u32; ours.len() + 1]; theirs.len() + 1];
    for (i, their) in theirs.iter().enumerate().rev() {
        for (j, our) in ours.iter().enumerate().rev() {
            common[i][j] = if their == our { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < theirs.len() || j < ours.len() {
        if i < theirs.len() && j < ours.len() && theirs[i] == ours[j] {
            lines.push((' ', theirs[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == ours.len() || (i < theirs.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', theirs[i]));
            i += 1;
        } else {
            lines.push(('+', ours[j]));
            j += 1;
        }
    }
    let near = |at: usize| {
        let (from, to) = (at.saturating_sub(2), (at + 3).min(lines.len()));
        lines[from..to].iter().any(|(sign, _)| *sign != ' ')
    };
    let shown: Vec<_> = lines.iter().enumerate().filter(|(at, _)| near(*at)).collect();
    let lines = shown.iter().take(60).map(|(_, (sign, line))| {
        let line: String = line.chars().take(1600).collect();
        format!("  {sign} {line}")
    });
    lines.collect::<Vec<_>>().join("\n")
}
