//! What the client crate promises without a daemon: rings in private memory, sleeping, waking, errors.

mod daemonless;
mod memory;
mod parking;
