//! The bodies of the records that the logic writes. docs/brokered.md has the list; golden files hold the bytes.
//!
//! Fixed fields are little-endian; lists of sequences are variable-length numbers (seven bits a byte, low ones first), each
//! sequence as its distance from the one before it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::marks::Mark;
use super::types::QueueDefinition;

/// Kinds of records. Numbers are never used again.
pub mod kind {
    /// A message: [`super::MessageBody`].
    pub const MESSAGE: u8 = 1;
    /// `QueueDefinition`.
    pub const QUEUE_CREATED: u8 = 2;
    /// The whole new `QueueDefinition`.
    pub const QUEUE_EDITED: u8 = 3;
    /// No body.
    pub const QUEUE_DELETED: u8 = 4;
    /// `GroupCreated`.
    pub const GROUP_CREATED: u8 = 5;
    /// Done with: group, then ranges.
    pub const ACKNOWLEDGED: u8 = 6;
    /// Back from a consumer: group, then `Returned` entries.
    pub const RETURNED: u8 = 7;
    /// As `ACKNOWLEDGED`, after the copy in the dead-letter queue, in the same atomic group.
    pub const MOVED: u8 = 8;
    /// As `ACKNOWLEDGED`: discarded after the last delivery.
    pub const DISCARDED: u8 = 9;
    /// Everything below a sequence is discarded for all groups: u64.
    pub const PURGED: u8 = 10;
    /// A limit has discarded everything below a sequence, for all groups: u64, then `TrimReason` as u8.
    pub const TRIMMED: u8 = 11;
    /// The number of the group.
    pub const GROUP_DELETED: u8 = 12;
    /// `GroupReset`.
    pub const GROUP_RESET: u8 = 13;
    /// `ProducerAttached`.
    pub const PRODUCER_ATTACHED: u8 = 14;
    /// `Transaction`: in front of its messages and acknowledgements, in the same atomic group.
    pub const TRANSACTION: u8 = 15;
    /// `ProducersForgotten`.
    pub const PRODUCERS_FORGOTTEN: u8 = 16;
    /// As `ACKNOWLEDGED`: discarded because its TTL was over.
    pub const EXPIRED: u8 = 17;
    /// Checkpoint: `ShardState`.
    pub const SHARD_STATE: u8 = 32;
    /// Checkpoint: `QueueState`.
    pub const QUEUE_STATE: u8 = 33;
    /// Checkpoint: `GroupState`.
    pub const GROUP_STATE: u8 = 34;
    /// Checkpoint: group, then `OpenRun` entries.
    pub const OPEN_MESSAGES: u8 = 35;
    /// Checkpoint: `LaneState`.
    pub const LANE_STATE: u8 = 36;
    /// Checkpoint: bytes of all messages, then marks.
    pub const MARKS: u8 = 37;
    /// Checkpoint: `NamedState`.
    pub const NAMED_STATE: u8 = 38;
    /// Checkpoint: `LooksState`.
    pub const LOOKS_STATE: u8 = 39;
}

/// Flag of a `MOVED` record: because its TTL was over.
pub const FLAG_EXPIRED: u8 = 2;

/// First byte of every body other than a message's.
const FORM: u8 = 1;

/// Bytes in front of metadata and payload in a message.
pub const MESSAGE_HEADER_BYTES: usize = 32;

/// Lists are cut into records of about this many bytes.
pub(super) const LIST_BYTES: usize = 8 * 1024;

/// What is in a message record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageBody<'a> {
    /// When the shard took it: nanoseconds since 1970.
    pub published_ns: u64,
    /// The lane it came from; 0: none.
    pub lane: u64,
    /// Its position there.
    pub position: u64,
    /// Slots that it took there.
    pub span: u32,
    /// Flags of the message.
    pub flags: u16,
    /// As the producer sent it.
    pub metadata: &'a [u8],
    /// As the producer sent it.
    pub payload: &'a [u8],
}

impl<'a> MessageBody<'a> {
    /// The bytes in front of metadata and payload.
    pub(super) fn header(&self) -> [u8; MESSAGE_HEADER_BYTES] {
        let mut bytes = [0; MESSAGE_HEADER_BYTES];
        // A ring's metadata is at most 65,535 bytes long; the logic refuses more.
        let metadata = u16::try_from(self.metadata.len()).unwrap_or(u16::MAX);
        bytes[0..8].copy_from_slice(&self.published_ns.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.lane.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.span.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.flags.to_le_bytes());
        bytes[30..32].copy_from_slice(&metadata.to_le_bytes());
        bytes
    }

    /// Reads a body; `None` if it is malformed.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let (header, rest) = body.split_first_chunk::<MESSAGE_HEADER_BYTES>()?;
        let u64_at = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let span = u32::from_le_bytes([header[24], header[25], header[26], header[27]]);
        let metadata_bytes = usize::from(u16::from_le_bytes([header[30], header[31]]));
        let (metadata, payload) = rest.split_at_checked(metadata_bytes)?;
        Some(Self {
            published_ns: u64_at(0),
            lane: u64_at(8),
            position: u64_at(16),
            span,
            flags: u16::from_le_bytes([header[28], header[29]]),
            metadata,
            payload,
        })
    }
}

/// A new group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupCreated {
    pub(super) group: u32,
    pub(super) name: String,
    /// It gets what is there from this sequence on.
    pub(super) from: u64,
}

/// A group at another start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupReset {
    pub(super) group: u32,
    /// Its number from then on: what earlier records say of the group does not count for it any more.
    pub(super) becomes: u32,
    /// It gets what is there from this sequence on.
    pub(super) to: u64,
}

/// One message that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Returned {
    pub(super) sequence: u64,
    /// Deliveries so far.
    pub(super) count: u32,
    /// A consumer rejected it.
    pub(super) rejected: bool,
    /// Not before so many milliseconds from then on.
    pub(super) delay_ms: u64,
}

/// Neighbouring messages in the same state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenRun {
    pub(super) first: u64,
    pub(super) messages: u64,
    pub(super) count: u32,
    pub(super) rejected: bool,
    pub(super) delay_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardState {
    pub(super) shard: u32,
    pub(super) next_queue_id: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueState {
    pub(super) definition: QueueDefinition,
    pub(super) next_sequence: u64,
    pub(super) next_group: u32,
    pub(super) published_ns: u64,
    pub(super) redelivered: u64,
    pub(super) dead_lettered: u64,
    pub(super) discarded: u64,
    /// Everything below was discarded.
    pub(super) first: u64,
    pub(super) trimmed: u64,
    pub(super) dropped: u64,
    pub(super) expired: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GroupState {
    pub(super) group: u32,
    pub(super) name: String,
    /// First sequence that was never given out.
    pub(super) fresh: u64,
    /// Payload and metadata bytes of its messages, as far as known.
    pub(super) bytes: u64,
    /// Messages that a limit discarded before they were acknowledged.
    pub(super) skipped: u64,
}

/// When to look at which messages because they may expire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LooksState {
    /// Realtime in nanoseconds, first and last sequence.
    pub(super) looks: Vec<(u64, u64, u64)>,
}

/// See [`super::LaneRun`]: first position, stride, count, first sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaneState {
    pub(super) lane: u64,
    pub(super) runs: Vec<(u64, u64, u32, u64)>,
}

/// Somebody attached under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProducerAttached {
    /// Of the name in this queue, never used again.
    pub(super) id: u64,
    pub(super) epoch: u32,
    /// Since 1970.
    pub(super) at_ns: u64,
    pub(super) name: String,
}

/// Messages and acknowledgements that came as one message of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transaction {
    pub(super) lane: u64,
    pub(super) position: u64,
    /// Slots that it took in the lane.
    pub(super) span: u64,
    /// Of its first message; 0 if it has none.
    pub(super) sequence: u64,
    /// Messages that follow.
    pub(super) messages: u32,
}

/// Names that nobody has used for long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProducersForgotten {
    pub(super) ids: Vec<u64>,
}

/// Named producers of a queue, or some of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamedState {
    /// Ids below it may have been used.
    pub(super) next: u64,
    pub(super) producers: Vec<ProducerState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProducerState {
    pub(super) id: u64,
    pub(super) epoch: u32,
    /// Last own sequence that is stored.
    pub(super) last: u64,
    /// Since 1970.
    pub(super) used_ns: u64,
    pub(super) name: String,
}

/// Why a limit has discarded messages. The numbers are in records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrimReason {
    /// A stream has too many.
    Messages = 1,
    /// A stream has too many bytes.
    Bytes = 2,
    /// They have been in a stream for too long.
    Age = 3,
    /// There was to be room for new ones.
    DropOldest = 4,
}

/// The body of [`kind::TRIMMED`].
pub(super) fn encode_trimmed(below: u64, reason: TrimReason) -> [u8; 9] {
    let mut body = [reason as u8; 9];
    body[..8].copy_from_slice(&below.to_le_bytes());
    body
}

/// The body of [`kind::TRIMMED`].
pub(super) fn decode_trimmed(body: &[u8]) -> Option<(u64, TrimReason)> {
    let (below, reason) = body.split_first_chunk()?;
    let reason = match reason {
        [1] => TrimReason::Messages,
        [2] => TrimReason::Bytes,
        [3] => TrimReason::Age,
        [4] => TrimReason::DropOldest,
        _ => return None,
    };
    Some((u64::from_le_bytes(*below), reason))
}

/// A structure as a body.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![FORM]).expect("structures of this file can be encoded")
}

/// A structure from a body.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let Some((&FORM, rest)) = body.split_first() else {
        return Err(match body.first() {
            Some(form) => format!("record form {form}: this program knows form {FORM}"),
            None => "empty record".to_owned(),
        });
    };
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Ok(value),
        _ => Err("malformed record".to_owned()),
    }
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[allow(clippy::cast_possible_truncation)]
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[allow(clippy::cast_possible_truncation)]
    out.push(value as u8);
}

/// A signed distance with its sign in the lowest bit; distances wrap.
const fn fold(distance: u64) -> u64 {
    let sign = if distance >> 63 == 1 { u64::MAX } else { 0 };
    (distance << 1) ^ sign
}

const fn unfold(folded: u64) -> u64 {
    let sign = if folded & 1 == 1 { u64::MAX } else { 0 };
    (folded >> 1) ^ sign
}

/// Reads numbers off the front.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn next_u32(&mut self) -> Option<u32> {
        u32::try_from(self.next()?).ok()
    }
}

/// A list of sequences on its way into a record.
#[derive(Debug, Default)]
pub(super) struct List {
    bytes: Vec<u8>,
    /// Sequence behind the last entry.
    end: u64,
    /// Where the last range is, and how long: it can still grow.
    open: Option<(usize, u64)>,
}

impl List {
    pub(super) fn begin(&mut self, group: u32) {
        self.bytes.clear();
        self.bytes.push(FORM);
        put(&mut self.bytes, u64::from(group));
        self.end = 0;
        self.open = None;
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= LIST_BYTES
    }

    fn sequence(&mut self, sequence: u64) {
        put(&mut self.bytes, fold(sequence.wrapping_sub(self.end)));
        self.end = sequence.wrapping_add(1);
    }

    /// One sequence; neighbours become a range.
    pub(super) fn range(&mut self, sequence: u64) {
        if let Some((at, messages)) = self.open
            && sequence == self.end
        {
            self.bytes.truncate(at);
            put(&mut self.bytes, messages + 1);
            self.end += 1;
            self.open = Some((at, messages + 1));
            return;
        }
        self.sequence(sequence);
        self.open = Some((self.bytes.len(), 1));
        put(&mut self.bytes, 1);
    }

    pub(super) fn returned(&mut self, entry: &Returned) {
        self.sequence(entry.sequence);
        put(&mut self.bytes, u64::from(entry.count) << 1 | u64::from(entry.rejected));
        put(&mut self.bytes, entry.delay_ms);
    }

    pub(super) fn open_run(&mut self, run: &OpenRun) {
        self.sequence(run.first);
        self.end = run.first.wrapping_add(run.messages);
        put(&mut self.bytes, run.messages);
        put(&mut self.bytes, u64::from(run.count) << 1 | u64::from(run.rejected));
        put(&mut self.bytes, run.delay_ms);
    }
}

/// The group in front of a list, and the list.
fn list(body: &[u8]) -> Option<(u32, Numbers<'_>)> {
    let (&form, rest) = body.split_first()?;
    let mut numbers = Numbers(rest);
    let group = numbers.next_u32()?;
    (form == FORM).then_some((group, numbers))
}

const MALFORMED: &str = "malformed list of sequences";

/// Group and ranges (first, messages) of a body.
pub(super) fn read_ranges(
    body: &[u8],
    mut take: impl FnMut(u32, u64, u64) -> Result<(), String>,
) -> Result<(), String> {
    let (group, mut numbers) = list(body).ok_or(MALFORMED)?;
    let mut end = 0u64;
    while !numbers.0.is_empty() {
        let first = end.wrapping_add(unfold(numbers.next().ok_or(MALFORMED)?));
        let messages = numbers.next().ok_or(MALFORMED)?;
        end = first.checked_add(messages).ok_or(MALFORMED)?;
        take(group, first, messages)?;
    }
    Ok(())
}

/// Group and entries of a body.
pub(super) fn read_returned(
    body: &[u8],
    mut take: impl FnMut(u32, Returned) -> Result<(), String>,
) -> Result<(), String> {
    let (group, mut numbers) = list(body).ok_or(MALFORMED)?;
    let mut end = 0u64;
    while !numbers.0.is_empty() {
        let sequence = end.wrapping_add(unfold(numbers.next().ok_or(MALFORMED)?));
        let (count, rejected) = count(&mut numbers)?;
        let delay_ms = numbers.next().ok_or(MALFORMED)?;
        end = sequence.checked_add(1).ok_or(MALFORMED)?;
        take(group, Returned { sequence, count, rejected, delay_ms })?;
    }
    Ok(())
}

/// Group and runs of a body.
pub(super) fn read_open_runs(
    body: &[u8],
    mut take: impl FnMut(u32, OpenRun) -> Result<(), String>,
) -> Result<(), String> {
    let (group, mut numbers) = list(body).ok_or(MALFORMED)?;
    let mut end = 0u64;
    while !numbers.0.is_empty() {
        let first = end.wrapping_add(unfold(numbers.next().ok_or(MALFORMED)?));
        let messages = numbers.next().ok_or(MALFORMED)?;
        let (count, rejected) = count(&mut numbers)?;
        let delay_ms = numbers.next().ok_or(MALFORMED)?;
        end = first.checked_add(messages).ok_or(MALFORMED)?;
        take(group, OpenRun { first, messages, count, rejected, delay_ms })?;
    }
    Ok(())
}

fn count(numbers: &mut Numbers<'_>) -> Result<(u32, bool), String> {
    let packed = numbers.next().ok_or(MALFORMED)?;
    Ok((u32::try_from(packed >> 1).map_err(|_| MALFORMED)?, packed & 1 == 1))
}

/// Marks on their way into a record: numbers as distances from the mark before.
#[derive(Debug, Default)]
pub(super) struct MarkList {
    bytes: Vec<u8>,
    last: Option<Mark>,
}

impl MarkList {
    pub(super) fn begin(&mut self, all_bytes: u64) {
        self.bytes.clear();
        self.bytes.push(FORM);
        put(&mut self.bytes, all_bytes);
        self.last = None;
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= LIST_BYTES
    }

    /// Behind the one before, in every respect.
    pub(super) fn mark(&mut self, mark: &Mark) {
        let last = self.last.unwrap_or(NO_MARK);
        for distance in [
            mark.sequence - last.sequence,
            mark.published_ns - last.published_ns,
            mark.bytes_below - last.bytes_below,
        ] {
            put(&mut self.bytes, distance);
        }
        self.last = Some(*mark);
    }
}

const NO_MARK: Mark = Mark { sequence: 0, published_ns: 0, bytes_below: 0 };

/// The marks of a body; returns the bytes of all messages.
pub(super) fn read_marks(
    body: &[u8],
    mut take: impl FnMut(Mark) -> Result<(), String>,
) -> Result<u64, String> {
    const MALFORMED: &str = "malformed list of marks";
    let Some((&FORM, rest)) = body.split_first() else { return Err(MALFORMED.to_owned()) };
    let mut numbers = Numbers(rest);
    let all_bytes = numbers.next().ok_or(MALFORMED)?;
    let mut last = NO_MARK;
    while !numbers.0.is_empty() {
        let mut field = |from: u64| numbers.next()?.checked_add(from);
        last = Mark {
            sequence: field(last.sequence).ok_or(MALFORMED)?,
            published_ns: field(last.published_ns).ok_or(MALFORMED)?,
            bytes_below: field(last.bytes_below).ok_or(MALFORMED)?,
        };
        take(last)?;
    }
    Ok(all_bytes)
}
