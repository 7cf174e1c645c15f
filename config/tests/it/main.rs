//! What the crate promises to who runs it, from outside.

mod alone;
mod classes;
mod endpoints;
mod files;
mod good;
mod hostile;
mod networks;
mod rules;
mod uplink;
