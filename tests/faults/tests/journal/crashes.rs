//! Every disk that a power cut could leave.

use ringmain_faults::journal::crash::{Size, run};
use ringmain_faults::journal::forged::{Field, forge};
use ringmain_faults::journal::kills;
use ringmain_faults::random::Random;

#[test]
fn every_power_cut_is_survived() {
    let seed = Random::seed_from_environment();
    let count = run(seed, Size::from_environment()).unwrap_or_else(|what| panic!("{what}"));
    println!("{count:?}");
    assert!(count.exhaustive_points > 0 && count.nested > 0, "{count:?}");
    assert!(count.cleaned > 20, "{count:?}");
}

#[test]
fn what_a_killed_process_left_in_a_cache_is_made_durable() {
    let landed = kills::run(1, 4_000).unwrap_or_else(|what| panic!("{what}"));
    assert!(landed > 3, "{landed}");
}

#[test]
fn a_forged_batch_continues_nothing() {
    assert_eq!(forge(Field::None), Ok(true));
    for field in Field::WRONG {
        assert_eq!(forge(field), Ok(false), "{field:?}");
    }
}
