//! `$(NAME)` in commands, arguments and values, and the fields of a pod by their paths.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

/// The longest text that a process can be given as one argument or variable, less the byte that ends it
/// (Linux: `MAX_ARG_STRLEN`). References could otherwise make gigabytes of a few lines.
pub(crate) const LONGEST: usize = 128 * 1024 - 1;

/// `text` with its references replaced, by Kubernetes' rules: `$$` is `$`, what refers to nothing stays, and so does what
/// begins like a reference and is none. `None` when it would be longer than [`LONGEST`].
pub(crate) fn expand<'a>(text: &str, value: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    // Whether a reference may still end: looked for in vain once, not again.
    let mut ends = true;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let reference = after.strip_prefix('(').filter(|_| ends);
        if let Some((name, after)) = reference.and_then(|it| it.split_once(')')) {
            match value(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            ends &= reference.is_none();
            out.push('$');
            rest = after;
        }
        if out.len() > LONGEST {
            return None;
        }
    }
    out.push_str(rest);
    (out.len() <= LONGEST).then_some(out)
}

/// What the downward API gives for a path of the pod's metadata.
///
/// # Errors
/// In the words of a kubelet.
pub(crate) fn field(pod: &Pod, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    if let Some((of, key)) = path.strip_suffix("']").and_then(|it| it.split_once("['")).filter(|it| !it.0.is_empty()) {
        let map = match of {
            "metadata.annotations" => &meta.annotations,
            "metadata.labels" => &meta.labels,
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.as_ref().and_then(|it| it.get(key)).cloned().unwrap_or_default());
    }
    match path {
        "metadata.annotations" => Ok(lines(meta.annotations.as_ref())),
        "metadata.labels" => Ok(lines(meta.labels.as_ref())),
        "metadata.name" => Ok(meta.name.clone().unwrap_or_default()),
        "metadata.namespace" => Ok(meta.namespace.clone().unwrap_or_default()),
        "metadata.uid" => Ok(meta.uid.clone().unwrap_or_default()),
        _ => Err(format!("unsupported fieldPath: {path}")),
    }
}

/// `key="value"` a line, quoted as Go quotes.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// As Go's `strconv.Quote`.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for it in text.chars() {
        match it {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            ' '..='~' => out.push(it),
            it if it.is_ascii() => out.push_str(&format!("\\x{:02x}", u32::from(it))),
            it if it.is_control() || (it.is_whitespace() && it != ' ') => {
                out.push_str(&format!("\\u{:04x}", u32::from(it)));
            }
            it => out.push(it),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_replaced_by_upstreams_rules() {
        let value = |name: &str| match name {
            "A" => Some("a"),
            "B" => Some("$(A)"),
            "" => Some("empty"),
            _ => None,
        };
        let table = [
            ("", ""),
            ("plain", "plain"),
            ("$(A)-$(A)", "a-a"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$(C)", "$(C)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("$$", "$"),
            ("x$", "x$"),
            ("$()", "empty"),
            ("$($(A))", "$($(A))"),
            ("ü$(A)ü", "üaü"),
            ("$ü", "$ü"),
        ];
        for (text, is) in table {
            assert_eq!(expand(text, value).as_deref(), Some(is), "{text}");
        }
    }

    #[test]
    fn what_no_process_could_be_given_is_not_made() {
        let long = "x".repeat(LONGEST);
        let value = |_: &str| Some(long.as_str());
        assert_eq!(expand("$(A)", value).map(|it| it.len()), Some(LONGEST));
        assert_eq!(expand("$(A)$(A)", value), None);
        assert_eq!(expand("$(A)!", value), None);
    }

    #[test]
    fn fields_are_found_by_their_paths() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {
            "name": "p", "namespace": "ns", "uid": "u",
            "labels": {"b": "2\n", "a": "\"1\""}, "annotations": {"x/y": "z"},
        }}))
        .unwrap();
        let table = [
            ("metadata.name", Ok("p")),
            ("metadata.namespace", Ok("ns")),
            ("metadata.uid", Ok("u")),
            ("metadata.labels", Ok("a=\"\\\"1\\\"\"\nb=\"2\\n\"")),
            ("metadata.labels['a']", Ok("\"1\"")),
            ("metadata.labels['none']", Ok("")),
            ("metadata.annotations['x/y']", Ok("z")),
            ("metadata.annotations", Ok("x/y=\"z\"")),
            ("metadata.name['a']", Err("fieldPath \"metadata.name['a']\" does not support subscript")),
            ("spec.hostname", Err("unsupported fieldPath: spec.hostname")),
        ];
        for (path, is) in table {
            assert_eq!(field(&pod, path).as_deref().map_err(String::as_str), is, "{path}");
        }
        assert_eq!(quote("\u{1}\u{7f}é\u{85}"), "\"\\x01\\x7fé\\u0085\"");
    }
}
