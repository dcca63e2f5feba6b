//! What a sandbox is asked to be, and what of that this engine has. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wire::node::Limits;

use crate::Error;

/// What a session asks of its sandbox; what is not given is the node's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// A name of the `host` image (see [`crate::Sandboxes::claim`]).
    pub image: Option<String>,
    /// The handler of a runtime class: one of [`HANDLERS`].
    pub runtime_class: Option<String>,
    /// Quantities as Kubernetes writes them: `500m`, `256Mi`.
    pub cpu: Option<String>,
    pub memory: Option<String>,
    /// Of every command.
    pub env: BTreeMap<String, String>,
}

/// A [`Want`] that can be had.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub limits: Limits,
    pub env: BTreeMap<String, String>,
}

/// Images whose programs the host's own `/usr` has as well, and those that Sympozium's manifests name.
const HOST: &[&str] = &[
    "host",
    "busybox",
    "ubuntu",
    "debian",
    "python",
    "node",
    "nginx",
    "ghcr.io/sympozium-ai/sympozium/sandbox",
    "ghcr.io/alexsjones/sympozium/sandbox",
];
/// The handlers of runtime classes that there are: the native engine's, under its own name and the common one.
pub const HANDLERS: &[&str] = &["native", "runc"];
/// Less memory than this starts no shell.
const MEMORY: u64 = 4 << 20;

impl Shape {
    pub(crate) fn of(want: &Want) -> Result<Self, Error> {
        if let Some(class) = want.runtime_class.as_deref().filter(|class| !HANDLERS.contains(class)) {
            return Err(Error::Unfit(format!(
                "this machine has no handler {class:?} for runtime classes; it has {}",
                HANDLERS.join(", ")
            )));
        }
        if let Some(name) = &want.image {
            image(name).map_err(Error::Unfit)?;
        }
        let amount = |what: &str, text: &Option<String>| {
            let amount = text.as_deref().map(limit).transpose();
            amount.map_err(|why| Error::Unfit(format!("{what} {why}")))
        };
        let cpu = amount("cpu", &want.cpu)?.map(|cpus| whole(cpus * 1000.0).clamp(1, u64::from(u32::MAX)) as u32);
        let memory = amount("memory", &want.memory)?.map(|bytes| whole(bytes).max(MEMORY));
        Ok(Self { limits: Limits { cpu, memory, ..Limits::default() }, env: want.env.clone() })
    }
}

/// Whether a sandbox can have this image.
///
/// # Errors
/// A sentence for people, with what to name instead.
pub fn image(name: &str) -> Result<(), String> {
    if is_host(name) {
        return Ok(());
    }
    Err(format!("the image {name:?} is not on this machine; name `host`, this machine's own programs, or none"))
}

/// A sandbox's limit of CPUs or of bytes, as a Kubernetes quantity that is more than nothing.
///
/// # Errors
/// What is wrong with it, for people.
pub fn limit(text: &str) -> Result<f64, String> {
    let amount = quantity(text).filter(|amount| *amount > 0.0);
    amount.ok_or_else(|| format!("{text:?} is not an amount, such as 500m or 256Mi"))
}

/// Whether a name, whatever its tag, means the machine's own programs.
fn is_host(image: &str) -> bool {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    let name =
        ["docker.io/library/", "library/", "docker.io/"].iter().find_map(|at| name.strip_prefix(at)).unwrap_or(name);
    HOST.contains(&name)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast from float to integer saturates")]
fn whole(amount: f64) -> u64 {
    amount.ceil() as u64
}

/// A Kubernetes quantity as a number.
fn quantity(text: &str) -> Option<f64> {
    let end = text.find(|it: char| !(it.is_ascii_digit() || matches!(it, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let scale = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        _ => return text.parse().ok().filter(|amount: &f64| amount.is_finite()),
    };
    number.parse::<f64>().ok().map(|number| number * scale).filter(|amount| amount.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(image: &str, class: &str, cpu: &str, memory: &str) -> Want {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Want {
            image: some(image),
            runtime_class: some(class),
            cpu: some(cpu),
            memory: some(memory),
            env: BTreeMap::new(),
        }
    }

    #[test]
    fn what_this_machine_has_not_is_said_and_never_replaced() {
        let had = [
            ("", "", "", "", (None, None)),
            ("host", "native", "500m", "256Mi", (Some(500), Some(256 << 20))),
            ("python:3.12", "", "2", "1G", (Some(2000), Some(1_000_000_000))),
            ("docker.io/library/ubuntu@sha256:abc", "", "0.0001", "1", (Some(1), Some(MEMORY))),
            ("ghcr.io/sympozium-ai/sympozium/sandbox:v0.5.8", "", "1e3", "", (Some(1_000_000), None)),
        ];
        for (image, class, cpu, memory, (thousandths, bytes)) in had {
            let shape = Shape::of(&want(image, class, cpu, memory)).unwrap();
            assert_eq!((shape.limits.cpu, shape.limits.memory), (thousandths, bytes), "{image} {cpu} {memory}");
        }
        let not = [
            ("postgres:17", "", "", "", "postgres:17"),
            ("localhost:5000/host", "", "", "", "localhost:5000/host"),
            ("", "gvisor", "", "", "gvisor"),
            ("", "", "much", "", "cpu \"much\""),
            ("", "", "-1", "", "cpu \"-1\""),
            ("", "", "", "0", "memory \"0\""),
            ("", "", "", "inf", "memory \"inf\""),
        ];
        for (image, class, cpu, memory, said) in not {
            let error = Shape::of(&want(image, class, cpu, memory)).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
