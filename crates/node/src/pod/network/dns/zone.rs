//! The names that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// What all names of a cluster end with.
const CLUSTER: &str = "cluster.local";
/// Aliases that are followed for one question.
const ALIASES: usize = 4;

/// All names in lower case, without the last dot.
#[derive(Debug, Default, PartialEq)]
pub(in super::super) struct Zone {
    names: BTreeMap<String, Entry>,
    /// Names of addresses.
    addresses: BTreeMap<Ipv4Addr, BTreeSet<String>>,
}

#[derive(Debug, Default, PartialEq)]
struct Entry {
    addresses: BTreeSet<Ipv4Addr>,
    alias: Option<String>,
    ports: BTreeSet<(u16, String)>,
}

/// One record of an answer: whose, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub name: String,
    pub data: Data,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Address(Ipv4Addr),
    Alias(String),
    Pointer(String),
    Port { port: u16, target: String },
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Address,
    Alias,
    Pointer,
    Port,
    Any,
    /// Something that nobody here has.
    Other,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The records, and the addresses of the names in them.
    Records(Vec<Record>, Vec<Record>),
    /// There is such a name, and nothing of that kind.
    Nothing,
    NoSuchName,
    /// Not of this cluster: somebody else would know.
    NotOurs,
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Known {
    Addresses(Vec<Ipv4Addr>),
    /// It is another name for somebody outside.
    Elsewhere(String),
}

impl Zone {
    fn entry(&mut self, name: &str) -> &mut Entry {
        // Whatever is above a name is a name too.
        let mut above = name;
        while let Some((_, rest)) = above.split_once('.') {
            if rest.len() < CLUSTER.len() || self.names.contains_key(rest) {
                break;
            }
            self.names.insert(rest.to_owned(), Entry::default());
            above = rest;
        }
        self.names.entry(name.to_owned()).or_default()
    }

    /// A service with an address of its own; `ports`: name, protocol, number.
    pub(in super::super) fn service(
        &mut self,
        name: &(String, String),
        address: Ipv4Addr,
        ports: &[(&str, String, u16)],
    ) {
        let own = service(name);
        self.entry(&own).addresses.insert(address);
        for (port, protocol, number) in ports {
            self.entry(&format!("_{port}._{protocol}.{own}")).ports.insert((*number, own.clone()));
        }
        self.addresses.entry(address).or_default().insert(own);
    }

    pub(in super::super) fn alias(&mut self, name: &(String, String), to: &str) {
        let to = to.trim_end_matches('.').to_ascii_lowercase();
        if super::message::is_name(&to) {
            self.entry(&service(name)).alias = Some(to);
        }
    }

    /// A service without an address; its name is there even without endpoints.
    pub(in super::super) fn headless(&mut self, name: &(String, String)) {
        self.entry(&service(name));
    }

    pub(in super::super) fn endpoint(
        &mut self,
        name: &(String, String),
        hostname: Option<&str>,
        address: Ipv4Addr,
        ports: &[(&str, String, u16)],
    ) {
        let own = service(name);
        let host = hostname.filter(|it| !it.is_empty()).map_or_else(|| dashed(address), str::to_ascii_lowercase);
        let host = format!("{host}.{own}");
        self.entry(&own).addresses.insert(address);
        self.entry(&host).addresses.insert(address);
        for (port, protocol, number) in ports {
            self.entry(&format!("_{port}._{protocol}.{own}")).ports.insert((*number, host.clone()));
        }
        self.addresses.entry(address).or_default().insert(host);
    }

    /// `turn`: which of several addresses comes first.
    pub(super) fn find(&self, name: &str, kind: Kind, turn: usize) -> Found {
        if let Some(reversed) = name.strip_suffix(".in-addr.arpa") {
            return self.reversed(name, reversed, kind);
        }
        if name != CLUSTER && !name.strip_suffix(CLUSTER).is_some_and(|it| it.ends_with('.')) {
            return Found::NotOurs;
        }
        let mut records = Vec::new();
        let mut name = name.to_owned();
        for _ in 0..ALIASES {
            let Some(entry) = self.names.get(&name) else {
                return match pod(&name) {
                    Some(_) if !matches!(kind, Kind::Address | Kind::Any) && records.is_empty() => Found::Nothing,
                    Some(address) => {
                        let data = Data::Address(address);
                        records.push(Record { name, data });
                        Found::Records(records, Vec::new())
                    }
                    // What an alias leads to may be elsewhere.
                    None if !records.is_empty() => Found::Records(records, Vec::new()),
                    None => Found::NoSuchName,
                };
            };
            if let Some(alias) = &entry.alias {
                records.push(Record { name: name.clone(), data: Data::Alias(alias.clone()) });
                if !matches!(kind, Kind::Address) {
                    break;
                }
                name.clone_from(alias);
                continue;
            }
            if matches!(kind, Kind::Address | Kind::Any) {
                let mut all: Vec<_> = entry.addresses.iter().copied().collect();
                let by = turn.checked_rem(all.len()).unwrap_or_default();
                all.rotate_left(by);
                let all = all.into_iter().map(Data::Address);
                records.extend(all.map(|data| Record { name: name.clone(), data }));
            }
            let mut more = Vec::new();
            if matches!(kind, Kind::Port | Kind::Any) {
                for (port, target) in &entry.ports {
                    let data = Data::Port { port: *port, target: target.clone() };
                    records.push(Record { name: name.clone(), data });
                    let addresses = self.names.get(target).into_iter().flat_map(|it| &it.addresses);
                    more.extend(addresses.map(|it| Record { name: target.clone(), data: Data::Address(*it) }));
                }
                more.dedup();
            }
            return if records.is_empty() { Found::Nothing } else { Found::Records(records, more) };
        }
        Found::Records(records, Vec::new())
    }

    /// What a name stands for, if it is one of the cluster; all of its addresses, whoever's turn it is.
    pub(in super::super) fn known(&self, name: &str) -> Option<Known> {
        let Found::Records(records, _) = self.find(name, Kind::Address, 0) else { return None };
        let addresses = records.iter().filter_map(|it| match it.data {
            Data::Address(address) => Some(address),
            _ => None,
        });
        let addresses: Vec<_> = addresses.collect();
        match records.into_iter().last().map(|it| it.data) {
            Some(Data::Alias(name)) if addresses.is_empty() => Some(Known::Elsewhere(name)),
            _ => Some(Known::Addresses(addresses)),
        }
    }

    fn reversed(&self, name: &str, reversed: &str, kind: Kind) -> Found {
        let octets: Vec<u8> = reversed.split('.').rev().map_while(|it| it.parse().ok()).collect();
        let address = <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from);
        let Some(names) = address.and_then(|it| self.addresses.get(&it)) else { return Found::NotOurs };
        if !matches!(kind, Kind::Pointer | Kind::Any) {
            return Found::Nothing;
        }
        let records = names.iter().map(|it| Record { name: name.to_owned(), data: Data::Pointer(it.clone()) });
        Found::Records(records.collect(), Vec::new())
    }
}

fn service((namespace, name): &(String, String)) -> String {
    format!("{name}.{namespace}.svc.{CLUSTER}").to_ascii_lowercase()
}

fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

/// The address in `1-2-3-4.NAMESPACE.pod.cluster.local`.
fn pod(name: &str) -> Option<Ipv4Addr> {
    let name = name.strip_suffix(CLUSTER)?.strip_suffix(".pod.")?;
    let (address, namespace) = name.split_once('.')?;
    (!namespace.contains('.')).then(|| address.replace('-', ".").parse().ok())?
}
