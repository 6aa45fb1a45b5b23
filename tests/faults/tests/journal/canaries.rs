//! Every planted bug is caught by a suite, by its own checks; the same suites pass without it.

use std::panic::catch_unwind;

use ringmain::journal::canary::{Canary, plant};
use ringmain_faults::journal::crash::{Size, run};
use ringmain_faults::journal::forged::{Field, forge};
use ringmain_faults::journal::rot::{Sample, flips, unreadable};
use ringmain_faults::journal::{kills, torn};

use super::damage::KEEPS;

/// Whether one of the suites notices it.
fn caught(canary: Canary, suite: impl Fn() -> Result<(), String> + std::panic::UnwindSafe) {
    plant(Some(canary));
    let outcome = catch_unwind(suite);
    plant(None);
    match outcome {
        Ok(Ok(())) => panic!("nobody notices {canary:?}"),
        Ok(Err(what)) => println!("{canary:?}: {what}"),
        Err(_) => println!("{canary:?}: a panic"),
    }
}

fn power_cuts() -> Result<(), String> {
    (7..13).try_for_each(|seed| run(seed, Size::TINY).map(|count| println!("{count:?}")))
}

macro_rules! power_cut_canaries {
    ($($test:ident: $canary:ident,)*) => {
        $(
            #[test]
            fn $test() {
                caught(Canary::$canary, power_cuts);
            }
        )*
    };
}

power_cut_canaries! {
    skip_sync: SkipSync,
    confirm_early: ConfirmEarly,
    confirm_out_of_order: ConfirmOutOfOrder,
    drop_checkpoint_record: DropCheckpointRecord,
    reuse_early: ReuseEarly,
    free_before_copies: FreeBeforeCopies,
    prefer_old_place: PreferOldPlace,
    replay_copies: ReplayCopies,
}

/// Processes that are killed when they have hardly begun: what they made is mostly not durable when the next one finds it.
fn short_lives() -> Result<(), String> {
    let size = Size { steps: 12, every: 1, ..Size::TINY };
    (7..13).try_for_each(|seed| run(seed, size).map(|count| println!("{count:?}")))
}

#[test]
fn skip_directory_sync() {
    caught(Canary::SkipDirectorySync, short_lives);
}

#[test]
fn without_a_bug_nobody_complains() {
    for suite in [power_cuts, short_lives] {
        suite().unwrap_or_else(|what| panic!("{what}"));
    }
}

#[test]
fn cut_on_read_error() {
    caught(Canary::CutOnReadError, || {
        unreadable(&Sample::new(3, 1)?).map(|counts| println!("{counts:?}"))
    });
}

#[test]
fn cut_witnessed() {
    caught(Canary::CutWitnessed, || flips(&Sample::new(1, 3)?, 97, 0).map(drop));
}

#[test]
fn need_stale() {
    caught(Canary::NeedStale, || flips(&Sample::new(KEEPS, 3)?, 97, 0).map(drop));
}

#[test]
fn trust_body() {
    caught(Canary::TrustBody, || flips(&Sample::new(KEEPS, 3)?, 97, 0).map(drop));
}

#[test]
fn samples_without_a_bug_pass() {
    for sample in [1, KEEPS] {
        let sample = Sample::new(sample, 3).unwrap_or_else(|what| panic!("{what}"));
        flips(&sample, 97, 0).unwrap_or_else(|what| panic!("{what}"));
    }
}

#[test]
fn skip_open_sync() {
    caught(Canary::SkipOpenSync, || kills::run(1, 4_000).map(drop));
}

#[test]
fn complete_torn() {
    caught(Canary::CompleteTorn, || torn::run(1).map(|count| println!("{count:?}")));
}

#[test]
fn repeat_incarnation() {
    caught(Canary::RepeatIncarnation, || torn::run(1).map(|count| println!("{count:?}")));
}

#[test]
fn nearest_message() {
    caught(Canary::NearestMessage, || {
        super::far::run(0, 1_500);
        Ok(())
    });
}

#[test]
fn ignore_incarnation() {
    caught(Canary::IgnoreIncarnation, || forge(Field::Incarnation).map(drop));
}

#[test]
fn ignore_epoch() {
    caught(Canary::IgnoreEpoch, || forge(Field::Epoch).map(drop));
}
