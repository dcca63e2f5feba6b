//! Rules of RBAC: what they allow, whether some cover others, and how they are shown. `pkg/apis/rbac/v1`,
//! `component-helpers/auth/rbac/validation` of upstream.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};

use super::Attributes;

const ALL: &str = "*";

/// `rbac.authorization.k8s.io/v1.PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rule {
    #[serde(deserialize_with = "nullable")]
    pub(crate) verbs: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) api_groups: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) resources: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub(crate) non_resource_urls: Vec<String>,
}

/// A list that may be `null`.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn has(all: &[String], one: &str) -> bool {
    all.iter().any(|it| it == one)
}

fn has_or_all(all: &[String], one: &str) -> bool {
    all.iter().any(|it| it == one || it == ALL)
}

impl Rule {
    pub(super) fn everything() -> [Self; 2] {
        let all = || vec![ALL.to_owned()];
        [
            Self { verbs: all(), api_groups: all(), resources: all(), ..Self::default() },
            Self { verbs: all(), non_resource_urls: all(), ..Self::default() },
        ]
    }

    pub(super) fn allows(&self, wanted: &Attributes) -> bool {
        match wanted {
            Attributes::Path { verb, path } => {
                has_or_all(&self.verbs, verb)
                    && self.non_resource_urls.iter().any(|it| it == ALL || url_covers(it, path))
            }
            Attributes::Resource { verb, group, resource, subresource, name, .. } => {
                has_or_all(&self.verbs, verb)
                    && has_or_all(&self.api_groups, group)
                    && self.resources.iter().any(|it| names(it, resource, subresource))
                    && (self.resource_names.is_empty() || has(&self.resource_names, name))
            }
        }
    }

    /// Whether it covers a rule that is [`Rule::broken_down`].
    fn covers(&self, one: &Self) -> bool {
        let all = |mine: &[String], theirs: &[String]| has(mine, ALL) || theirs.iter().all(|it| has(mine, it));
        let resource = |theirs: &String| match theirs.split_once('/') {
            _ if has_or_all(&self.resources, theirs) => true,
            Some((_, subresource)) => has(&self.resources, &format!("*/{subresource}")),
            None => false,
        };
        all(&self.verbs, &one.verbs)
            && all(&self.api_groups, &one.api_groups)
            && one.resources.iter().all(resource)
            && one.non_resource_urls.iter().all(|it| self.non_resource_urls.iter().any(|mine| url_covers(mine, it)))
            && (self.resource_names.is_empty()
                || (!one.resource_names.is_empty()
                    && one.resource_names.iter().all(|it| has(&self.resource_names, it))))
    }

    /// An equivalent list of rules with one verb, one resource and at most one name each.
    fn broken_down(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        let one = |it: &String| vec![it.clone()];
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let part =
                        Self { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Self::default() };
                    if self.resource_names.is_empty() {
                        parts.push(part);
                    } else {
                        let named = |name| Self { resource_names: one(name), ..part.clone() };
                        parts.extend(self.resource_names.iter().map(named));
                    }
                }
            }
        }
        for url in &self.non_resource_urls {
            let part = |verb| Self { verbs: one(verb), non_resource_urls: one(url), ..Self::default() };
            parts.extend(self.verbs.iter().map(part));
        }
        parts
    }

    /// How many these are.
    fn parts(&self) -> usize {
        let (verbs, names) = (self.verbs.len(), self.resource_names.len().max(1));
        let each = |all: &[&Vec<String>]| all.iter().fold(verbs, |so_far, it| so_far.saturating_mul(it.len()));
        let of_resources = each(&[&self.api_groups, &self.resources]).saturating_mul(names);
        of_resources.saturating_add(each(&[&self.non_resource_urls]))
    }

    /// `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
    fn compact(&self) -> String {
        let fields = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let shown = fields.iter().filter(|(_, list)| !list.is_empty());
        let shown: Vec<String> = shown.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
        format!("{{{}}}", shown.join(", "))
    }
}

/// Go's `%q` of a list.
pub(super) fn quoted(list: &[String]) -> String {
    let all: Vec<String> = list.iter().map(|it| format!("{it:?}")).collect();
    format!("[{}]", all.join(" "))
}

/// Whether a resource of a rule names what is asked for: `pods`, `pods/log`, `*/scale`, `*`.
fn names(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == ALL {
        return true;
    }
    match (subresource, rule.split_once('/')) {
        ("", _) => rule == resource,
        (_, Some((of, part))) => part == subresource && (of == resource || of == ALL),
        (_, None) => false,
    }
}

fn url_covers(rule: &str, url: &str) -> bool {
    rule == url || (rule.ends_with('*') && url.starts_with(rule.trim_end_matches('*')))
}

/// In how many parts [`uncovered`] looks at them.
pub(super) fn parts(rules: &[Rule]) -> usize {
    rules.iter().fold(0, |so_far: usize, it| so_far.saturating_add(it.parts()))
}

/// What of `wanted` the `held` rules do not allow, in parts; nothing when they cover it.
pub(super) fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let parts = wanted.iter().flat_map(Rule::broken_down);
    parts.filter(|part| !held.iter().any(|rule| rule.covers(part))).collect()
}

/// The parts as upstream lists them: joined where only verbs differ, sorted, a line each.
pub(super) fn described(parts: Vec<Rule>) -> String {
    let mut lines = BTreeSet::new();
    let mut simple: BTreeMap<(String, String, Option<String>), Rule> = BTreeMap::new();
    for part in parts {
        let (Some(group), Some(resource)) = (part.api_groups.first(), part.resources.first()) else {
            lines.insert(part.compact());
            continue;
        };
        let key = (group.clone(), resource.clone(), part.resource_names.first().cloned());
        match simple.get_mut(&key) {
            Some(rule) => rule.verbs.extend(part.verbs),
            None => drop(simple.insert(key, part)),
        }
    }
    lines.extend(simple.values().map(Rule::compact));
    lines.into_iter().collect::<Vec<_>>().join("\n")
}
