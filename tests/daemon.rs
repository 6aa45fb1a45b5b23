//! The daemon as processes: started, killed, replaced, asked in wrong ways.

#[path = "daemon/support.rs"]
mod support;

#[path = "daemon/bad_input.rs"]
mod bad_input;
#[path = "daemon/brokered_support.rs"]
mod brokered_support;
#[path = "support/mounted.rs"]
mod mounted;

#[path = "daemon/bias.rs"]
mod bias;
#[path = "daemon/brokered_deaths.rs"]
mod brokered_deaths;
#[path = "daemon/brokered_disks.rs"]
mod brokered_disks;
#[path = "daemon/brokered_flow.rs"]
mod brokered_flow;
#[path = "daemon/brokered_hostile.rs"]
mod brokered_hostile;
#[path = "daemon/brokered_idle.rs"]
mod brokered_idle;
#[path = "daemon/brokered_named.rs"]
mod brokered_named;
#[path = "daemon/brokered_space.rs"]
mod brokered_space;
#[path = "daemon/brokered_transactions.rs"]
mod brokered_transactions;
#[path = "daemon/deaths.rs"]
mod deaths;
#[path = "daemon/groups.rs"]
mod groups;
#[path = "daemon/hostile.rs"]
mod hostile;
#[path = "daemon/lifecycle.rs"]
mod lifecycle;
#[path = "daemon/limits.rs"]
mod limits;
#[path = "daemon/queues.rs"]
mod queues;
#[path = "daemon/requests.rs"]
mod requests;
#[path = "daemon/rights.rs"]
mod rights;
#[path = "daemon/upgrade.rs"]
mod upgrade;

/// The other processes of these tests: this binary again, told by the environment what to be.
#[test]
fn child_process() {
    support::child::run();
}
