//! Named formats: Kubernetes' `format.go`.

use crate::object::meta::{self, NameRule};
use crate::object::schema::format;

/// A format by its name.
#[derive(Debug)]
pub(crate) struct Format {
    name: &'static str,
    /// What checking it costs, as the length of a regular expression.
    pub(super) regex_size: u64,
    check: fn(&str) -> Vec<String>,
}

const FORMATS: [Format; 13] = [
    Format { name: "dns1123Label", regex_size: 30, check: |it| NameRule::Label.check(it, false) },
    Format { name: "dns1123Subdomain", regex_size: 60, check: |it| NameRule::Subdomain.check(it, false) },
    Format { name: "dns1035Label", regex_size: 30, check: |it| NameRule::Label1035.check(it, false) },
    Format { name: "qualifiedName", regex_size: 60, check: meta::qualified_name },
    Format { name: "dns1123LabelPrefix", regex_size: 30, check: |it| NameRule::Label.check(it, true) },
    Format { name: "dns1123SubdomainPrefix", regex_size: 60, check: |it| NameRule::Subdomain.check(it, true) },
    Format { name: "dns1035LabelPrefix", regex_size: 30, check: |it| NameRule::Label1035.check(it, true) },
    Format { name: "labelValue", regex_size: 40, check: meta::label_value },
    Format { name: "uri", regex_size: 128, check: |it| known("uri", it, "invalid URI for request") },
    Format { name: "uuid", regex_size: 36, check: |it| known("uuid", it, "does not match the UUID format") },
    Format { name: "byte", regex_size: 84, check: |it| known("byte", it, "invalid base64") },
    Format { name: "date", regex_size: 128, check: |it| known("date", it, "invalid date") },
    Format { name: "datetime", regex_size: 128, check: |it| known("datetime", it, "invalid datetime") },
];

fn known(name: &str, text: &str, said: &str) -> Vec<String> {
    if format::matches(name, text) { Vec::new() } else { vec![said.to_owned()] }
}

pub(super) fn named(name: &str) -> Option<&'static Format> {
    static ALL: [Format; 13] = FORMATS;
    ALL.iter().find(|it| it.name == name)
}

/// What is wrong with a text.
pub(super) fn validate(format: &Format, text: &str) -> Vec<String> {
    (format.check)(text)
}
