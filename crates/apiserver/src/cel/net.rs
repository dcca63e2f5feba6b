//! IP addresses, networks and URLs: Kubernetes' `ip.go`, `cidr.go` and `urls.go`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::call::texts;
use super::value::{Result, Value, error, no_overload};
use crate::object::field::quote;

/// Longer texts are no addresses; not to be shown whole in an error.
const LENGTH_MAX: usize = 100;

/// An address; no zones, no IPv4 in IPv6. The error says why.
pub(super) fn ip(text: &str) -> std::result::Result<IpAddr, String> {
    let shown = quote(text.get(..text.len().min(LENGTH_MAX)).unwrap_or_default());
    if text.len() <= LENGTH_MAX && text.contains('%') {
        return Err(format!("IP address {shown} with zone value is not allowed"));
    }
    match text.parse() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {shown} is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(format!(
            "IP Address {shown} parse error during conversion from string: ParseAddr({shown}): unable to parse IP"
        )),
    }
}

/// A network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(super) address: IpAddr,
    bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

pub(super) fn cidr(text: &str) -> std::result::Result<Cidr, String> {
    let shown = quote(text.get(..text.len().min(LENGTH_MAX)).unwrap_or_default());
    let wrong = |why: &str| {
        format!("network address parse error during conversion from string: netip.ParsePrefix({shown}): {why}")
    };
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let address: IpAddr = address.parse().map_err(|_| wrong(&format!("ParseAddr({shown}): unable to parse IP")))?;
    let plain =
        !bits.is_empty() && bits.bytes().all(|it| it.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.parse().ok().filter(|bits| plain && *bits <= most);
    let bits = bits.ok_or_else(|| wrong("prefix length out of range"))?;
    if matches!(address, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) {
        return Err(format!("IPv4-mapped IPv6 address {shown} is not allowed"));
    }
    Ok(Cidr { address, bits })
}

impl Cidr {
    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or_default();
                IpAddr::V4((ip.to_bits() & mask).into())
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or_default();
                IpAddr::V6((ip.to_bits() & mask).into())
            }
        };
        Self { address, ..self }
    }

    fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4()
            && Self { address: ip, bits: self.bits }.masked().address == self.masked().address
    }
}

/// A method of an address or a network.
pub(super) fn method<'a>(on: &Value<'a>, function: &str, other: Option<&Value<'a>>) -> Result<Value<'a>> {
    match on {
        Value::Ip(ip) => Ok(match function {
            "family" => Value::Int(if ip.is_ipv4() { 4 } else { 6 }),
            "isUnspecified" => Value::Bool(ip.is_unspecified()),
            "isLoopback" => Value::Bool(ip.is_loopback()),
            "isLinkLocalMulticast" => Value::Bool(link_local_multicast(ip)),
            "isLinkLocalUnicast" => Value::Bool(link_local(ip)),
            "isGlobalUnicast" => Value::Bool(
                !ip.is_unspecified()
                    && !ip.is_loopback()
                    && !ip.is_multicast()
                    && !link_local(ip)
                    && !matches!(ip, IpAddr::V4(ip) if ip.is_broadcast()),
            ),
            _ => return no_overload(),
        }),
        Value::Cidr(network) => Ok(match (function, other) {
            ("ip", None) => Value::Ip(network.address),
            ("prefixLength", None) => Value::Int(i64::from(network.bits)),
            ("masked", None) => Value::Cidr(network.masked()),
            ("containsIP", Some(Value::Ip(ip))) => Value::Bool(network.contains(*ip)),
            ("containsIP", Some(Value::Text(text))) => match ip(text.as_str()) {
                Ok(ip) => Value::Bool(network.contains(ip)),
                Err(said) => return error(said),
            },
            ("containsCIDR", Some(Value::Cidr(other))) => Value::Bool(within(*other, *network)),
            ("containsCIDR", Some(Value::Text(text))) => match cidr(text.as_str()) {
                Ok(other) => Value::Bool(within(other, *network)),
                Err(said) => return error(said),
            },
            _ => return no_overload(),
        }),
        _ => no_overload(),
    }
}

fn within(inner: Cidr, outer: Cidr) -> bool {
    outer.bits <= inner.bits && outer.contains(inner.address)
}

fn link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn link_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => matches!(ip.octets(), [224, 0, 0, _]),
        IpAddr::V6(ip) => matches!(ip.segments(), [first, ..] if first & 0xff0f == 0xff02),
    }
}

/// What Go's `url.ParseRequestURI` makes of a text.
#[derive(Debug)]
pub(crate) struct Url {
    text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Without the port and the brackets.
    fn hostname(&self) -> &str {
        if let Some(inside) = self.host.strip_prefix('[') {
            return inside.split(']').next().unwrap_or_default();
        }
        self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name)
    }

    fn port(&self) -> &str {
        let after = self.host.rsplit_once(']').map_or(self.host.as_str(), |(_, after)| after);
        after.rsplit_once(':').map_or("", |(_, port)| port)
    }
}

pub(super) fn url(text: &str) -> Result<Url> {
    let wrong = |why: &str| {
        let shown: String = text.chars().take(LENGTH_MAX).collect();
        error(format!("URL parse error during conversion from string: parse {}: {why}", quote(&shown)))
    };
    if text.is_empty() {
        return wrong("empty url");
    }
    if text.bytes().any(|it| it < b' ' || it == 0x7f) {
        return wrong("net/url: invalid control character in URL");
    }
    let scheme_end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c));
    let (scheme, rest) = match scheme_end {
        Some(0) if text.starts_with(':') => return wrong("missing protocol scheme"),
        Some(at) if text.get(at..=at) == Some(":") && text.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            (text.get(..at).unwrap_or_default().to_lowercase(), text.get(at + 1..).unwrap_or_default())
        }
        _ => (String::new(), text),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !rest.starts_with('/') {
        if scheme.is_empty() {
            return wrong("invalid URI for request");
        }
        // Opaque.
        let (path, host) = (String::new(), String::new());
        return Ok(Url { text: text.to_owned(), scheme, host, path, query: query.to_owned() });
    }
    let (authority, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty() || !rest.starts_with("///")) {
        Some(after) => {
            let at = after.find('/').unwrap_or(after.len());
            after.split_at(at)
        }
        None => ("", rest),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') {
        let Some((inside, after)) = host.trim_start_matches('[').split_once(']') else {
            return wrong("missing ']' in host");
        };
        let address = inside.split('%').next().unwrap_or_default();
        if address.parse::<Ipv6Addr>().is_err() || !port_is_right(after) {
            return wrong("invalid host");
        }
    } else if let Some(at) = host.rfind(':') {
        let port = host.get(at..).unwrap_or_default();
        if !port_is_right(port) {
            return wrong(&format!("invalid port {} after host", quote(port)));
        }
    }
    if host.chars().any(|c| " <>\"^`{}|\\".contains(c)) {
        return wrong("invalid character in host name");
    }
    let escapes = |text: &str| {
        let escaped = |it: &str| it.len() >= 2 && it.bytes().take(2).all(|c| c.is_ascii_hexdigit());
        text.split('%').skip(1).all(escaped)
    };
    if !escapes(path) || !escapes(host) {
        return wrong("invalid URL escape");
    }
    let path = path.replace(' ', "%20");
    Ok(Url { text: text.to_owned(), scheme, host: host.to_owned(), path, query: query.to_owned() })
}

fn port_is_right(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|it| it.is_ascii_digit()))
}

pub(super) fn url_method<'a>(on: &Url, function: &str) -> Result<Value<'a>> {
    Ok(match function {
        "getScheme" => Value::text(on.scheme.as_str()),
        "getHost" => Value::text(on.host.as_str()),
        "getHostname" => Value::text(on.hostname()),
        "getPort" => Value::text(on.port()),
        "getEscapedPath" => Value::text(on.path.as_str()),
        "getQuery" => {
            let mut entries: Vec<(String, Vec<String>)> = Vec::new();
            for pair in on.query.split('&').filter(|it| !it.is_empty() && !it.contains(';')) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let (Some(key), Some(value)) = (unescape(key), unescape(value)) else { continue };
                match entries.iter_mut().find(|it| it.0 == key) {
                    Some(entry) => entry.1.push(value),
                    None => entries.push((key, vec![value])),
                }
            }
            texts(entries)
        }
        _ => return no_overload(),
    })
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}
