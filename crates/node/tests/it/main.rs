//! The node through its door: real sandboxes on this machine, as root or as an ordinary user.

mod cell;
mod crash;
mod escape;
mod life;
