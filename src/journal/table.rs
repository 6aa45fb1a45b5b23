//! Records that the journal writes for itself: which segments it consists of, where they end, which are free. No I/O.

use super::format::u64_at;
use super::types::{KIND_RESERVED, Lsn};

/// One segment of the journal, in each checkpoint. For the last one, after an unclean stop, this is the cut record.
pub(super) const KIND_SEGMENT: u8 = KIND_RESERVED;
/// A segment (the record's `sequence` is its epoch) that holds nothing any more.
pub(super) const KIND_FREED: u8 = KIND_RESERVED + 1;

/// Bytes of the body of a [`KIND_SEGMENT`].
pub(super) const ENTRY_BYTES: usize = 64;

/// A segment that takes no more batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) epoch: u64,
    /// Of the batches in it.
    pub(super) incarnation: u64,
    /// Number in the name of its file.
    pub(super) file_number: u64,
    pub(super) first_lsn: Lsn,
    /// Number after that of its last record. What lies behind is void.
    pub(super) end_lsn: Lsn,
    /// Place after its last batch in bytes.
    pub(super) end_offset: u64,
    /// Chain value of its last batch.
    pub(super) chain: u64,
}

impl Entry {
    pub(super) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let fields = [
            self.epoch,
            self.incarnation,
            self.file_number,
            self.first_lsn,
            self.end_lsn,
            self.end_offset,
            self.chain,
        ];
        for (index, field) in fields.iter().enumerate() {
            bytes[index * 8..index * 8 + 8].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != ENTRY_BYTES || u64_at(bytes, 56) != 0 {
            return None;
        }
        Some(Self {
            epoch: u64_at(bytes, 0),
            incarnation: u64_at(bytes, 8),
            file_number: u64_at(bytes, 16),
            first_lsn: u64_at(bytes, 24),
            end_lsn: u64_at(bytes, 32),
            end_offset: u64_at(bytes, 40),
            chain: u64_at(bytes, 48),
        })
    }
}

const PREFIX: &str = "segment-";
const SUFFIX: &str = ".journal";

/// Name of a segment file.
pub(super) fn file_name(number: u64) -> String {
    format!("{PREFIX}{number:08}{SUFFIX}")
}

/// Number in the name of a segment file.
pub(super) fn file_number(name: &str) -> Option<u64> {
    let number: u64 = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        assert_eq!(file_name(7), "segment-00000007.journal");
        assert_eq!(file_number("segment-00000007.journal"), Some(7));
        assert_eq!(file_number("segment-123456789.journal"), Some(123_456_789));
        for other in
            ["segment-7.journal", "segment-00000007.journal.aside", "x", "segment-+0000007.journal"]
        {
            assert_eq!(file_number(other), None, "{other}");
        }
    }

    #[test]
    fn entries_go_there_and_back() {
        let entry = Entry {
            epoch: 1,
            incarnation: 2,
            file_number: 3,
            first_lsn: 4,
            end_lsn: 5,
            end_offset: 6,
            chain: u64::MAX,
        };
        assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        assert_eq!(Entry::decode(&[0; 63]), None);
    }
}
