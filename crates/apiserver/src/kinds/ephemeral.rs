//! `pods/ephemeralcontainers`: containers that are added to a pod that runs, and never taken away.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::validate::{list, name_is_label, text};
use crate::object::field::quote;
use crate::object::{Errors, FieldError};

const PATH: &str = "spec.ephemeralContainers";
/// What only a container has that the pod was planned with.
const PLANNED: [&str; 7] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy", "restartPolicy"];

pub(super) fn update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::default();
    let all = list(new, "/spec/ephemeralContainers");
    let of = |field: &str| list(new, field).iter().map(|it| text(it, "/name"));
    let planned: HashSet<&str> = of("/spec/containers").chain(of("/spec/initContainers")).collect();
    let volumes: HashSet<&str> = of("/spec/volumes").collect();
    let mut names = planned.clone();
    for (at, container) in all.iter().enumerate() {
        let place = format!("{PATH}[{at}]");
        let name = text(container, "/name");
        name_is_label(name, &format!("{place}.name"), &mut errors);
        if text(container, "/image").is_empty() {
            errors.push(FieldError::required(format!("{place}.image"), ""));
        }
        if !names.insert(name) && !name.is_empty() {
            errors.push(FieldError::duplicate(format!("{place}.name"), &name.into()));
        }
        let target = text(container, "/targetContainerName");
        if !target.is_empty() && !planned.contains(&target) {
            errors.push(FieldError::not_found(format!("{place}.targetContainerName"), &target.into()));
        }
        for field in PLANNED {
            if container.get(field).is_some_and(|it| !it.is_null()) {
                let why = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(format!("{place}.{field}"), why));
            }
        }
        for (at, mount) in list(container, "/volumeMounts").iter().enumerate() {
            let name = text(mount, "/name");
            if !volumes.contains(&name) {
                errors.push(FieldError::not_found(format!("{place}.volumeMounts[{at}].name"), &name.into()));
            }
            if !text(mount, "/subPath").is_empty() {
                let why = "cannot be set for an Ephemeral Container";
                errors.push(FieldError::forbidden(format!("{place}.volumeMounts[{at}].subPath"), why));
            }
        }
    }
    let now: HashMap<&str, &Value> = all.iter().rev().map(|it| (text(it, "/name"), it)).collect();
    for before in list(old, "/spec/ephemeralContainers") {
        let name = text(before, "/name");
        match now.get(name) {
            None => {
                let why = format!("existing ephemeral containers {} may not be removed\n", quote(name));
                errors.push(FieldError::forbidden(PATH, &why));
            }
            Some(now) if *now != before => {
                let why = format!("existing ephemeral containers {} may not be changed\n", quote(name));
                errors.push(FieldError::forbidden(PATH, &why));
            }
            Some(_) => {}
        }
    }
    errors
}
