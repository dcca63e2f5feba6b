//! Where a Service leads. There is no proxy of addresses here: what counts is who is behind it, as with
//! `--enable-aggregator-routing` upstream.

use std::sync::Arc;

use serde_json::Value;

use crate::core::Core;
use crate::store::{Entry, Key};

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) host: String,
    pub(super) port: u16,
    /// In the certificate.
    pub(super) name: String,
}

/// The first ready endpoint of a Service in its EndpointSlices (or in the Endpoints of its name), by the Service's port;
/// the external name of one that has no more than that.
pub(super) fn of_service(core: &Core, namespace: &str, name: &str, port: u16) -> Result<Endpoint, String> {
    let Some(service) = core.store.get(&Key::new("", "services", namespace, name)) else {
        return Err(format!("service {name:?} not found"));
    };
    let service = service.value();
    let seen = format!("{name}.{namespace}.svc");
    let text = |path: &str| service.pointer(path).and_then(Value::as_str).unwrap_or_default();
    if text("/spec/type") == "ExternalName" {
        return Ok(Endpoint { host: text("/spec/externalName").to_owned(), port, name: seen });
    }
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let Some(chosen) = ports.iter().find(|it| it.get("port").and_then(Value::as_u64) == Some(port.into())) else {
        return Err(format!("no service port {port} found for service {name:?}"));
    };
    let chosen = chosen.get("name").and_then(Value::as_str).unwrap_or_default();
    let of_slices = core.store.list("discovery.k8s.io", "endpointslices", Some(namespace), None, None).entries;
    let ours = |it: &&Arc<Entry>| it.labels().get("kubernetes.io/service-name").is_some_and(|it| *it == *name);
    let found = of_slices.iter().filter(ours).find_map(|it| of_slice(&it.value(), chosen));
    let old =
        || core.store.get(&Key::new("", "endpoints", namespace, name)).and_then(|it| of_endpoints(&it.value(), chosen));
    let (host, port) = found.or_else(old).ok_or_else(|| format!("no endpoints available for service {name:?}"))?;
    Ok(Endpoint { host, port, name: seen })
}

fn list<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    of.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn number(of: &Value, name: &str) -> Option<u16> {
    let port = list(of, "ports").find(|it| it.get("name").and_then(Value::as_str).unwrap_or_default() == name)?;
    port.get("port").and_then(Value::as_u64)?.try_into().ok()
}

fn of_slice(slice: &Value, port: &str) -> Option<(String, u16)> {
    let number = number(slice, port)?;
    let ready = |it: &&Value| it.pointer("/conditions/ready") != Some(&Value::Bool(false));
    let address = list(slice, "endpoints").filter(ready).find_map(|it| list(it, "addresses").next()?.as_str())?;
    Some((address.to_owned(), number))
}

fn of_endpoints(endpoints: &Value, port: &str) -> Option<(String, u16)> {
    list(endpoints, "subsets").find_map(|subset| {
        let number = number(subset, port)?;
        Some((list(subset, "addresses").next()?.get("ip")?.as_str()?.to_owned(), number))
    })
}
