//! From a request to an answer: URLs, options, content negotiation, and the one tower service over it all.

pub(crate) mod body;
pub(crate) mod json;
pub(crate) mod media;
pub(crate) mod options;
pub(crate) mod present;
mod pretty;
pub(crate) mod reply;
pub(crate) mod resource;
pub(crate) mod service;
mod url;
pub(crate) mod yaml;

pub(crate) use media::{Accept, Shape};
pub(crate) use options::{FieldValidation, Match};
pub(crate) use service::Service;
pub(crate) use url::{Query, Target, unescape, unescaped};
