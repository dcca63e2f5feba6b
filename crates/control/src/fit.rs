//! What is wrong with a wish for a sandbox: a reason, and a sentence that begins with where it is written. Pure.

use std::fmt::Display;

use api::reasons;

pub(crate) type Wrong = (&'static str, String);

pub(crate) fn image(field: impl Display, name: &str) -> Option<Wrong> {
    sandbox::image(name).err().map(|why| (reasons::IMAGE_MISSING, format!("{field}: {why}")))
}

pub(crate) fn amount(field: impl Display, text: &str) -> Option<Wrong> {
    sandbox::limit(text).err().map(|why| (reasons::INVALID, format!("{field}: {why}")))
}
