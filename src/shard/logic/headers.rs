//! The headers that a dead letter carries: why it is one and where it came from. Redrive takes them off again.

use ringmain_client::layout::metadata::tag;

/// `max-deliveries`, `rejected` or `expired`.
pub const REASON: &str = "ringmain-reason";
/// Name of the queue that it was sent to.
pub const ORIGIN_QUEUE: &str = "ringmain-origin-queue";
/// Its sequence there, decimal.
pub const ORIGIN_SEQUENCE: &str = "ringmain-origin-sequence";
/// Deliveries, decimal.
pub const DELIVERIES: &str = "ringmain-deliveries";

/// Of a message that a browser cannot be shown because it fits no ring of its queue: its payload bytes, decimal.
pub const WITHHELD: &str = "ringmain-withheld";

/// Of a message that a browser cannot be shown because the journal is damaged there: where, in words.
pub const UNREADABLE: &str = "ringmain-unreadable";

const OURS: [&str; 4] = [REASON, ORIGIN_QUEUE, ORIGIN_SEQUENCE, DELIVERIES];

/// Appends a header. What does not fit into metadata is left out: there is room for ours, see `METADATA_BYTES_MAX`.
pub(super) fn push(out: &mut Vec<u8>, name: &str, value: &str) {
    let length = 1 + name.len() + value.len();
    let (Ok(length_16), Ok(name_length)) = (u16::try_from(length), u8::try_from(name.len())) else {
        return;
    };
    if out.len() + 4 + length > usize::from(u16::MAX) {
        return;
    }
    out.extend_from_slice(&[tag::HEADER, 0]);
    out.extend_from_slice(&length_16.to_le_bytes());
    out.push(name_length);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value.as_bytes());
}

/// The entries of some metadata: tag, value, whole entry. Ends at the first that is malformed.
fn entries(metadata: &[u8]) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    let mut rest = metadata;
    std::iter::from_fn(move || {
        let &[tag, _, low, high] = rest.first_chunk()?;
        let end = 4 + usize::from(u16::from_le_bytes([low, high]));
        let (entry, behind) = rest.split_at_checked(end)?;
        rest = behind;
        Some((tag, &entry[4..], entry))
    })
}

fn name_and_value(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = entry.split_first()?;
    rest.split_at_checked(usize::from(length))
}

/// Copies metadata without our headers, without the own sequence of a named producer, and without what counted from the publish time of
/// the copied message: the copy is a new message.
pub(super) fn copy_without_ours(metadata: &[u8], out: &mut Vec<u8>) {
    for (tag, value, entry) in entries(metadata) {
        let ours = matches!(tag, tag::PRODUCER_SEQUENCE | tag::TTL | tag::DELAY)
            || tag == tag::HEADER
                && name_and_value(value)
                    .is_some_and(|(name, _)| OURS.iter().any(|our| our.as_bytes() == name));
        if !ours {
            out.extend_from_slice(entry);
        }
    }
}

/// The last header of this name.
pub(super) fn find<'a>(metadata: &'a [u8], name: &str) -> Option<&'a str> {
    let found = entries(metadata).filter(|(tag, _, _)| *tag == tag::HEADER);
    let values = found.filter_map(|(_, value, _)| name_and_value(value));
    let value = values.filter(|(found, _)| *found == name.as_bytes()).last()?.1;
    std::str::from_utf8(value).ok()
}
