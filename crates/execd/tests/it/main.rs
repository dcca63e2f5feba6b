//! execd as its clients meet it: the built program, driven over its socket.

mod commands;
mod files;
mod hostile;
mod house;
mod life;
