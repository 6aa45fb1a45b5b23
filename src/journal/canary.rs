//! Test builds only: planted bugs. Each must be caught by a suite, or the suite proves nothing.
//!
//! With the feature `canary`, `plant` makes one bug active in the calling thread. Without the feature [`planted`] is a
//! constant `false` and the code behind it is gone.

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canary {
    /// Batches are written without being made durable.
    SkipSync,
    /// What a killed process may have left in a cache is not synced when a journal is opened.
    SkipOpenSync,
    /// The same for names.
    SkipDirectorySync,
    /// A batch counts as durable when it is submitted.
    ConfirmEarly,
    /// A batch counts as durable although one before it is not.
    ConfirmOutOfOrder,
    /// Batches of another incarnation are taken for this one's.
    IgnoreIncarnation,
    /// Batches and footers of another epoch are taken for this one's.
    IgnoreEpoch,
    /// A read error counts as the end of the journal.
    CutOnReadError,
    /// One record of a checkpoint is left out.
    DropCheckpointRecord,
    /// A freed segment is written to before its freeing is durable.
    ReuseEarly,
    /// A hole at or below the last witness is cut like a torn tail.
    CutWitnessed,
    /// A segment is freed before its needed messages have been copied.
    FreeBeforeCopies,
    /// The place of a message before it was copied is preferred to the one of its copy.
    PreferOldPlace,
    /// A replay shows copies, whatever has become of their messages.
    ReplayCopies,
    /// A segment is begun over the torn beginning of one that was never confirmed.
    CompleteTorn,
    /// Incarnation and epoch of what is cut off are given again.
    RepeatIncarnation,
    /// Of a batch in memory some message of the queue is given, not the one that was asked for.
    NearestMessage,
    /// A batch that is not whole is damage, also where nothing counts.
    NeedStale,
    /// What lies behind the header of a batch is not verified.
    TrustBody,
}

impl Canary {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::SkipSync,
        Self::SkipOpenSync,
        Self::SkipDirectorySync,
        Self::ConfirmEarly,
        Self::ConfirmOutOfOrder,
        Self::IgnoreIncarnation,
        Self::IgnoreEpoch,
        Self::CutOnReadError,
        Self::DropCheckpointRecord,
        Self::ReuseEarly,
        Self::CutWitnessed,
        Self::FreeBeforeCopies,
        Self::PreferOldPlace,
        Self::ReplayCopies,
        Self::CompleteTorn,
        Self::RepeatIncarnation,
        Self::NearestMessage,
        Self::NeedStale,
        Self::TrustBody,
    ];
}

/// Whether this bug is planted in this thread.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub const fn planted(_canary: Canary) -> bool {
    false
}

#[cfg(feature = "canary")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Canary>> = const { std::cell::Cell::new(None) };
}

/// Whether this bug is planted in this thread.
#[cfg(feature = "canary")]
#[must_use]
pub fn planted(canary: Canary) -> bool {
    ACTIVE.get() == Some(canary)
}

/// Plants a bug in this thread, or removes it.
#[cfg(feature = "canary")]
pub fn plant(canary: Option<Canary>) {
    ACTIVE.set(canary);
}
