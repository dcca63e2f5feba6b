//! What goes over wires between our own programs, each with its generation number. No I/O.

pub mod execd;
pub mod node;
pub mod query;
pub mod websocket;
