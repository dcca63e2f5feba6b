//! ComponentStatuses: the parts of the control plane, made up when somebody asks.

use serde_json::{Value, json};

use crate::http::json::put;
use crate::http::media::{Accept, Shape};
use crate::http::present::{self, Include};
use crate::http::reply::Reply;
use crate::http::resource::{Asked, encoded};
use crate::object::selector::Labels;
use crate::object::status::{Problem, What};
use crate::verbs::{Call, ListOptions};

/// All are one process, which answers: were one of them not well, nobody would be answered.
const ALL: [&str; 2] = ["controller-manager", "store"];

pub(crate) fn answer(call: &mut Call, asked: &Asked<'_>, accept: &Accept) -> Result<Reply, Problem> {
    let verb = asked.target.verb;
    if !matches!(verb, "get" | "list" | "watch") {
        return Err(Problem::not_allowed());
    }
    call.warn("v1 ComponentStatus is deprecated in v1.19+");
    let one = |name: &str| json!({"metadata": {"name": name}, "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]});
    let whole = |name: &str| {
        let mut object = json!({"kind": "ComponentStatus", "apiVersion": "v1"});
        for (field, value) in one(name).as_object().into_iter().flatten() {
            put(&mut object, field, value.clone());
        }
        object
    };
    let now = call.core.clock.now();
    let value = match verb {
        "watch" => return Err(Problem::method_not_supported(What::new("", "componentstatuses"), "watch")),
        "get" => {
            let name = ALL.into_iter().find(|it| *it == call.name);
            let name = name.ok_or_else(|| Problem::not_found(What::new("", "componentstatus"), &call.name))?;
            match accept.shape {
                Shape::Plain => whole(name),
                Shape::Metadata { version } => present::metadata(&whole(name), version),
                Shape::Table { version } => {
                    let rows = std::iter::once(whole(name));
                    present::table(&call.resource, rows, json!({}), version, Include::Metadata, now)
                }
            }
        }
        _ => {
            let options = ListOptions::of(asked.query, false)?;
            let labels = Labels::parse(&options.labels).map_err(Problem::bad_request)?;
            let all = ALL.into_iter().filter(|_| labels.matches(|_| None));
            match accept.shape {
                Shape::Table { version } => {
                    present::table(&call.resource, all.map(whole), json!({}), version, Include::Metadata, now)
                }
                Shape::Plain | Shape::Metadata { .. } => {
                    let items: Vec<Value> = all.map(one).collect();
                    json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": items})
                }
            }
        }
    };
    encoded(accept, 200, &value)
}
