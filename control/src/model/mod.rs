//! Networks, ports and endpoints that are declared while the daemon runs.

pub mod types;
