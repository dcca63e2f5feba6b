//! Condition types. All are positive: `True` is good, and the reason says what is missing otherwise.

/// The object can be worked on: everything it names is there and it is well formed.
pub const ACCEPTED: &str = "Accepted";
/// An instance serves: nothing it needs is missing.
pub const READY: &str = "Ready";
/// A run was handed to a runner.
pub const STARTED: &str = "Started";
/// A run has ended and succeeded (`False` with a reason while it has not, or when it failed).
pub const COMPLETE: &str = "Complete";
