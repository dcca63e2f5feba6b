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
    let shown = shown(text);
    match parse(text) {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {shown} is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) if text.len() <= LENGTH_MAX && text.contains(':') && text.contains('%') => {
            Err(format!("IP address {shown} with zone value is not allowed"))
        }
        Err(why) => Err(format!("IP Address {shown} parse error during conversion from string: {why}")),
    }
}

fn shown(text: &str) -> String {
    let start: String = text.chars().take(LENGTH_MAX).collect();
    quote(&start)
}

/// Go's `netip.ParseAddr`, with its words for IPv4.
fn parse(text: &str) -> std::result::Result<IpAddr, String> {
    text.parse().map_err(|_| format!("ParseAddr({}): {}", shown(text), mistake(text)))
}

fn mistake(text: &str) -> String {
    let dotted = text.find(['.', ':', '%']).is_some_and(|at| text.get(at..=at) == Some("."));
    if !dotted || text.len() > LENGTH_MAX {
        return "unable to parse IP".to_owned();
    }
    let (mut value, mut digits, mut fields) = (0_u32, 0, 0);
    let mut zero = false;
    for (at, c) in text.char_indices() {
        let rest = || quote(text.get(at..).unwrap_or_default());
        match c.to_digit(10) {
            Some(digit) => {
                if digits == 1 && zero {
                    return "IPv4 field has octet with leading zero".to_owned();
                }
                zero = digits == 0 && digit == 0;
                value = value * 10 + digit;
                digits += 1;
                if value > 255 {
                    return "IPv4 field has value >255".to_owned();
                }
            }
            None if c == '.' => {
                if digits == 0 || at + 1 == text.len() {
                    return format!("IPv4 field must have at least one digit (at {})", rest());
                }
                if fields == 3 {
                    return "IPv4 address too long".to_owned();
                }
                (fields, value, digits, zero) = (fields + 1, 0, 0, false);
            }
            None => return format!("unexpected character (at {})", rest()),
        }
    }
    "IPv4 address too short".to_owned()
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
    const PREFIX: &str = "network address parse error during conversion from string: ";
    let wrong = |why: &str| format!("{PREFIX}{PREFIX}netip.ParsePrefix({}): {why}", shown(text));
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let address = parse(address).map_err(|why| wrong(&why))?;
    let plain =
        !bits.is_empty() && bits.bytes().all(|it| it.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    if !plain {
        return Err(wrong(&format!("bad bits after slash: {}", shown(bits))));
    }
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(|| wrong("prefix length out of range"))?;
    if matches!(address, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) {
        return Err(format!("{PREFIX}IPv4-mapped IPv6 address {} is not allowed", shown(text)));
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
            "isGlobalUnicast" => Value::Bool(kit::is_global_unicast(*ip)),
            _ => return no_overload(),
        }),
        Value::Cidr(network) => Ok(match (function, other) {
            ("ip", None) => Value::Ip(network.address),
            ("prefixLength", None) => Value::Int(i64::from(network.bits)),
            ("masked", None) => Value::Cidr(network.masked()),
            ("containsIP", Some(Value::Ip(ip))) => Value::Bool(network.contains(*ip)),
            ("containsIP", Some(Value::Text(text))) => match ip(text.as_str()) {
                Ok(ip) => Value::Bool(network.contains(ip)),
                // Upstream says no more.
                Err(_) => return no_overload(),
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
