//! The disks that a power cut may leave.

use super::Simulation;
use super::history::{Certainty, NameChange};
use super::image::{Image, SECTOR_BYTES};
use super::random::Random;

/// Above this many uncertain changes of names the sets are drawn, not enumerated.
const NAME_CHANGES: usize = 10;

/// How [`CrashStates`] are chosen.
#[derive(Debug, Clone, Copy)]
pub struct CrashOptions {
    /// Up to this many states all are visited; of more, this many are drawn.
    pub limit: usize,
    /// Of what is drawn, and of the garbage.
    pub seed: u64,
    /// Whether a sector may also hold what nobody wrote there.
    pub garbage: bool,
}

impl Default for CrashOptions {
    fn default() -> Self {
        Self { limit: 4096, seed: 1, garbage: true }
    }
}

#[derive(Debug)]
struct Sector {
    content: usize,
    number: usize,
    /// What it may hold; the first is what is durable.
    choices: Vec<Vec<u8>>,
    /// Which of them was written last.
    newest: usize,
}

/// All disks that a power cut at one point of the history may leave, or a sample of them.
///
/// Each sector of a write that is not durable holds, by itself, what was there, what was written, or garbage; changes of names that are not durable are
/// there or not, but none without the earlier ones of the same names.
#[derive(Debug)]
pub struct CrashStates {
    durable: Image,
    changes: Vec<NameChange>,
    /// Which of the changes, as bits. Empty if there are too many to list.
    subsets: Vec<u64>,
    sectors: Vec<Sector>,
    total: Option<usize>,
    limit: usize,
    next: usize,
    random: Random,
}

impl CrashStates {
    pub(super) fn new(certainty: Certainty, options: CrashOptions) -> Self {
        let mut random = Random::new(options.seed);
        let Certainty { durable, loose, changes, .. } = certainty;
        let mut sectors = Vec::new();
        for ((content, number), candidates) in loose {
            let mut choices = vec![durable.contents[content].sector(number)];
            let mut newest = 0;
            for candidate in &candidates {
                let known = choices.iter().position(|choice| choice == candidate.bytes());
                newest = known.unwrap_or(choices.len());
                if known.is_none() {
                    choices.push(candidate.bytes().to_vec());
                }
            }
            if options.garbage {
                choices.push(garbage(&mut random, choices[0].len()));
            }
            if choices.len() > 1 {
                sectors.push(Sector { content, number, choices, newest });
            }
        }
        let subsets = subsets(&changes);
        let mut total = (!subsets.is_empty()).then_some(subsets.len());
        for sector in &sectors {
            total = total.and_then(|total| total.checked_mul(sector.choices.len()));
        }
        let total = total.filter(|total| *total <= options.limit);
        Self { durable, changes, subsets, sectors, total, limit: options.limit, next: 0, random }
    }

    /// Whether every possible disk is among them.
    #[must_use]
    pub fn is_exhaustive(&self) -> bool {
        self.total.is_some()
    }

    /// The choices of the state with this number, in order.
    fn enumerated(&self, mut number: usize) -> (u64, Vec<usize>) {
        let subset = self.subsets[number % self.subsets.len()];
        number /= self.subsets.len();
        let choices = self.sectors.iter().map(|sector| {
            let choice = number % sector.choices.len();
            number /= sector.choices.len();
            choice
        });
        (subset, choices.collect())
    }

    /// The extremes first; then patterns by turns, because independent sectors alone would never draw the states that are hard for a
    /// recovery: nearly everything there, nearly nothing, a beginning.
    fn drawn(&mut self, number: usize) -> (u64, Vec<usize>) {
        let subset = self.drawn_subset(number);
        let count = self.sectors.len();
        let cut = if count == 0 { 0 } else { self.random.below(count + 1) };
        let odd = 1 + self.random.below(3);
        let mut choices = Vec::with_capacity(count);
        for index in 0..count {
            let choice = match number {
                0 => 0,
                1 => self.newest(index),
                _ => match number % 5 {
                    0 => self.any(index),
                    1 if index < cut => self.newest(index),
                    1 => 0,
                    2 if index < cut => 0,
                    2 => self.newest(index),
                    3 if self.random.below(count.max(1)) < odd => self.any(index),
                    3 => self.newest(index),
                    _ if self.random.below(count.max(1)) < odd => self.any(index),
                    _ => 0,
                },
            };
            choices.push(choice);
        }
        (subset, choices)
    }

    fn drawn_subset(&mut self, number: usize) -> u64 {
        if !self.subsets.is_empty() {
            let last = self.subsets.len() - 1;
            return match number {
                0 => self.subsets[0],
                1 => self.subsets[last],
                _ => self.subsets[self.random.below(self.subsets.len())],
            };
        }
        // Too many to list: a beginning is always possible.
        let kept = self.random.below(self.changes.len().min(63) + 1);
        (1 << kept) - 1
    }

    fn any(&mut self, index: usize) -> usize {
        let choices = self.sectors[index].choices.len();
        self.random.below(choices)
    }

    fn newest(&self, index: usize) -> usize {
        self.sectors[index].newest
    }

    fn build(&self, subset: u64, choices: &[usize]) -> Simulation {
        let mut image = self.durable.clone();
        for (index, change) in self.changes.iter().enumerate().take(64) {
            if subset & (1 << index) != 0 {
                change.action.apply(&mut image);
            }
        }
        for (sector, choice) in self.sectors.iter().zip(choices) {
            if *choice != 0 {
                let offset = sector.number * SECTOR_BYTES;
                image.write(sector.content, offset, &sector.choices[*choice]);
            }
        }
        Simulation::from_image(image)
    }
}

impl Iterator for CrashStates {
    type Item = Simulation;

    fn next(&mut self) -> Option<Simulation> {
        let number = self.next;
        if number >= self.total.unwrap_or(self.limit) {
            return None;
        }
        self.next += 1;
        let (subset, choices) =
            if self.total.is_some() { self.enumerated(number) } else { self.drawn(number) };
        Some(self.build(subset, &choices))
    }
}

/// All sets of changes that a disk may hold, from none to all of them; none at all if they are too many to list.
fn subsets(changes: &[NameChange]) -> Vec<u64> {
    if changes.len() > NAME_CHANGES {
        return Vec::new();
    }
    let possible = |subset: &u64| {
        let has = |index: usize| subset & (1 << index) != 0;
        (0..changes.len()).filter(|later| has(*later)).all(|later| {
            (0..later).all(|earlier| has(earlier) || !changes[later].needs(&changes[earlier]))
        })
    };
    (0..1_u64 << changes.len()).filter(possible).collect()
}

fn garbage(random: &mut Random, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.next().to_le_bytes()[0] | 1).collect()
}
