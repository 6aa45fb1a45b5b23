//! The only definition of what lies in shared memory: offsets, sizes, the word of a slot, the header of a message.
//!
//! No algorithm lives here. Every field is an unsigned integer of fixed size in native byte order (all parties run on
//! one host); nothing is a pointer, a `usize`, a `bool` or an enum, and a value read from here is bounded before use.
//! `docs/shared-memory.md` has the same bytes as tables; the golden files in `ipc-client/tests/golden` hold them still.

mod geometry;
pub mod metadata;
pub mod pair;
mod word;

pub use geometry::{Geometry, GeometryError};
pub use word::{State, Word};

/// Version of everything in this module. It changes with any byte that moves.
pub const LAYOUT_VERSION: u32 = 2;

/// Oldest version whose memory can be used. Version 2 added the bias words, the line's flag and nothing else: all are zero
/// in memory of version 1, and mean that there is no bias.
pub const LAYOUT_VERSION_MIN: u32 = 1;

/// First eight bytes of a control page: `RINGMAIN` in ASCII.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RINGMAIN");

/// All regions are whole pages of this many bytes.
pub const PAGE_BYTES: usize = 4096;

/// Fields that different processes write lie this many bytes apart: two cache lines, because the adjacent-line
/// prefetcher of x86-64 pulls lines in pairs, and aarch64 has lines of up to 128 bytes.
pub const SPACING_BYTES: usize = 128;

/// Highest handle index. Index 0 means nobody, [`HANDLE_DAEMON`] is the daemon's own.
pub const HANDLE_MAX: u8 = 254;

/// The handle with which the daemon itself takes messages (purge).
pub const HANDLE_DAEMON: u8 = 255;

/// A handle index fits eight bits: this many sleeper bits and handle lines exist.
pub const HANDLES: usize = 256;

/// Offsets in the control page, which only the daemon writes and everybody else maps read-only.
pub mod control {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0x00;
    /// Layout version (low half) and kind (high half, 1 = spsc, 2 = mpmc, 3 is reserved for broadcast).
    pub const VERSION_AND_KIND: usize = 0x08;
    /// Queue id.
    pub const QUEUE_ID: usize = 0x10;
    /// log2 of the slots (low half), slot size in bytes (high half); for tools, handles take it from the handshake.
    pub const GEOMETRY: usize = 0x18;
    /// One of the `CLOSED_*` values.
    pub const CLOSED: usize = 0x80;
    /// One of the `OVERFLOW_*` values.
    pub const OVERFLOW: usize = 0x88;
    /// mpmc: {handle that claims on the producers' side without exchanges, bits 0 to 7; handle that has lost this right,
    /// 8 to 15}; 0 means nobody.
    pub const PRODUCER_BIAS: usize = 0x90;
    /// The same for the consumers' side, and [`BIAS_BARRED`].
    pub const CONSUMER_BIAS: usize = 0x98;
    /// Deaths repaired.
    pub const REPAIRS: usize = 0x100;
    /// Claims of dead producers that became tombstones.
    pub const TOMBSTONES: usize = 0x108;
    /// Messages of dead consumers that were given out again.
    pub const RETURNED: usize = 0x110;
    /// Length of the page.
    pub const BYTES: usize = super::PAGE_BYTES;

    /// Shift of the handle that has lost its right in a bias word.
    pub const BIAS_REVOKED_SHIFT: u32 = 8;
    /// Bit of a bias word: nobody gets the right any more.
    pub const BIAS_BARRED: u64 = 1 << 63;

    /// [`CLOSED`]: in use.
    pub const CLOSED_OPEN: u64 = 0;
    /// [`CLOSED`]: producers are refused, consumers receive what is left and are then told.
    pub const CLOSED_DRAINING: u64 = 1;
    /// [`CLOSED`]: the queue is deleted.
    pub const CLOSED_DELETED: u64 = 2;
    /// [`CLOSED`]: an invariant was violated.
    pub const CLOSED_FAULT: u64 = 3;
    /// [`CLOSED`]: the group of this consumer is deleted.
    pub const CLOSED_GROUP_DELETED: u64 = 4;

    /// [`OVERFLOW`]: producers wait for room.
    pub const OVERFLOW_BLOCK: u64 = 0;
    /// [`OVERFLOW`]: producers are refused.
    pub const OVERFLOW_REJECT: u64 = 1;
    /// [`OVERFLOW`]: producers drop the oldest messages.
    pub const OVERFLOW_DROP_OLDEST: u64 = 2;
}

/// Offsets in the ring region of an mpmc queue, which all members map writable.
pub mod mpmc {
    /// Position of the next claim by a producer.
    pub const TAIL: usize = 0x000;
    /// Position of the next claim by a consumer.
    pub const HEAD: usize = 0x080;
    /// 256 bits, one a handle: consumers that sleep or want their doorbell rung.
    pub const CONSUMER_SLEEPERS: usize = 0x100;
    /// Whether slots behind the head hold messages to be given out again: {version, 63 bits; some, 1 bit}.
    pub const RETURNED: usize = 0x120;
    /// Not zero: a member saw an invariant violated.
    pub const FAULT: usize = 0x128;
    /// 256 bits, one a handle: producers that sleep.
    pub const PRODUCER_SLEEPERS: usize = 0x180;
    /// u32 that consumers sleep on and wakers count up.
    pub const CONSUMER_EVENT: usize = 0x200;
    /// u32 that producers sleep on and wakers count up.
    pub const PRODUCER_EVENT: usize = 0x280;
    /// Messages that producers dropped to have room.
    pub const DROPPED: usize = 0x300;
    /// [`super::HANDLES`] handle lines of [`super::handle_line::BYTES`].
    pub const HANDLE_LINES: usize = 0x1000;
    /// First slot.
    pub const SLOTS: usize = HANDLE_LINES + super::HANDLES * super::handle_line::BYTES;
}

/// Offsets in the producer's and the consumer's page of an spsc queue. Each is written by its owner (and by the daemon
/// after the owner's death) and mapped read-only by the peer.
pub mod spsc_page {
    /// Producer: position behind the last published message. Consumer: position of the first message not released.
    pub const POSITION: usize = 0x000;
    /// Consumer only: position behind the last message whose bytes were looked at.
    pub const TAKEN: usize = 0x008;
    /// Consumer only: messages before this position were looked at by a consumer that died.
    pub const REDELIVERED: usize = 0x010;
    /// Bit 0: the owner of this page sleeps or wants its doorbell rung. Three reserved words follow.
    pub const SLEEPERS: usize = 0x080;
    /// u32 that the *peer* sleeps on and the owner of this page counts up.
    pub const EVENT: usize = 0x100;
    /// The handle line of the owner.
    pub const HANDLE_LINE: usize = 0x180;
    /// Consumer only: position behind the message in one slot that a batch shows; what comes before that message is done
    /// with. It counts when it is beyond [`POSITION`], which follows when a part of the batch is over.
    pub const SHOWN: usize = 0x200;
    /// Length of the page.
    pub const BYTES: usize = super::PAGE_BYTES;
}

/// Offsets in a handle line: what a handle tells about itself. Only the handle writes it while it lives.
pub mod handle_line {
    /// Messages that passed through the handle.
    pub const MESSAGES: usize = 0x00;
    /// Payload bytes that passed through the handle.
    pub const PAYLOAD_BYTES: usize = 0x08;
    /// While it waits: the position it waits at.
    pub const WAITING_AT: usize = 0x10;
    /// While it waits: `CLOCK_MONOTONIC` nanoseconds at the start; zero otherwise.
    pub const WAITING_SINCE_NS: usize = 0x18;
    /// Doorbell to ring (low half, zero: none) and the queue's bit in it (high half).
    pub const DOORBELL: usize = 0x20;
    /// mpmc: 1 while the handle is in the middle of a claim without exchanges.
    pub const INSIDE: usize = 0x28;
    /// Length.
    pub const BYTES: usize = super::SPACING_BYTES;
}

/// Offsets in a doorbell: one memfd of one consumer process, mapped writable by those who publish to its queues.
pub mod doorbell {
    /// u32 that the process sleeps on; counted up by whoever rings while it sleeps.
    pub const EVENT: usize = 0x00;
    /// u32: one of the `MODE_*` values.
    pub const MODE: usize = 0x80;
    /// [`QUEUES_MAX`] bits, one a queue: something may have arrived.
    pub const PENDING: usize = 0x100;
    /// Queues that one doorbell serves.
    pub const QUEUES_MAX: usize = 4096;
    /// Length of the region.
    pub const BYTES: usize = super::PAGE_BYTES;

    /// [`MODE`]: its owner looks at the pending bits before it sleeps.
    pub const MODE_AWAKE: u32 = 0;
    /// [`MODE`]: its owner sleeps on the event word.
    pub const MODE_FUTEX: u32 = 1;
    /// [`MODE`]: its owner waits for its socket.
    pub const MODE_SOCKET: u32 = 2;
}

/// Offsets in a slot and the flags of a message.
pub mod slot {
    /// The slot's [`super::Word`].
    pub const WORD: usize = 0x00;
    /// First slot of a message: payload length (bits 0 to 31), flags (32 to 47), metadata length (48 to 63).
    pub const HEADER: usize = 0x08;
    /// First slot: metadata, then payload.
    pub const BODY: usize = 0x10;
    /// Slots behind the first: the body goes on right after the word.
    pub const BODY_CONTINUED: usize = 0x08;

    /// Reserved: the metadata has a priority.
    pub const FLAG_PRIORITY: u16 = 1 << 0;
    /// Reserved: the metadata has a time to live.
    pub const FLAG_TTL: u16 = 1 << 1;
    /// Reserved: the metadata has a delay.
    pub const FLAG_DELAY: u16 = 1 << 2;
    /// Reserved: the metadata has a reply-to.
    pub const FLAG_REPLY_TO: u16 = 1 << 3;
}

const _: () = {
    assert!(mpmc::CONSUMER_SLEEPERS + HANDLES / 8 == mpmc::RETURNED);
    assert!(mpmc::SLOTS.is_multiple_of(PAGE_BYTES));
    assert!(mpmc::SLOTS == 0x9000);
    assert!(spsc_page::HANDLE_LINE + handle_line::BYTES <= spsc_page::SHOWN);
    assert!(spsc_page::SHOWN + SPACING_BYTES <= spsc_page::BYTES);
    assert!(doorbell::PENDING + doorbell::QUEUES_MAX / 8 <= doorbell::BYTES);
    assert!(handle_line::INSIDE + 8 <= handle_line::BYTES);
    assert!(control::CONSUMER_BIAS + 8 <= control::REPAIRS);
};
