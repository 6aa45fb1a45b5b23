//! Test builds only: planted bugs. Each must be caught by a suite, or the suite proves nothing.
//!
//! With the feature `canary` the environment variable `RINGMAIN_CANARY` names the bug that is active in the process.
//! Without the feature [`planted`] is a constant `false` and the code behind it is gone.

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canary {
    /// The sleeper does not look again between its announcement and its sleep.
    NoRecheck,
    /// The waker clears the flag that only the sleeper may clear.
    WakerClearsFlag,
    /// A message is published before its bytes are copied.
    PublishBeforeCopy,
    /// A slot is released before its bytes are copied out.
    ReleaseBeforeCopy,
    /// Repair leaves the words behind the first as they are.
    ForgottenContinuation,
    /// Repair takes the slots of a handle whose process may still live.
    RepairWithoutProof,
    /// The head moves before the consumer has claimed the slot.
    HeadBeforeUse,
    /// A producer drops a message without counting it.
    DropWithoutCounting,
    /// A biased handle does not look again whether it still is, when it is inside.
    BiasLookedAtOnce,
    /// Nobody waits for a handle that has lost its bias in the middle of a claim.
    HoldoutIgnored,
}

impl Canary {
    /// All of them, with the names that the environment variable takes.
    pub const ALL: [(Canary, &'static str); 10] = [
        (Canary::NoRecheck, "no-recheck"),
        (Canary::WakerClearsFlag, "waker-clears-flag"),
        (Canary::PublishBeforeCopy, "publish-before-copy"),
        (Canary::ReleaseBeforeCopy, "release-before-copy"),
        (Canary::ForgottenContinuation, "forgotten-continuation"),
        (Canary::RepairWithoutProof, "repair-without-proof"),
        (Canary::HeadBeforeUse, "head-before-use"),
        (Canary::DropWithoutCounting, "drop-without-counting"),
        (Canary::BiasLookedAtOnce, "bias-looked-at-once"),
        (Canary::HoldoutIgnored, "holdout-ignored"),
    ];
}

/// Whether this bug is planted in this process.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub const fn planted(_canary: Canary) -> bool {
    false
}

/// Whether this bug is planted in this process.
#[cfg(feature = "canary")]
pub fn planted(canary: Canary) -> bool {
    use std::sync::OnceLock;
    static ACTIVE: OnceLock<Option<Canary>> = OnceLock::new();
    let active = ACTIVE.get_or_init(|| {
        let name = std::env::var("RINGMAIN_CANARY").ok()?;
        let found = Canary::ALL.iter().find(|(_, known)| *known == name);
        Some(found.unwrap_or_else(|| panic!("RINGMAIN_CANARY={name}: no such canary")).0)
    });
    *active == Some(canary)
}
