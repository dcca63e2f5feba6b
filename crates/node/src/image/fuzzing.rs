//! Doors for the fuzz targets in `fuzz/`: what an image brings, and what must hold of it whatever that is. Each takes any
//! bytes and panics when something does not hold. In no build but a fuzzer's and the unit tests'.

#![allow(clippy::panic, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is what a fuzzer looks for")]

use std::io::{Read, copy, sink};

use super::credentials::Credential;
use super::manifest::{Document, ImageConfig, choose};
use super::name::Name;
use super::tar::Reader;
use super::unpack::clean;

/// A layer's archive, unpacked already.
pub fn layer(input: &[u8]) {
    let mut reader = Reader::new(input);
    let (mut entries, mut bytes) = (0, 0);
    while let Ok(Some(head)) = reader.next() {
        entries += 1;
        if let Ok(path) = clean(&head.path) {
            let parts = path.split(|it| *it == b'/');
            assert!(path.is_empty() || parts.into_iter().all(|it| !matches!(it, b"" | b"." | b"..")), "{path:?}");
        }
        // Every second one is passed over.
        if entries % 2 == 0 {
            match copy(&mut reader.by_ref(), &mut sink()) {
                Ok(read) => bytes += read,
                Err(_) => return,
            }
            assert_eq!(reader.left(), 0);
        }
    }
    assert!(entries * 512 + bytes <= input.len() as u64, "{entries} entries and {bytes} bytes of {}", input.len());
}

/// The documents of an image, its name, and what a registry's credentials are kept in.
pub fn image(input: &[u8]) {
    for kind in ["", "application/vnd.oci.image.index.v1+json"] {
        match Document::parse(input, kind) {
            Ok(Document::Index(all)) => drop(choose(&all)),
            Ok(Document::Manifest(it)) => drop(ImageConfig::parse(input, it.layers.len())),
            Err(_) => {}
        }
    }
    if let Ok(config) = ImageConfig::parse(input, 1) {
        assert_eq!(config.rootfs.diff_ids.len(), 1);
        config.chain();
    }
    let credentials = Credential::parse_config(input).into_iter().chain(Credential::parse_legacy(input)).flatten();
    let credentials: Vec<_> = credentials.collect();
    let Some(Ok(name)) = std::str::from_utf8(input).ok().map(Name::parse) else { return };
    let _ = credentials.iter().any(|it| it.fits(&name));
    assert_eq!(Name::parse(&name.to_string()).as_ref(), Ok(&name), "a name that was read can be read again");
    assert_eq!(Name::parse(&name.key()).expect("it names the same").key(), name.key());
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The seeds that `cargo fuzz` starts from, with one place changed.
        #[test]
        fn what_the_fuzz_targets_assert_holds_for_their_seeds(at: prop::sample::Index, byte: u8) {
            type Door = fn(&[u8]);
            let doors: [(&str, Door); 2] = [("image", image), ("layer", layer)];
            let fuzz = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
            for (name, door) in doors {
                let target = fs::read_to_string(format!("{fuzz}/targets/{name}.rs")).unwrap();
                let call = format!("node::fuzzing::{name}(");
                prop_assert!(target.contains(&call), "{} has a target", name);
                let mut seeds = 0;
                for seed in fs::read_dir(format!("{fuzz}/seeds/{name}")).unwrap() {
                    let mut seed = fs::read(seed.unwrap().path()).unwrap();
                    door(&seed);
                    let at = at.index(seed.len());
                    seed[at] = byte;
                    door(&seed);
                    seeds += 1;
                }
                prop_assert!(seeds > 0);
            }
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            layer(&bytes);
            image(&bytes);
        }
    }
}
