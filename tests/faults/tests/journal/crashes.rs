//! Every disk that a power cut could leave.

use ringmain_faults::journal::crash::{Size, resized, run};
use ringmain_faults::journal::forged::{Field, forge};
use ringmain_faults::journal::{kills, torn};
use ringmain_faults::random::Random;

#[test]
fn every_power_cut_is_survived() {
    let seed = Random::seed_from_environment();
    let count = run(seed, Size::from_environment()).unwrap_or_else(|what| panic!("{what}"));
    println!("{count:?}");
    assert!(count.exhaustive_points > 0 && count.nested > 0, "{count:?}");
    assert!(count.cleaned > 20, "{count:?}");
}

/// Each process has longer or shorter segments than the one before, on a disk that is mostly full; at the end everything is acknowledged.
#[test]
fn every_power_cut_is_survived_with_segments_of_any_length_on_a_full_disk() {
    let seed = Random::seed_from_environment();
    let size =
        Size { resized: true, states: 30_000, steps: 600, every: 60, ..Size::from_environment() };
    let count = run(seed, size).unwrap_or_else(|what| panic!("{what}"));
    println!("{count:?}");
    assert!(count.full > 4 && count.cleaned > 20, "{count:?}");
    let count = resized(seed, 100).unwrap_or_else(|what| panic!("{what}"));
    println!("{count:?}");
    assert!(count.full > 100 && count.cleaned > 100, "{count:?}");
}

#[test]
fn what_a_killed_process_left_in_a_cache_is_made_durable() {
    let landed = kills::run(1, 4_000).unwrap_or_else(|what| panic!("{what}"));
    assert!(landed > 3, "{landed}");
}

#[test]
fn what_is_torn_stays_so() {
    let seed = Random::seed_from_environment();
    let seeds = (0..64).map(|number| seed.wrapping_add(number));
    let counts = seeds.map(|seed| torn::run(seed).unwrap_or_else(|what| panic!("{what}")));
    let (states, voided) = counts
        .fold((0, 0), |(states, voided), count| (states + count.states, voided + count.voided));
    assert!(states > 20_000 && voided > 1_000, "{states} states, {voided} times made void");
}

#[test]
fn a_forged_batch_continues_nothing() {
    assert_eq!(forge(Field::None), Ok(true));
    for field in Field::WRONG {
        assert_eq!(forge(field), Ok(false), "{field:?}");
    }
}
