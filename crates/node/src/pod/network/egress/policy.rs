//! Where pods may go.

use std::collections::BTreeSet;
use std::net::IpAddr;

/// This machine, as pods name it to the proxy: their own loopback is another.
pub(super) const HOST: &str = "host.insula.internal";
/// The longest name that there is.
const LONGEST: usize = 253;

/// Where pods may be connected to outside of their own network.
///
/// Never to what is private, near or this machine, unless one port of it is named. By default to everything else: that is
/// what pods find on any cluster that nobody has closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Whatever nothing says otherwise of.
    others: bool,
    /// Names, in lower case.
    names: BTreeSet<String>,
    /// What names below these have in common, with its first dot.
    below: BTreeSet<String>,
    /// Ports that may be anywhere.
    places: BTreeSet<(String, u16)>,
}

/// How far a name may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Far {
    /// To public addresses.
    Public,
    Anywhere,
}

impl Default for Egress {
    fn default() -> Self {
        Self { others: true, ..Self::none() }
    }
}

impl Egress {
    /// Nowhere.
    fn none() -> Self {
        Self { others: false, names: BTreeSet::new(), below: BTreeSet::new(), places: BTreeSet::new() }
    }

    /// By rules: `allow` (everything that is public), `deny` (nothing but what other rules say), `NAME` and `*.NAME` (as
    /// far as they lead to public addresses), `HOST:PORT` (wherever that is, this machine too).
    ///
    /// # Errors
    /// What is wrong with a rule, for whoever wrote it.
    pub fn new<S: AsRef<str>>(rules: impl IntoIterator<Item = S>) -> Result<Self, String> {
        let (mut all, mut denied) = (Self::none(), false);
        for rule in rules {
            let rule = rule.as_ref().trim();
            match rule {
                "allow" => all.others = true,
                "deny" => denied = true,
                _ => all.add(rule)?,
            }
        }
        if all.others && denied {
            return Err("`allow` and `deny` exclude each other".into());
        }
        Ok(all)
    }

    fn add(&mut self, rule: &str) -> Result<(), String> {
        let wrong = || format!("{rule:?} is none of allow, deny, NAME, *.NAME and HOST:PORT");
        let named = |it: &str| Some(host(it)).filter(|it| is_host(it)).ok_or_else(wrong);
        if let Some(name) = rule.strip_prefix("*.") {
            self.below.insert(format!(".{}", named(name)?));
        } else if let Some((of, port)) = rule.rsplit_once(':').filter(|_| rule.parse::<IpAddr>().is_err()) {
            let port = port.parse().ok().filter(|it| *it > 0).ok_or_else(wrong)?;
            self.places.insert((named(of)?, port));
        } else {
            self.names.insert(named(rule)?);
        }
        Ok(())
    }

    /// `name`: as [`host`] writes it. `None`: not at all.
    pub(super) fn may(&self, name: &str, port: u16) -> Option<Far> {
        if self.places.contains(&(name.to_owned(), port)) {
            return Some(Far::Anywhere);
        }
        let mut below = name.match_indices('.').filter_map(|(at, _)| name.get(at..));
        let may = self.others || self.names.contains(name) || below.any(|it| self.below.contains(it));
        may.then_some(Far::Public)
    }
}

/// A host in the one way in which we compare them: in lower case, without the last dot and without brackets.
pub(super) fn host(text: &str) -> String {
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase(),
    }
}

/// Whether it can be somebody's name or address.
pub(super) fn is_host(text: &str) -> bool {
    let is_label = |it: &str| {
        let good = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'_');
        !it.is_empty() && it.len() < 64 && it.bytes().all(good)
    };
    text.parse::<IpAddr>().is_ok() || (text.len() <= LONGEST && text.split('.').all(is_label))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn rules_say_how_far_pods_may_go() {
        let (public, anywhere) = (Some(Far::Public), Some(Far::Anywhere));
        for (rules, to, far) in [
            (&["allow"][..], ("example.org", 443), public),
            (&["deny"], ("example.org", 443), None),
            (&[], ("example.org", 443), None),
            (&["example.org"], ("Example.ORG.", 443), public),
            (&["example.org"], ("a.example.org", 443), None),
            (&["*.example.org"], ("a.b.example.org", 443), public),
            (&["*.example.org"], ("example.org", 443), None),
            (&["*.example.org"], ("anexample.org", 443), None),
            (&["*.org"], ("example.org", 443), public),
            (&["allow", "10.0.0.7:5432"], ("10.0.0.7", 5432), anywhere),
            (&["allow", "10.0.0.7:5432"], ("10.0.0.7", 5433), public),
            (&["10.0.0.7:5432"], ("10.0.0.7", 5433), None),
            (&["deny", "host.insula.internal:80"], ("host.insula.internal", 80), anywhere),
            (&["[fd00::1]:80"], ("[fd00:0::1]", 80), anywhere),
            (&["::ffff:192.0.2.1"], ("192.0.2.1", 1), public),
        ] {
            assert_eq!(Egress::new(rules).unwrap().may(&host(to.0), to.1), far, "{rules:?} {to:?}");
        }
        assert_eq!(Egress::default(), Egress::new(["allow"]).unwrap());
        for wrong in
            ["", "*", "*.", "a b", "a/b", "example.org:", "example.org:0", "example.org:99999", "http://a", ":80"]
        {
            assert!(Egress::new([wrong]).unwrap_err().contains("is none of"), "{wrong:?}");
        }
        assert!(Egress::new(["allow", "deny"]).unwrap_err().contains("exclude"));
    }
}
