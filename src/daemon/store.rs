//! What the keeper holds: bytes and descriptors under keys. It does not know what they mean.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ringmain_client::sys::packet::DESCRIPTORS_MAX;

use super::link::Item;

/// Bytes of entries in one answer, so that it fits a frame with room to spare.
const PAGE_BYTES: usize = 32 * 1024;

#[derive(Debug)]
struct Value {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// Entries in the order of their keys.
#[derive(Debug, Default)]
pub(super) struct Store {
    values: BTreeMap<Vec<u8>, Value>,
}

impl Store {
    /// Deletes, then puts, as one step. The descriptors belong to the items in their order; the error says what does
    /// not add up, and then nothing was changed.
    pub(super) fn apply(
        &mut self,
        deletes: &[Vec<u8>],
        puts: Vec<Item>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let announced: usize = puts.iter().map(|item| usize::from(item.descriptors)).sum();
        if announced != descriptors.len() {
            return Err(format!("{announced} descriptors announced, {} came", descriptors.len()));
        }
        for key in deletes {
            self.values.remove(key);
        }
        let mut descriptors = descriptors.into_iter();
        for item in puts {
            let own = descriptors.by_ref().take(usize::from(item.descriptors)).collect();
            match self.values.get_mut(&item.key) {
                // An update without descriptors keeps those that are there.
                Some(value) if item.descriptors == 0 => value.bytes = item.bytes,
                _ => {
                    self.values.insert(item.key, Value { bytes: item.bytes, descriptors: own });
                }
            }
        }
        Ok(())
    }

    /// The next page of entries behind `after`; an empty page is the end.
    pub(super) fn page(&self, after: &[u8]) -> (Vec<Item>, Vec<BorrowedFd<'_>>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut items = Vec::new();
        let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
        let mut bytes = 0;
        for (key, value) in self.values.range::<[u8], _>((Excluded(after), Unbounded)) {
            bytes += key.len() + value.bytes.len() + 16;
            let full =
                bytes > PAGE_BYTES || descriptors.len() + value.descriptors.len() > DESCRIPTORS_MAX;
            if full && !items.is_empty() {
                break;
            }
            descriptors.extend(value.descriptors.iter().map(AsFd::as_fd));
            items.push(Item {
                key: key.clone(),
                bytes: value.bytes.clone(),
                descriptors: u8::try_from(value.descriptors.len()).unwrap_or(u8::MAX),
            });
        }
        (items, descriptors)
    }

    /// Entries held.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: u8, bytes: &[u8], descriptors: u8) -> Item {
        Item { key: vec![key], bytes: bytes.to_vec(), descriptors }
    }

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn pages_give_back_everything_in_order() {
        let mut store = Store::default();
        for key in 1..=200_u8 {
            let descriptors = (0..key % 5).map(|_| null()).collect();
            store.apply(&[], vec![item(key, &[key; 500], key % 5)], descriptors).unwrap();
        }
        let mut after = Vec::new();
        let mut seen = Vec::new();
        loop {
            let (items, descriptors) = store.page(&after);
            let Some(last) = items.last() else { break };
            after = last.key.clone();
            let announced: usize = items.iter().map(|item| usize::from(item.descriptors)).sum();
            assert_eq!(announced, descriptors.len());
            assert!(descriptors.len() <= DESCRIPTORS_MAX);
            seen.extend(items);
        }
        assert_eq!(seen.len(), 200);
        for (key, item) in (1..=200_u8).zip(&seen) {
            assert_eq!((item.key[0], item.bytes.len(), item.descriptors), (key, 500, key % 5));
        }
    }

    #[test]
    fn an_update_keeps_the_descriptors_and_a_wrong_count_changes_nothing() {
        let mut store = Store::default();
        store.apply(&[], vec![item(1, b"a", 1)], vec![null()]).unwrap();
        store.apply(&[], vec![item(1, b"b", 0)], vec![]).unwrap();
        assert!(store.apply(&[vec![1]], vec![item(2, b"c", 2)], vec![null()]).is_err());
        let (items, descriptors) = store.page(&[]);
        assert_eq!((items[0].bytes.as_slice(), descriptors.len()), (&b"b"[..], 1));
        store.apply(&[vec![1]], vec![], vec![]).unwrap();
        assert_eq!(store.len(), 0);
    }
}
