//! Marks keep their promises whatever is thinned out, forgotten, stored and read again.

use super::golden::bodies;
use super::programs::Random;
use crate::shard::logic::Logic;
use crate::shard::logic::marks::{Bounds, Mark, Marks};
use crate::shard::logic::record::{self, MessageBody, kind};

/// What the messages of a queue are: time and bytes below, from sequence 1 on.
#[derive(Debug, Default)]
struct Messages {
    all: Vec<Mark>,
    bytes: u64,
}

impl Messages {
    fn push(&mut self, published_ns: u64, bytes: usize) -> u64 {
        let sequence = self.all.len() as u64 + 1;
        self.all.push(Mark { sequence, published_ns, bytes_below: self.bytes });
        self.bytes += bytes as u64;
        sequence
    }

    fn holds(&self, marks: &Marks) {
        assert_eq!(marks.bytes(), self.bytes);
        let mut last = None;
        for mark in marks.all() {
            assert_eq!(self.all[mark.sequence as usize - 1], *mark);
            assert!(last.is_none_or(|last| last < mark.sequence));
            last = Some(mark.sequence);
        }
    }

    fn is_in(found: Option<u64>, bounds: Bounds, first: u64) {
        let found = found.unwrap_or(u64::MAX);
        // What lies below the first mark may have been forgotten.
        assert!(bounds.from <= found || found <= first, "{found} {bounds:?}");
        assert!(bounds.to.is_none_or(|to| found <= to), "{found} {bounds:?}");
    }

    fn promises(&self, marks: &Marks, random: &mut Random) {
        self.holds(marks);
        let first = marks.all().next().map_or(u64::MAX, |mark| mark.sequence);
        for _ in 0..20 {
            let Some(one) = random.pick(&self.all) else { return };
            let behind = &self.all[one.sequence as usize - 1..];
            if let Some(time_ns) = marks.time_from(one.sequence) {
                assert!(behind.iter().all(|message| message.published_ns >= time_ns));
            } else {
                assert!(one.sequence < first);
            }
            assert!(marks.bytes_below(one.sequence) <= one.bytes_below);
            let at_ns = one.published_ns + random.below(3);
            let at = self.all.iter().find(|message| message.published_ns >= at_ns);
            Self::is_in(at.map(|message| message.sequence), marks.at_time(at_ns), first);
            let bytes = one.bytes_below + random.below(3);
            let at = self.all.iter().find(|message| message.bytes_below >= bytes);
            Self::is_in(at.map(|message| message.sequence), marks.at_bytes(bytes), first);
        }
    }
}

#[test]
fn marks_are_exact_at_their_place_and_bounds_between() {
    for seed in 1..=40u64 {
        let mut random = Random::new(seed);
        let (mut marks, mut messages) = (Marks::default(), Messages::default());
        let mut now_ns = 1_700_000_000_000_000_000;
        let pace = random.below(4);
        let step_bytes = [u64::MAX, 1, 5_000][random.below(3) as usize];
        for _ in 0..30_000 {
            now_ns += match pace {
                0 => random.below(2_000_000),
                1 => 1_000_000 + random.below(5),
                2 if random.below(1000) == 0 => random.below(1 << 45),
                _ => random.below(40_000_000),
            };
            let bytes = if random.below(500) == 0 { 1 << 20 } else { random.below(300) as usize };
            let sequence = messages.push(now_ns, bytes);
            marks.appended(sequence, now_ns, bytes, step_bytes);
            assert!(marks.all().count() <= 4096);
            if random.below(6000) == 0 {
                let below = random.below(sequence + 2);
                marks.forget_below(below);
                messages.promises(&marks, &mut random);
                if below <= sequence {
                    assert!(
                        marks.time_from(below).is_some()
                            || marks.all().all(|mark| mark.sequence > below)
                    );
                }
            }
            if random.below(9000) == 0 {
                let mut again = Marks::default();
                marks.write(|body| again.read(body, sequence + 1, u64::MAX).expect("ours"));
                assert!(again.all().count() <= 1024);
                let last = marks.all().next().map(|_| sequence);
                assert_eq!(again.all().last().map(|mark| mark.sequence), last);
                assert_eq!(again.all().next(), marks.all().next());
                marks = again;
                messages.promises(&marks, &mut random);
            }
            if random.below(20_000) == 0 {
                marks.clear();
            }
        }
        messages.promises(&marks, &mut random);
    }
}

/// Where messages come evenly, a place is known to a part of its age.
#[test]
fn marks_are_as_precise_as_they_are_near() {
    let mut marks = Marks::default();
    let second = 1_000_000_000;
    let end_ns = 1_000_000 * second;
    for sequence in 1..=1_000_000 {
        marks.appended(sequence, sequence * second, 100, u64::MAX);
    }
    for age in [1, 50, 1_000, 70_000, 900_000] {
        let sequence = 1_000_000 - age;
        let time_ns = marks.time_from(sequence).expect("known");
        let off = sequence * second - time_ns;
        assert!(off <= (end_ns - time_ns) / 32 + second, "{age} s ago: {off} ns off");
    }
}

#[test]
fn impossible_marks_are_refused() {
    let body = |marks: &[(u64, u64, u64)], bytes| {
        let mut list = record::MarkList::default();
        list.begin(bytes);
        for &(sequence, published_ns, bytes_below) in marks {
            list.mark(&Mark { sequence, published_ns, bytes_below });
        }
        list.as_bytes().to_vec()
    };
    let read = |body: &[u8]| Marks::default().read(body, 10, 6);
    assert_eq!(read(&body(&[(1, 5, 0), (9, 5, 70)], 80)), Ok(()));
    for (marks, bytes) in [
        (&[(0, 5, 0)][..], 80),
        (&[(10, 5, 0)], 80),
        (&[(3, 5, 0), (3, 6, 0)], 80),
        (&[(3, 5, 81)], 80),
        (&[(3, 7, 0)], 80),
    ] {
        assert!(read(&body(marks, bytes)).is_err(), "{marks:?}");
    }
    for length in 0..body(&[(1, 5, 0), (9, 5, 70)], 80).len() {
        let _ = read(&body(&[(1, 5, 0), (9, 5, 70)], 80)[..length]);
    }
    assert!(bodies().iter().any(|(_, kind, _)| *kind == kind::MARKS));
}

/// The marks of a program's queues, held against what is in its log.
pub(super) fn check(logic: &Logic, log: &super::memory::MemoryLog) -> Result<(), String> {
    for (_, queue) in logic.queues.iter() {
        let mut messages = Messages::default();
        for record in &log.records {
            if record.kind == kind::MESSAGE && record.queue == queue.definition.id {
                let body = MessageBody::parse(&record.body).ok_or("malformed message")?;
                messages.push(body.published_ns, body.metadata.len() + body.payload.len());
            }
        }
        let bytes = queue.marks.bytes();
        if bytes != messages.bytes {
            return Err(format!("{bytes} bytes were published, not {}", messages.bytes));
        }
        if let Some(wrong) =
            queue.marks.all().find(|mark| messages.all[mark.sequence as usize - 1] != **mark)
        {
            return Err(format!("{wrong:?} of queue {}", queue.definition.id));
        }
        let oldest = queue.groups.iter().flat_map(|group| {
            let back = group.back().min();
            back.into_iter().chain((group.fresh < queue.next_sequence).then_some(group.fresh))
        });
        if let Some(oldest) = oldest.min()
            && queue.marks.time_from(oldest).is_none()
            && queue.marks.all().next().is_some()
        {
            return Err(format!("nothing is known of message {oldest}"));
        }
    }
    Ok(())
}
