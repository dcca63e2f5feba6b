//! Endpoints that somebody made for a service of no selector, as slices.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::slices::{self, Common, Group, MANAGED_BY};
use super::{ENDPOINTS, LEADER, Labels, OF_SERVICE, TRIGGER, is_ours, selector_of};
use crate::http::json::put;
use crate::local::World;
use crate::local::write::set;
use crate::object::status::Problem;
use crate::store::Key;
use crate::verbs::meta;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Addresses of a subset that are mirrored, at most.
const MOST: usize = 1000;

/// Brings the mirrors of the Endpoints of a service's name in line with them.
pub(super) async fn look(world: &World, service: &Key, is: Option<&Service>) -> Result<(), Problem> {
    let existing = slices::of(world, &service.namespace, &service.name, MANAGER);
    let key = Key::new("", ENDPOINTS, service.namespace.clone(), service.name.clone());
    let hands_off = is.is_some_and(|it| selector_of(it).is_none());
    let endpoints = world.core.store.get(&key).filter(|it| hands_off && !is_ours(it)).map(|it| it.value());
    let endpoints = endpoints.filter(|it| {
        meta::keyed(it, "labels", SKIP) != Some("true")
            && meta::keyed(it, "annotations", LEADER).is_none()
            && !meta::is_being_deleted(it)
    });
    let Some(endpoints) = endpoints else {
        if existing.is_empty() {
            return Ok(());
        }
        let nobody = Common { namespace: "", service: "", labels: Labels::new(), owner: Value::Null, most: MOST };
        return slices::settle(world, &nobody, Vec::new(), existing, |_| ()).await;
    };
    let map = |field: &str| meta::get(&endpoints, field).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut labels = map("labels");
    labels.insert(OF_SERVICE.into(), json!(&*service.name));
    labels.insert(MANAGED_BY.into(), json!(MANAGER));
    let mut annotations = map("annotations");
    annotations.retain(|key, _| key != TRIGGER && key != APPLIED);
    let owner = json!([{"apiVersion": "v1", "kind": "Endpoints", "name": &*service.name, "uid": meta::uid(&endpoints),
        "controller": true, "blockOwnerDeletion": true}]);
    let (namespace, name) = (&*service.namespace, &*service.name);
    let common = Common { namespace, service: name, labels, owner, most: MOST };
    let wanted = [false, true].map(|v6| (slices::kind(v6), groups(&endpoints, v6)));
    let noted = |it: &mut Value| {
        let all = Value::Object(annotations.clone());
        set(it, &["metadata", "annotations"], if annotations.is_empty() { Value::Null } else { all });
    };
    slices::settle(world, &common, wanted.into(), existing, noted).await
}

fn groups(endpoints: &Value, v6: bool) -> Vec<Group> {
    let mut groups = Vec::new();
    for subset in endpoints.get("subsets").and_then(Value::as_array).into_iter().flatten() {
        let list = |field: &str| subset.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let all = list("addresses").iter().map(|it| (it, true));
        let all = all.chain(list("notReadyAddresses").iter().map(|it| (it, false)));
        let of_family = all.filter(|it| {
            let ip = it.0.get("ip").and_then(Value::as_str).and_then(|it| it.parse::<IpAddr>().ok());
            ip.is_some_and(|it| it.is_ipv6() == v6)
        });
        let endpoints: Vec<Value> = of_family.take(MOST).map(|(address, ready)| endpoint(address, ready)).collect();
        if endpoints.is_empty() {
            continue;
        }
        let ports = list("ports").iter().cloned().map(|mut it| {
            if it.get("name").is_none() {
                put(&mut it, "name", json!(""));
            }
            it
        });
        groups.push((ports.collect(), endpoints));
    }
    groups
}

fn endpoint(address: &Value, ready: bool) -> Value {
    let mut it = json!({"addresses": [address.get("ip")], "conditions": {"ready": ready}});
    for field in ["hostname", "targetRef", "nodeName"] {
        if let Some(value) = address.get(field) {
            put(&mut it, field, value.clone());
        }
    }
    it
}
