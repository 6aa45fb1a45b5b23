//! Rot, missing ends, unreadable blocks, errors of every call.

use ringmain_faults::journal::errors::{everywhere, far_reads, voiding};
use ringmain_faults::journal::repairs;
use ringmain_faults::journal::rot::{Sample, flips, truncations, unreadable};
use ringmain_faults::random::Random;

/// A sample with old batches in files that are kept for use again, some of them with messages that the cleaner has copied.
pub(super) const KEEPS: u64 = 28;

fn is_long() -> bool {
    std::env::var("RINGMAIN_CRASH").is_ok_and(|size| size == "long")
}

#[test]
fn a_flipped_byte_is_noticed_or_has_no_witness() {
    let seed = Random::seed_from_environment();
    let step = if is_long() { 1 } else { 13 };
    let first = usize::try_from(seed % 13).expect("below 13");
    // The second one keeps freed files.
    for (sample, keeps) in [(1, false), (KEEPS, true)] {
        let sample = Sample::new(sample, 3).unwrap_or_else(|what| panic!("{what}"));
        let flips = flips(&sample, step, first).unwrap_or_else(|what| panic!("{what}"));
        println!("{flips:?}");
        assert!(flips.verdicts.iter().all(|count| *count > 0), "{flips:?}");
        assert!(flips.free > 0 && (flips.copied > 100 || !keeps), "{flips:?}");
    }
}

#[test]
fn a_missing_end_is_noticed_or_has_no_witness() {
    for sample in [2, KEEPS] {
        let sample = Sample::new(sample, 3).unwrap_or_else(|what| panic!("{what}"));
        let counts = truncations(&sample, if is_long() { 1 } else { 97 });
        println!("{:?}", counts.unwrap_or_else(|what| panic!("{what}")));
    }
}

#[test]
fn an_unreadable_block_is_no_end() {
    for sample in [3, KEEPS] {
        let sample = Sample::new(sample, 3).unwrap_or_else(|what| panic!("{what}"));
        let counts = unreadable(&sample).unwrap_or_else(|what| panic!("{what}"));
        println!("{counts:?}");
    }
}

#[test]
fn an_error_at_every_call_is_told_and_nothing_confirmed_is_lost() {
    let faults = everywhere(1).unwrap_or_else(|what| panic!("{what}"));
    println!("{faults} faults");
    assert!(faults > 300);
}

#[test]
fn an_error_of_any_read_of_a_backlog_is_told() {
    let faults = far_reads().unwrap_or_else(|what| panic!("{what}"));
    assert!(faults >= 25, "{faults}");
}

#[test]
fn a_torn_beginning_that_cannot_be_overwritten_fails_the_journal() {
    let faults = voiding().unwrap_or_else(|what| panic!("{what}"));
    assert!(faults >= 25, "{faults}");
}

#[test]
fn a_repair_loses_what_it_says_and_deletes_nothing() {
    let sample = Sample::new(4, 3).unwrap_or_else(|what| panic!("{what}"));
    let count = repairs::everywhere(&sample).unwrap_or_else(|what| panic!("{what}"));
    println!("{count:?}");
    assert!(count.mended > 0, "{count:?}");
}
