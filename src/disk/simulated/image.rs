//! What a disk holds: names and contents, cheap to copy.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::super::BLOCK_BYTES;

/// The smallest unit that a power cut leaves whole.
pub(super) const SECTOR_BYTES: usize = 512;

type Block = [u8; BLOCK_BYTES];

static ZEROS: LazyLock<Arc<Block>> = LazyLock::new(|| Arc::new([0; BLOCK_BYTES]));

/// The bytes of a file. Copies share the blocks in which they do not differ.
#[derive(Debug, Clone)]
pub(super) struct Content {
    blocks: Vec<Arc<Block>>,
    length: usize,
}

impl Content {
    pub(super) fn zeros(length: usize) -> Self {
        let blocks = vec![ZEROS.clone(); length.div_ceil(BLOCK_BYTES)];
        Self { blocks, length }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Self::zeros(bytes.len());
        content.write(0, bytes);
        content
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Copies what lies inside the file; how many bytes that were.
    pub(super) fn read(&self, offset: usize, target: &mut [u8]) -> usize {
        let whole = self.length.saturating_sub(offset).min(target.len());
        let mut done = 0;
        while done < whole {
            let (block, start) = ((offset + done) / BLOCK_BYTES, (offset + done) % BLOCK_BYTES);
            let step = (BLOCK_BYTES - start).min(whole - done);
            target[done..done + step].copy_from_slice(&self.blocks[block][start..start + step]);
            done += step;
        }
        whole
    }

    /// Copies what lies inside the file: files do not grow.
    pub(super) fn write(&mut self, offset: usize, source: &[u8]) {
        let whole = self.length.saturating_sub(offset).min(source.len());
        let mut done = 0;
        while done < whole {
            let (block, start) = ((offset + done) / BLOCK_BYTES, (offset + done) % BLOCK_BYTES);
            let step = (BLOCK_BYTES - start).min(whole - done);
            Arc::make_mut(&mut self.blocks[block])[start..start + step]
                .copy_from_slice(&source[done..done + step]);
            done += step;
        }
    }

    pub(super) fn truncate(&mut self, length: usize) {
        if length < self.length {
            self.length = length;
            self.blocks.truncate(length.div_ceil(BLOCK_BYTES));
        }
    }

    /// One sector, or what there is of it at the end of the file.
    pub(super) fn sector(&self, sector: usize) -> Vec<u8> {
        let start = sector * SECTOR_BYTES;
        let mut bytes = vec![0; self.length.saturating_sub(start).min(SECTOR_BYTES)];
        self.read(start, &mut bytes);
        bytes
    }
}

/// Names, and the contents they stand for. A content keeps its number for ever, under whatever name.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    pub(super) names: BTreeMap<String, usize>,
    pub(super) contents: Vec<Arc<Content>>,
}

impl Image {
    pub(super) fn write(&mut self, content: usize, offset: usize, bytes: &[u8]) {
        Arc::make_mut(&mut self.contents[content]).write(offset, bytes);
    }

    pub(super) fn named(&self, name: &str) -> Option<&Content> {
        self.names.get(name).map(|number| &*self.contents[*number])
    }
}
