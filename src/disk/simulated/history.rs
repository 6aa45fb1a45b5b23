//! What was done to a disk, and what of it is certain.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::image::{Content, Image, SECTOR_BYTES};

/// Something that happened. The number of an operation is the place of its `Begin`.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Begin(Action),
    /// The operation came back, well or with an error.
    End {
        begin: usize,
        well: bool,
    },
    /// The operation will never come back: its process was killed. What it did is told by other events.
    Abandon {
        begin: usize,
    },
    /// A new process looks at the disk.
    Restart,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Write { content: usize, offset: usize, bytes: Arc<[u8]>, durable: bool },
    Sync { content: usize },
    Create { name: String, content: usize, length: usize },
    Rename { from: String, to: String },
    Remove { name: String },
    SyncDirectory,
}

impl Action {
    fn names(&self) -> Vec<&str> {
        match self {
            Self::Create { name, .. } | Self::Remove { name } => vec![name],
            Self::Rename { from, to } => vec![from, to],
            Self::Write { .. } | Self::Sync { .. } | Self::SyncDirectory => Vec::new(),
        }
    }

    /// What it does to the names.
    pub(super) fn apply(&self, image: &mut Image) {
        match self {
            Self::Create { name, content, .. } => {
                image.names.insert(name.clone(), *content);
            }
            Self::Rename { from, to } => {
                if let Some(content) = image.names.remove(from) {
                    image.names.insert(to.clone(), content);
                }
            }
            Self::Remove { name } => {
                image.names.remove(name);
            }
            Self::Write { .. } | Self::Sync { .. } | Self::SyncDirectory => {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    InFlight,
    /// It came back, at this place in the history. A sync that begins later makes it durable.
    Ended(usize),
    /// It failed: it may be there or not, and no sync changes that.
    Failed,
    /// It came back, but the sync after it failed. For a sync of the same process it counts as written.
    Unsynced,
}

/// What a sector may hold after a power cut, beside what is durable.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    begin: usize,
    standing: Standing,
    bytes: Arc<[u8]>,
    within: Range<usize>,
}

impl Candidate {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.within.clone()]
    }
}

/// A change of names that a power cut may undo.
#[derive(Debug, Clone)]
pub(super) struct NameChange {
    begin: usize,
    standing: Standing,
    pub(super) action: Action,
}

impl NameChange {
    /// Whether this change cannot be on the disk without the earlier one.
    pub(super) fn needs(&self, earlier: &Self) -> bool {
        let theirs = earlier.action.names();
        self.action.names().iter().any(|name| theirs.contains(name))
    }
}

/// What is certain at a point of the history, and what is not.
#[derive(Debug, Clone)]
pub(super) struct Certainty {
    /// On stable storage.
    pub(super) durable: Image,
    /// Sectors, by content and number, that may hold something else.
    pub(super) loose: BTreeMap<(usize, usize), Vec<Candidate>>,
    /// Changes of names, in order, that may be there or not.
    pub(super) changes: Vec<NameChange>,
    actions: BTreeMap<usize, Action>,
}

impl Certainty {
    pub(super) fn of(initial: &Image, history: &[Event]) -> Self {
        let mut certainty = Self {
            durable: initial.clone(),
            loose: BTreeMap::new(),
            changes: Vec::new(),
            actions: BTreeMap::new(),
        };
        for (place, event) in history.iter().enumerate() {
            match event {
                Event::Begin(action) => certainty.begin(place, action),
                Event::End { begin, well } => certainty.end(place, *begin, *well),
                Event::Abandon { begin } => certainty.abandon(*begin),
                Event::Restart => certainty.restart(place),
            }
        }
        certainty
    }

    fn begin(&mut self, begin: usize, action: &Action) {
        self.actions.insert(begin, action.clone());
        match action {
            Action::Write { content, offset, bytes, .. } => {
                for start in (0..bytes.len()).step_by(SECTOR_BYTES) {
                    let within = start..(start + SECTOR_BYTES).min(bytes.len());
                    let candidate = Candidate {
                        begin,
                        standing: Standing::InFlight,
                        bytes: bytes.clone(),
                        within,
                    };
                    let sector = (*content, (offset + start) / SECTOR_BYTES);
                    self.loose.entry(sector).or_default().push(candidate);
                }
            }
            Action::Create { content, length, .. } => {
                // Contents are numbered in the order of their creation, here as on the live disk.
                while self.durable.contents.len() <= *content {
                    self.durable.contents.push(Arc::new(Content::zeros(0)));
                }
                self.durable.contents[*content] = Arc::new(Content::zeros(*length));
                self.change(begin, action);
            }
            Action::Rename { .. } | Action::Remove { .. } => self.change(begin, action),
            Action::Sync { .. } | Action::SyncDirectory => {}
        }
    }

    fn change(&mut self, begin: usize, action: &Action) {
        let standing = Standing::InFlight;
        self.changes.push(NameChange { begin, standing, action: action.clone() });
    }

    fn end(&mut self, place: usize, begin: usize, well: bool) {
        let Some(action) = self.actions.remove(&begin) else { return };
        match action {
            Action::Write { content, offset, bytes, durable } => {
                let first = offset / SECTOR_BYTES;
                let sectors = first..first + bytes.len().div_ceil(SECTOR_BYTES);
                for sector in sectors {
                    self.end_sector((content, sector), place, begin, well, durable);
                }
            }
            Action::Sync { content } => self.synced(content, begin, well),
            Action::Create { .. } | Action::Remove { .. } => {
                if well {
                    self.settle_change(begin);
                } else {
                    self.stand(begin, Standing::Failed);
                }
            }
            // A rename that failed did not happen.
            Action::Rename { .. } if !well => self.changes.retain(|change| change.begin != begin),
            Action::Rename { .. } => self.stand(begin, Standing::Ended(place)),
            Action::SyncDirectory => self.directory_synced(begin, well),
        }
    }

    fn stand(&mut self, begin: usize, standing: Standing) {
        for change in self.changes.iter_mut().filter(|change| change.begin == begin) {
            change.standing = standing;
        }
    }

    fn end_sector(
        &mut self,
        sector: (usize, usize),
        place: usize,
        begin: usize,
        well: bool,
        durable: bool,
    ) {
        let Some(candidates) = self.loose.get_mut(&sector) else { return };
        let Some(written) = candidates.iter_mut().find(|candidate| candidate.begin == begin) else {
            return;
        };
        if !well {
            written.standing = Standing::Failed;
        } else if durable {
            let bytes = written.bytes().to_vec();
            candidates.retain(|other| other.begin != begin && other.standing == Standing::InFlight);
            if candidates.is_empty() {
                self.loose.remove(&sector);
            }
            self.durable.write(sector.0, sector.1 * SECTOR_BYTES, &bytes);
        } else {
            written.standing = Standing::Ended(place);
        }
    }

    fn synced(&mut self, content: usize, sync: usize, well: bool) {
        let before = |standing| matches!(standing, Standing::Ended(at) if at < sync);
        let sectors: Vec<_> =
            self.loose.range((content, 0)..(content + 1, 0)).map(|(sector, _)| *sector).collect();
        for sector in sectors {
            let Some(candidates) = self.loose.get_mut(&sector) else { continue };
            if !well {
                for candidate in candidates.iter_mut().filter(|one| before(one.standing)) {
                    candidate.standing = Standing::Unsynced;
                }
                continue;
            }
            // Of several writes to a sector the one that came back last holds.
            let last = candidates.iter().rfind(|one| before(one.standing));
            if let Some(bytes) = last.map(|last| last.bytes().to_vec()) {
                candidates.retain(|one| !before(one.standing));
                if candidates.is_empty() {
                    self.loose.remove(&sector);
                }
                self.durable.write(sector.0, sector.1 * SECTOR_BYTES, &bytes);
            }
        }
    }

    fn directory_synced(&mut self, sync: usize, well: bool) {
        let before = |standing| matches!(standing, Standing::Ended(at) if at < sync);
        if !well {
            for change in self.changes.iter_mut().filter(|change| before(change.standing)) {
                change.standing = Standing::Unsynced;
            }
            return;
        }
        while let Some(begin) =
            self.changes.iter().find(|change| before(change.standing)).map(|change| change.begin)
        {
            self.settle_change(begin);
        }
    }

    /// Makes a change of names durable, with all the earlier ones that it cannot be there without.
    fn settle_change(&mut self, begin: usize) {
        let Some(index) = self.changes.iter().position(|change| change.begin == begin) else {
            return;
        };
        let mut chosen = BTreeSet::from([index]);
        for earlier in (0..index).rev() {
            if chosen.iter().any(|later| self.changes[*later].needs(&self.changes[earlier])) {
                chosen.insert(earlier);
            }
        }
        for index in &chosen {
            self.changes[*index].action.apply(&mut self.durable);
        }
        let mut index = 0;
        self.changes.retain(|_| {
            index += 1;
            !chosen.contains(&(index - 1))
        });
    }

    fn abandon(&mut self, begin: usize) {
        self.actions.remove(&begin);
        self.loose.retain(|_, candidates| {
            candidates.retain(|candidate| candidate.begin != begin);
            !candidates.is_empty()
        });
        self.changes.retain(|change| change.begin != begin);
    }

    /// What the process before could not sync, the next one reads from the disk and can.
    fn restart(&mut self, place: usize) {
        let changes = self.changes.iter_mut().map(|change| &mut change.standing);
        let sectors = self.loose.values_mut().flatten().map(|candidate| &mut candidate.standing);
        for standing in changes.chain(sectors) {
            if *standing == Standing::Unsynced {
                *standing = Standing::Ended(place);
            }
        }
    }
}
