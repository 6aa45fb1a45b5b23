//! Memory of a brokered handle: two spsc rings between the client and a shard, one in each direction.
//!
//! Each side has one memory file that it alone writes. `up` goes from the client to the shard (a producer's lane, a
//! consumer's submissions), `down` from the shard to the client (a producer's completions, a consumer's deliveries).
//!
//! ```text
//! client's file (client read-write)      shard's file (client read-only)
//!   0x0000  up: producer page              0x0000  control page of both rings
//!   0x1000  down: consumer page            0x1000  up: consumer page
//!   0x2000  up: slots                      0x2000  down: producer page
//!                                          0x3000  status page
//!                                          0x4000  lease table, `leases` x LEASE_BYTES, whole pages
//!                                          behind  down: slots
//! ```

use super::PAGE_BYTES;

/// Offsets in the client's file.
pub mod client_file {
    /// Producer page of the ring towards the shard.
    pub const UP_PRODUCER: usize = 0;
    /// Consumer page of the ring towards the client.
    pub const DOWN_CONSUMER: usize = super::PAGE_BYTES;
    /// Slots of the ring towards the shard.
    pub const UP_SLOTS: usize = 2 * super::PAGE_BYTES;
}

/// Offsets in the shard's file.
pub mod shard_file {
    /// Control page of both rings.
    pub const CONTROL: usize = 0;
    /// Consumer page of the ring towards the shard.
    pub const UP_CONSUMER: usize = super::PAGE_BYTES;
    /// Producer page of the ring towards the client.
    pub const DOWN_PRODUCER: usize = 2 * super::PAGE_BYTES;
    /// See [`super::status`].
    pub const STATUS: usize = 3 * super::PAGE_BYTES;
    /// The lease table of a consumer, see [`super::lease`].
    pub const LEASES: usize = 4 * super::PAGE_BYTES;

    /// Slots of the ring towards the client.
    pub const fn down_slots(leases: usize) -> usize {
        LEASES + (leases * super::lease::BYTES).next_multiple_of(super::PAGE_BYTES)
    }
}

/// Offsets in the status page of a handle. The shard writes it.
pub mod status {
    /// Producer: position behind the last message that the shard has taken out of the lane.
    pub const TAKEN: usize = 0x00;
    /// Consumer: most messages that may be unacknowledged at a time, as the shard has accepted it.
    pub const CREDIT: usize = 0x08;
    /// Consumer: of the deliveries below this position in the ring towards the client some may not be its own any more; the lease
    /// table tells. 0 from a shard that does not say.
    pub const RECALLED: usize = 0x10;
}

/// One entry of a lease table: a message that is with this consumer. The shard writes it, and a shard that takes over reads it:
/// nothing is redelivered because the daemon died.
pub mod lease {
    /// Not zero while the entry is in use: the number of the delivery (1, 2, ...).
    pub const ATTEMPT: usize = 0x00;
    /// Sequence of the message.
    pub const SEQUENCE: usize = 0x08;
    /// Position of the delivery in the ring towards the client: at or behind the ring's tail it was never sent.
    pub const POSITION: usize = 0x10;
    /// Reserved.
    pub const RESERVED: usize = 0x18;
    /// Length.
    pub const BYTES: usize = 0x20;
    /// Most leases of one consumer.
    pub const LEASES_MAX: usize = 4096;
}

/// Offsets in a session's link: one memory file that the client writes and the shard reads.
pub mod link {
    /// [`HANDLES_MAX`] u64, one a brokered handle of the session. The client stores 1 after it has published into the handle's ring
    /// `up` or released slots of its ring `down` for which the shard may wait; the shard exchanges it for 0 and then looks.
    pub const READY: usize = 0;
    /// Brokered handles of one session.
    pub const HANDLES_MAX: usize = 4096;
    /// Length.
    pub const BYTES: usize = HANDLES_MAX * 8;
}

/// Offsets in a shard's page: all its clients map it read-only.
pub mod shard_page {
    /// u32: the number of the sleep, not zero, while the shard sleeps or is about to. Whoever then has something for it writes 1
    /// to its eventfd, once for each sleep.
    pub const ASLEEP: usize = 0x000;
    /// u32: number of the last sleep.
    pub const SLEEPS: usize = 0x004;
    /// Not zero after the journal failed: the errno (at least 1).
    pub const FAILED_ERRNO: usize = 0x080;
    /// Then: the first LSN that was not confirmed.
    pub const FAILED_LSN: usize = 0x088;
    /// Length.
    pub const BYTES: usize = super::PAGE_BYTES;
}

const _: () = {
    assert!(link::BYTES.is_multiple_of(PAGE_BYTES));
    assert!((lease::LEASES_MAX * lease::BYTES).is_multiple_of(PAGE_BYTES));
};
