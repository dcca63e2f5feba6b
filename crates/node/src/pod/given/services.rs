//! The variables by which a container finds services.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

/// Of the services that a pod of this namespace sees: those of its namespace, if it wants them, and Kubernetes itself.
pub(super) fn variables(namespace: &str, links: bool, services: &[Service]) -> Vec<(String, String)> {
    let of = |service: &Service| service.metadata.namespace.as_deref().unwrap_or_default().to_owned();
    let ours = |it: &&Service| of(it) == namespace && links;
    let kubernetes = |it: &&Service| of(it) == "default" && it.metadata.name.as_deref() == Some("kubernetes");
    let has = |name: Option<&str>| services.iter().filter(ours).any(|it| it.metadata.name.as_deref() == name);
    // One of the namespace's own that is called kubernetes is meant, then.
    let first = services.iter().filter(kubernetes).filter(|it| ours(it) || !has(it.metadata.name.as_deref()));
    let rest = services.iter().filter(ours).filter(|it| !kubernetes(it));
    first.chain(rest).flat_map(of_one).collect()
}

fn of_one(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(address) = spec.cluster_ip.as_deref().filter(|it| !it.is_empty() && *it != "None") else {
        return Vec::new();
    };
    let name = variable(service.metadata.name.as_deref().unwrap_or_default());
    let mut all = vec![(format!("{name}_SERVICE_HOST"), address.to_owned())];
    let ports = spec.ports.as_deref().unwrap_or_default();
    if let Some(first) = ports.first() {
        all.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
    }
    for port in ports {
        if let Some(of) = port.name.as_deref().filter(|it| !it.is_empty()) {
            all.push((format!("{name}_SERVICE_PORT_{}", variable(of)), port.port.to_string()));
        }
    }
    let host = match address.parse() {
        Ok(IpAddr::V6(_)) => format!("[{address}]"),
        _ => address.to_owned(),
    };
    for (at, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().filter(|it| !it.is_empty()).unwrap_or("TCP");
        let (upper, lower) = (protocol.to_uppercase(), protocol.to_lowercase());
        let number = port.port;
        let url = format!("{lower}://{host}:{number}");
        if at == 0 {
            all.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{number}_{upper}");
        all.push((format!("{prefix}_PROTO"), lower));
        all.push((format!("{prefix}_PORT"), number.to_string()));
        all.push((format!("{prefix}_ADDR"), address.to_owned()));
        all.push((prefix, url));
    }
    all
}

fn variable(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(namespace: &str, name: &str, address: &str, ports: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name}, "spec": {"clusterIP": address, "ports": ports},
        }))
        .unwrap()
    }

    #[test]
    fn services_are_told_as_kubelets_and_docker_tell_them() {
        let all = [
            service("default", "kubernetes", "10.0.0.1", json!([{"name": "https", "port": 443}])),
            service("ns", "my-db", "fd00::5", json!([{"port": 53, "protocol": "UDP"}, {"name": "x-y", "port": 80}])),
            service("ns", "headless", "None", json!([{"port": 1}])),
            service("other", "not", "10.0.0.3", json!([{"port": 1}])),
        ];
        let kubernetes = [
            "KUBERNETES_SERVICE_HOST=10.0.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "KUBERNETES_PORT=tcp://10.0.0.1:443",
            "KUBERNETES_PORT_443_TCP_PROTO=tcp",
            "KUBERNETES_PORT_443_TCP_PORT=443",
            "KUBERNETES_PORT_443_TCP_ADDR=10.0.0.1",
            "KUBERNETES_PORT_443_TCP=tcp://10.0.0.1:443",
        ];
        let db = [
            "MY_DB_SERVICE_HOST=fd00::5",
            "MY_DB_SERVICE_PORT=53",
            "MY_DB_SERVICE_PORT_X_Y=80",
            "MY_DB_PORT=udp://[fd00::5]:53",
            "MY_DB_PORT_53_UDP_PROTO=udp",
            "MY_DB_PORT_53_UDP_PORT=53",
            "MY_DB_PORT_53_UDP_ADDR=fd00::5",
            "MY_DB_PORT_53_UDP=udp://[fd00::5]:53",
            "MY_DB_PORT_80_TCP_PROTO=tcp",
            "MY_DB_PORT_80_TCP_PORT=80",
            "MY_DB_PORT_80_TCP_ADDR=fd00::5",
            "MY_DB_PORT_80_TCP=tcp://[fd00::5]:80",
        ];
        let told = |namespace, links| {
            let all = variables(namespace, links, &all).into_iter().map(|(name, value)| format!("{name}={value}"));
            all.collect::<Vec<_>>()
        };
        assert_eq!(told("ns", true), [&kubernetes[..], &db].concat());
        assert_eq!(told("ns", false), kubernetes);
        assert_eq!(told("default", true), kubernetes);
    }
}
