//! Model providers behind one streaming door, and the scripted model that stands in for one.
//!
//! [`Client::chat`] asks once: no retries, no memory. What may be tried again, and when, is in [`Error::class`].
//! The [`Message`]s are ours and go into a run's log as they are; what providers' JSON looks like is known to one
//! module (`openai`) and to nobody outside. [`scripted`] is a model that answers by a script, as a server.

mod client;
mod error;
mod lenient;
mod message;
mod openai;
mod provider;
mod question;
pub mod scripted;
mod sse;

pub use client::{Client, Limits};
pub use error::Error;
pub use lenient::from_json;
pub use message::{Call, Completion, Effort, Finish, Message, Request, Tool, Usage, estimate_tokens};
pub use provider::base_url;
