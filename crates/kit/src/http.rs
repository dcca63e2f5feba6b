//! The HTTP client that rooms share: pooled connections, rustls, no redirects across hosts by surprise.

use std::time::Duration;

/// A client with our limits: connecting takes at most 10 s, and no total deadline (callers stream, and set their own).
///
/// # Errors
/// When the TLS provider is not installed or the machine's trust store cannot be read.
pub fn client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .user_agent(concat!("insula/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(10))
        .pool_idle_timeout(Duration::from_secs(60))
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .build()
}
