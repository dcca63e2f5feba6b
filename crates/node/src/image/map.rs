//! Which names of images mean something else here.

use super::name::Name;

/// The image that is the machine's own files.
pub(crate) const HOST: &str = "host";
/// What the machine's own files stand for unless something else is said: repositories, and what their images run by
/// themselves. The last are Sympozium's and
/// OpenSandbox's own.
const DEFAULTS: &[(&str, &[&str])] = &[
    ("docker.io/library/ubuntu", &["/bin/bash"]),
    ("docker.io/library/debian", &["bash"]),
    ("docker.io/library/busybox", &["sh"]),
    ("docker.io/library/python", &["python3"]),
    ("docker.io/library/node", &["node"]),
    ("docker.io/library/nginx", &["nginx", "-g", "daemon off;"]),
    ("ghcr.io/sympozium-ai/sympozium/sandbox", &["sh"]),
    ("ghcr.io/alexsjones/sympozium/sandbox", &["sh"]),
    ("docker.io/opensandbox/code-interpreter", &["sh"]),
    ("docker.io/opensandbox/execd", &["sh"]),
    ("docker.io/opensandbox/task-executor", &["sh"]),
    ("sandbox-registry.cn-zhangjiakou.cr.aliyuncs.com/opensandbox/code-interpreter", &["sh"]),
    ("sandbox-registry.cn-zhangjiakou.cr.aliyuncs.com/opensandbox/execd", &["sh"]),
    ("sandbox-registry.cn-zhangjiakou.cr.aliyuncs.com/opensandbox/task-executor", &["sh"]),
];

/// Names of images that mean something else on this node. The default has a few of which the machine's own files are
/// good enough a likeness.
#[derive(Clone, Debug, Default)]
pub struct ImageMap(Vec<(Name, Meaning)>);

/// What a name means.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Meaning {
    /// The machine's own files, and what is run there when nothing is said.
    Host(Vec<String>),
    Image(Name),
}

impl ImageMap {
    /// Adds an entry written as `NAME=IMAGE`: IMAGE is `host`, or an image of the store or a registry. A NAME without tag
    /// means every tag; one with a digest that digest alone. The last entry for a name counts, before the default ones.
    ///
    /// # Errors
    /// A sentence when it is not written so.
    pub fn add(&mut self, entry: &str) -> Result<(), String> {
        let (name, image) = entry.split_once('=').ok_or("write it as NAME=IMAGE, as in alpine=host")?;
        let parse = |text: &str| Name::parse(text).map_err(|why| format!("{text:?} is no name of an image: {why}"));
        if name == HOST {
            return Err("host always means this machine's own files".to_owned());
        }
        let meaning = if image == HOST { Meaning::Host(vec!["sh".to_owned()]) } else { Meaning::Image(parse(image)?) };
        self.0.push((parse(name)?, meaning));
        Ok(())
    }

    /// What its user has said about a name.
    pub(crate) fn said(&self, name: &Name) -> Option<&Meaning> {
        let full = name.full();
        let exact = |it: &Name| (it.tag.is_some() || it.digest.is_some()) && it.full() == full;
        let any_tag = |it: &Name| it.tag.is_none() && it.digest.is_none() && full.digest.is_none();
        let same = |it: &Name| it.domain == full.domain && it.path == full.path;
        let find = |fits: &dyn Fn(&Name) -> bool| self.0.iter().rev().find(|(it, _)| same(it) && fits(it));
        find(&exact).or_else(|| find(&any_tag)).map(|(_, meaning)| meaning)
    }

    /// What a name means when nobody has said anything and no such image is in the store.
    pub(crate) fn default_for(name: &Name) -> Option<Meaning> {
        // A digest asks for these very bytes.
        let repository = if name.digest.is_none() { name.repository() } else { return None };
        let (_, cmd) = DEFAULTS.iter().find(|(it, _)| *it == repository)?;
        Some(Meaning::Host(cmd.iter().map(|it| (*it).to_owned()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    #[test]
    fn a_few_repositories_mean_the_machines_own_files_whatever_their_tag() {
        for it in ["busybox", "ubuntu", "ubuntu:24.04", "python:3.12", "nginx:latest", "opensandbox/execd:v1.0.5"] {
            assert!(matches!(ImageMap::default_for(&name(it)), Some(Meaning::Host(_))), "{it}");
        }
        let pinned = format!("busybox@sha256:{}", "0".repeat(64));
        for it in ["alpine", "me/busybox", "localhost:5000/library/busybox", "busyboxes", &pinned] {
            assert_eq!(ImageMap::default_for(&name(it)), None, "{it}");
        }
    }

    #[test]
    fn what_is_said_of_a_tag_counts_before_what_is_said_of_all() {
        let mut map = ImageMap::default();
        for it in ["alpine=host", "alpine:3=localhost:5000/alpine", "x=y:1", "x=y:2"] {
            map.add(it).unwrap();
        }
        assert_eq!(map.said(&name("alpine")), Some(&Meaning::Host(vec!["sh".into()])));
        assert_eq!(map.said(&name("alpine:3")), Some(&Meaning::Image(name("localhost:5000/alpine"))));
        assert_eq!(map.said(&name("x:9")), Some(&Meaning::Image(name("y:2"))));
        assert_eq!(map.said(&name(&format!("alpine@sha256:{}", "0".repeat(64)))), None);
        assert_eq!(map.said(&name("busybox")), None);
        for bad in ["alpine", "=host", "host=alpine", "A=host", "a=B"] {
            assert!(map.add(bad).is_err(), "{bad}");
        }
    }
}
