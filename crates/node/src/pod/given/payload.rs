//! What is in the files of a volume that is made of objects. Messages of errors are a kubelet's.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume,
};

use super::expand::field;
use super::objects::{ObjectKind, not_found};
use super::{NodeFacts, resources};

/// The most bytes that one volume is given. An object holds a MiB at most, but a projection takes any number of them.
const MOST: usize = 64 << 20;
/// The longest path and the longest name in it that Kubernetes takes.
const LONGEST_PATH: usize = 4096;
const LONGEST_NAME: usize = 255;

/// A file, by its path in the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct File {
    pub(super) data: Vec<u8>,
    pub(super) mode: u32,
    pub(super) user: Option<u32>,
}

pub(super) type Payload = BTreeMap<String, File>;

/// What a pod's volumes are made of, as far as it was found.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) configs: BTreeMap<String, ConfigMap>,
    pub(super) secrets: BTreeMap<String, Secret>,
    /// By audience and lifetime.
    pub(super) tokens: BTreeMap<(String, i64), Result<String, String>>,
}

/// What is named in volumes.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) configs: BTreeSet<String>,
    pub(super) secrets: BTreeSet<String>,
    /// Audience and lifetime.
    pub(super) tokens: BTreeSet<(String, i64)>,
}

/// The audience and lifetime (seconds) of a token that does not say them.
pub(super) const TOKEN_LIFE: i64 = 3600;

impl Named {
    pub(super) fn add(&mut self, volume: &Volume) {
        self.configs.extend(volume.config_map.as_ref().map(|it| it.name.clone()));
        self.secrets.extend(volume.secret.as_ref().and_then(|it| it.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|it| it.sources.iter().flatten()) {
            self.configs.extend(source.config_map.as_ref().map(|it| it.name.clone()));
            self.secrets.extend(source.secret.as_ref().map(|it| it.name.clone()));
            self.tokens.extend(
                source
                    .service_account_token
                    .as_ref()
                    .map(|it| (it.audience.clone().unwrap_or_default(), it.expiration_seconds.unwrap_or(TOKEN_LIFE))),
            );
        }
    }
}

/// The files of a volume; `None` when it is not made of objects.
pub(super) fn of(
    volume: &Volume,
    pod: &Pod,
    sources: &Sources,
    node: &NodeFacts,
    owner: &Owner,
) -> Option<Result<Payload, String>> {
    let payload = if let Some(it) = &volume.config_map {
        let mode = mode(it.default_mode);
        config_map(sources, &it.name, it.items.as_deref(), mode, it.optional == Some(true))
    } else if let Some(it) = &volume.secret {
        let name = it.secret_name.as_deref().unwrap_or_default();
        secret(sources, name, it.items.as_deref(), mode(it.default_mode), it.optional == Some(true))
    } else if let Some(it) = &volume.downward_api {
        downward(it.items.as_deref().unwrap_or_default(), pod, node, mode(it.default_mode))
    } else if let Some(it) = &volume.projected {
        projected(it, pod, sources, node, owner)
    } else {
        return None;
    };
    Some(payload.and_then(checked))
}

/// Who shall be able to read what is for nobody else.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Owner {
    /// All containers run as this user.
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|it| u32::try_from(it).ok()).unwrap_or(0o644) & 0o7777
}

/// The object; `None` when it is not there and need not be.
fn there<'a, K>(
    all: &'a BTreeMap<String, K>,
    kind: ObjectKind,
    name: &str,
    optional: bool,
) -> Result<Option<&'a K>, String> {
    match all.get(name) {
        None if !optional => Err(not_found(kind, name)),
        found => Ok(found),
    }
}

fn config_map(
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, String> {
    let found = there(&sources.configs, ObjectKind::ConfigMap, name, optional)?;
    let texts = found.into_iter().flat_map(|it| it.data.iter().flatten()).map(|(key, it)| (key, it.as_bytes()));
    let bytes =
        found.into_iter().flat_map(|it| it.binary_data.iter().flatten()).map(|(key, it)| (key, it.0.as_slice()));
    let all = texts.chain(bytes).map(|(key, it)| (key.as_str(), it)).collect();
    chosen(&all, items, mode, optional, |key| format!("configmap references non-existent config key: {key}"))
}

fn secret(
    sources: &Sources,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
) -> Result<Payload, String> {
    let found = there(&sources.secrets, ObjectKind::Secret, name, optional)?;
    let all = found.into_iter().flat_map(|it| it.data.iter().flatten());
    let all = all.map(|(key, it)| (key.as_str(), it.0.as_slice())).collect();
    chosen(&all, items, mode, optional, |key| format!("references non-existent secret key: {key}"))
}

fn chosen(
    all: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: bool,
    missing: impl Fn(&str) -> String,
) -> Result<Payload, String> {
    let file = |data: &[u8], mode| File { data: data.to_vec(), mode, user: None };
    let Some(items) = items.filter(|it| !it.is_empty()) else {
        return Ok(all.iter().map(|(key, data)| ((*key).to_owned(), file(data, mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match all.get(item.key.as_str()) {
            Some(data) => {
                let mode = item.mode.map_or(mode, |it| self::mode(Some(it)));
                payload.insert(item.path.clone(), file(data, mode));
            }
            None if optional => {}
            None => return Err(missing(&item.key)),
        }
    }
    Ok(payload)
}

fn downward(items: &[DownwardAPIVolumeFile], pod: &Pod, node: &NodeFacts, mode: u32) -> Result<Payload, String> {
    let mut payload = Payload::new();
    let mut errors = Vec::new();
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(it), _) => field(pod, &it.field_path),
            (None, Some(it)) => resources::field(it, pod, None, node),
            (None, None) => Ok(String::new()),
        };
        let mode = item.mode.map_or(mode, |it| self::mode(Some(it)));
        match value {
            Ok(value) => drop(payload.insert(item.path.clone(), File { data: value.into_bytes(), mode, user: None })),
            Err(error) => errors.push(error),
        }
    }
    aggregate(errors).map_or(Ok(payload), Err)
}

fn projected(
    it: &ProjectedVolumeSource,
    pod: &Pod,
    sources: &Sources,
    node: &NodeFacts,
    owner: &Owner,
) -> Result<Payload, String> {
    let default = mode(it.default_mode);
    let mut payload = Payload::new();
    let mut errors = Vec::new();
    for source in it.sources.iter().flatten() {
        let part = if let Some(it) = &source.secret {
            secret(sources, &it.name, it.items.as_deref(), default, it.optional == Some(true))
        } else if let Some(it) = &source.config_map {
            config_map(sources, &it.name, it.items.as_deref(), default, it.optional == Some(true))
        } else if let Some(it) = &source.downward_api {
            downward(it.items.as_deref().unwrap_or_default(), pod, node, default)
        } else if let Some(it) = &source.service_account_token {
            let key = (it.audience.clone().unwrap_or_default(), it.expiration_seconds.unwrap_or(TOKEN_LIFE));
            // With a group, the volume's owner makes 0640 of it.
            let mode = if owner.user.is_some() || owner.group.is_some() { 0o600 } else { default };
            match sources.tokens.get(&key) {
                Some(Ok(token)) => {
                    let file = File { data: token.clone().into_bytes(), mode, user: owner.user };
                    Ok(Payload::from([(it.path.clone(), file)]))
                }
                Some(Err(error)) => Err(error.clone()),
                None => Err("failed to fetch token".to_owned()),
            }
        } else if source.cluster_trust_bundle.is_some() {
            Err("this node gives no ClusterTrustBundles".to_owned())
        } else {
            Err("this node knows no such source of a projected volume".to_owned())
        };
        match part {
            Ok(part) => payload.extend(part),
            Err(error) => errors.push(error),
        }
    }
    aggregate(errors).map_or(Ok(payload), Err)
}

/// Several errors as Kubernetes prints them: each once.
pub(super) fn aggregate(errors: Vec<String>) -> Option<String> {
    let mut seen = BTreeSet::new();
    let errors: Vec<_> = errors.into_iter().filter(|it| seen.insert(it.clone())).collect();
    match errors.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        _ => Some(format!("[{}]", errors.join(", "))),
    }
}

/// With clean paths that stay in the volume, and bounded.
fn checked(payload: Payload) -> Result<Payload, String> {
    let size: usize = payload.values().map(|it| it.data.len()).sum();
    if size > MOST {
        return Err(format!("the volume would hold {size} bytes, which is more than {MOST}"));
    }
    let clean = |(path, file): (String, File)| {
        if path.is_empty() {
            return Err("invalid path: must not be empty: \"\"".to_owned());
        }
        if path.starts_with('/') {
            return Err(format!("invalid path: must be relative path: {path}"));
        }
        if path.len() > LONGEST_PATH {
            return Err(format!("invalid path: must be less than or equal to {LONGEST_PATH} characters"));
        }
        if path.split('/').any(|it| it == "..") {
            return Err(format!("invalid path: must not contain '..': {path}"));
        }
        if path.split('/').any(|it| it.len() > LONGEST_NAME) {
            return Err(format!("invalid path: filenames must be less than or equal to {LONGEST_NAME} characters"));
        }
        if path.starts_with("..") {
            return Err(format!("invalid path: must not start with '..': {path}"));
        }
        if path.contains('\0') {
            return Err(format!("invalid path: {path:?}"));
        }
        let parts: Vec<_> = path.split('/').filter(|it| !it.is_empty() && *it != ".").collect();
        if parts.is_empty() {
            return Err(format!("invalid path: must name a file: {path}"));
        }
        Ok((parts.join("/"), file))
    };
    payload.into_iter().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn sources() -> Sources {
        let config = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "/w=="}});
        Sources {
            configs: [("cm".to_owned(), serde_json::from_value(config).unwrap())].into(),
            secrets: [("s".to_owned(), serde_json::from_value(json!({"data": {"k": "aGk="}})).unwrap())].into(),
            tokens: [((String::new(), 3607), Ok("token".to_owned()))].into(),
        }
    }

    type Written = (String, String, u32, Option<u32>);

    fn files(volume: Value, owner: Owner) -> Result<Vec<Written>, String> {
        let mut volume = volume;
        volume["name"] = json!("v");
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "labels": {"l": "x"}}})).unwrap();
        let all = of(&volume, &pod, &sources(), &NodeFacts::default(), &owner).unwrap()?;
        let show =
            |(path, it): (String, File)| (path, String::from_utf8_lossy(&it.data).into_owned(), it.mode, it.user);
        Ok(all.into_iter().map(show).collect())
    }

    #[test]
    fn files_are_the_keys_or_the_chosen_ones_at_their_paths() {
        let file = |path: &str, data: &str, mode| (path.to_owned(), data.to_owned(), mode, None);
        let table = [
            (
                json!({"configMap": {"name": "cm"}}),
                vec![file("a", "1", 0o644), file("b", "2", 0o644), file("bin", "\u{fffd}", 0o644)],
            ),
            (
                json!({"configMap": {"name": "cm", "defaultMode": 0o400, "items": [
                    {"key": "a", "path": "x/./y//z"}, {"key": "b", "path": "q", "mode": 0o777},
                ]}}),
                vec![file("q", "2", 0o777), file("x/y/z", "1", 0o400)],
            ),
            (json!({"configMap": {"name": "no", "optional": true}}), vec![]),
            (json!({"secret": {"secretName": "s", "optional": true, "items": [{"key": "no", "path": "x"}]}}), vec![]),
            (
                json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels['l']"}}]}}),
                vec![file("l", "x", 0o644)],
            ),
        ];
        for (volume, is) in table {
            assert_eq!(files(volume, Owner::default()), Ok(is));
        }
    }

    #[test]
    fn a_projection_is_all_its_sources_and_a_token_is_for_who_runs() {
        let volume = json!({"projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "cm", "items": [{"key": "a", "path": "ca.crt"}]}},
            {"secret": {"name": "s"}},
        ]}});
        let all = files(volume.clone(), Owner::default()).unwrap();
        let names: Vec<_> = all.iter().map(|it| (it.0.as_str(), it.2)).collect();
        assert_eq!(names, [("ca.crt", 0o644), ("k", 0o644), ("token", 0o644)]);
        let all = files(volume, Owner { user: Some(5), group: None }).unwrap();
        assert_eq!((all[2].2, all[2].3), (0o600, Some(5)));
    }

    #[test]
    fn what_is_missing_or_climbs_is_refused_in_a_kubelets_words() {
        let at = |path: &str| json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": path}]}});
        let table = [
            (json!({"secret": {"secretName": "nope"}}), "secret \"nope\" not found"),
            (json!({"configMap": {"name": "nope"}}), "configmap \"nope\" not found"),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "nn", "path": "nn"}]}}),
                "configmap references non-existent config key: nn",
            ),
            (
                json!({"secret": {"secretName": "s", "items": [{"key": "nn", "path": "nn"}]}}),
                "references non-existent secret key: nn",
            ),
            (
                json!({"projected": {"sources": [{"secret": {"name": "no1"}}, {"configMap": {"name": "no2"}}]}}),
                "[secret \"no1\" not found, configmap \"no2\" not found]",
            ),
            (at("../x"), "invalid path: must not contain '..': ../x"),
            (at("a/../x"), "invalid path: must not contain '..': a/../x"),
            (at("/x"), "invalid path: must be relative path: /x"),
            (at("..data"), "invalid path: must not start with '..': ..data"),
            (at("."), "invalid path: must name a file: ."),
        ];
        for (volume, is) in table {
            assert_eq!(files(volume, Owner::default()).unwrap_err(), is);
        }
        let long = "x".repeat(256);
        assert!(files(at(&long), Owner::default()).unwrap_err().contains("255 characters"));
    }
}
