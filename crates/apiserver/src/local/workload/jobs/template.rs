//! The pods of a Job.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::plan::annotated;
use super::policy::Verdict;
use super::{IGNORED_FAILURES, INDEX, INDEX_FAILURES, TRACKED};
use crate::local::reader::Kind;
use crate::local::workload::from_template;

const VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The longest beginning of a generated name.
const PREFIX: usize = 58;

/// The pod of an index, or any; `after` is the failed one of its index that it takes the place of, and what is said of it.
pub(super) fn pod(job: &Job, spec: &JobSpec, index: Option<i32>, after: Option<(&Pod, Verdict)>) -> Pod {
    let mut pod = from_template(&spec.template, job);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|it| it == TRACKED) {
        finalizers.push(TRACKED.to_owned());
    }
    let Some(index) = index else { return pod };
    let suffix = format!("-{index}-");
    let room = PREFIX.saturating_sub(suffix.len());
    let name = job.name().get(..room.min(job.name().len())).unwrap_or_default();
    pod.metadata.generate_name = Some(format!("{name}{suffix}"));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        let (mut failures, mut ignored) = (0, 0);
        if let Some((before, verdict)) = after {
            (failures, ignored) = (annotated(before, INDEX_FAILURES), annotated(before, IGNORED_FAILURES));
            let count = if verdict == Verdict::Ignore { &mut ignored } else { &mut failures };
            *count = count.saturating_add(1);
        }
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.to_owned(), ignored.to_string());
        }
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{}-{index}", job.name()));
        let init = spec.init_containers.iter_mut().flatten();
        init.chain(&mut spec.containers).for_each(tell_index);
    }
    pod
}

/// The index in the container's environment, unless it sets the variable itself.
fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|it| it.name == VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    env.push(EnvVar { name: VARIABLE.to_owned(), value: None, value_from: Some(source) });
}
