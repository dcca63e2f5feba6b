//! What every room needs and none owns: supervised tasks, time, retries, ids, secrets, what addresses lead to, and how
//! errors are told.
//!
//! Nothing here knows what Insula does. HTTP (`http`) is a feature, off by default.

mod address;
mod clock;
mod error;
mod retry;
mod tasks;

pub use address::{is_global_unicast, is_public};
pub use clock::Clock;
pub use error::{Class, chain};
pub use retry::Backoff;
pub use secrecy::{ExposeSecret, SecretString};
pub use tasks::{Ended, Shutdown, Tasks};

#[cfg(feature = "http")]
pub mod http;

/// A fresh id that sorts by the time it was made (UUIDv7, 32 hex digits).
pub fn id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// A fresh random token of 256 bits in hex: for keys that only we hand out.
pub fn token() -> SecretString {
    let bytes: [u8; 32] = rand::random();
    SecretString::from(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
}
