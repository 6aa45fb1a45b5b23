//! Planted bugs, in tests only: each must be caught, or the tests prove nothing.

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(super) enum Canary {
    /// A message is given out before it is durable.
    DispatchBeforeDurable,
    /// An acknowledgement covers the next message as well, also one that does not exist.
    AckAhead,
    /// The count of deliveries does not get into the journal.
    LoseCount,
    /// A leased message stays available.
    DeliverTwice,
    /// A checkpoint takes what is acknowledged for open.
    Resurrect,
    /// A lane is known by the place of its handle alone, so that positions of a lane that is gone count for the one that has its
    /// place now.
    LanesOfOthers,
    /// A deleted group comes back with a restart.
    KeepDeletedGroup,
    /// Leases outlive the reset of their group.
    ResetKeepsLeases,
    /// A start at a time is taken from the marks alone.
    StartAtMark,
    /// What a limit discards stays in the journal.
    ForgetTrim,
    /// What a limit discards may be overwritten before that is durable.
    GiveUpEarly,
    /// A limit discards one message too many.
    TrimAhead,
    /// A lane that waits for room is not looked at again.
    LeaveWaiting,
    /// A consumer does not hear of what was discarded.
    SkipInSilence,
    /// A stream keeps only what is not acknowledged.
    StreamForgets,
    /// Messages of a fenced producer are stored.
    ForgetFence,
    /// A checkpoint forgets the last own sequence of a named producer.
    LoseOwnSequence,
    /// The acknowledgements of a transaction do not get into the journal.
    HalfTransaction,
    /// A message is given out although its TTL is over.
    DeliverExpired,
    /// A message is given out although its delay is not over.
    DeliverEarly,
    /// A checkpoint forgets what is delayed.
    LoseDelayed,
    /// A checkpoint forgets what expires.
    ForgetLooks,
    /// A message that has to be read from the disk is overtaken by those that are in memory.
    OvertakeFar,
    /// What makes room for new messages is not counted.
    DropUncounted,
}

#[cfg(test)]
impl Canary {
    pub(super) const ALL: [Self; 24] = [
        Self::DispatchBeforeDurable,
        Self::AckAhead,
        Self::LoseCount,
        Self::DeliverTwice,
        Self::Resurrect,
        Self::LanesOfOthers,
        Self::KeepDeletedGroup,
        Self::ResetKeepsLeases,
        Self::StartAtMark,
        Self::ForgetTrim,
        Self::GiveUpEarly,
        Self::TrimAhead,
        Self::LeaveWaiting,
        Self::SkipInSilence,
        Self::StreamForgets,
        Self::ForgetFence,
        Self::LoseOwnSequence,
        Self::HalfTransaction,
        Self::DeliverExpired,
        Self::DeliverEarly,
        Self::LoseDelayed,
        Self::ForgetLooks,
        Self::OvertakeFar,
        Self::DropUncounted,
    ];
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Canary>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in what this thread does from now on.
#[cfg(test)]
pub(super) fn plant(canary: Option<Canary>) {
    PLANTED.set(canary);
}

/// Whether this bug is planted.
#[cfg(test)]
pub(super) fn planted(canary: Canary) -> bool {
    PLANTED.get() == Some(canary)
}

/// Whether this bug is planted.
#[cfg(not(test))]
#[inline(always)]
pub(super) const fn planted(_canary: Canary) -> bool {
    false
}
