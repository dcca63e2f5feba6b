//! A model that answers by a script: for demonstrations, examples and tests, without network, key or luck.
//!
//! [`Script::parse`] reads YAML: a list of rules, or a mapping with `rules` beside other settings. The first rule that
//! matches a question answers it; a question that none matches is refused with status 400.
//!
//! ```yaml
//! models: [tiny]                  # known models besides those that rules name; with none at all: `scripted`
//! key: sk-example                 # then requests without this key are refused with 401
//! rules:
//! - match:                        # all of it optional, and all of it must hold
//!     model: tiny
//!     user: {contains: weather}   # the last message of the user; or {equals: ...}
//!     results: 0                  # tool results since that message
//!   times: 1                      # the rule serves so many questions, then it is passed over
//!   delay: 2s                     # before the answer begins
//!   calls:                        # calls, an answer, or both
//!   - {name: execute_command, arguments: {command: date}}
//! - answer: It rains.
//!   chunks: {words: 1, every: 20ms}   # the pace of streaming; or {bytes: 5, ...}; by default word by word at once
//!   usage: {input: 100, output: 20}   # by default estimated from the sizes
//! - status: 429                   # or: fail with this HTTP status
//!   message: Slow down.
//!   retryAfter: 1s
//! ```
//!
//! [`Server`] serves it as OpenAI's chat completions, and refuses what the real one refuses, in its words.

mod check;
mod script;
mod server;

pub use script::{Script, ScriptError};
pub use server::Server;
