//! Every disk that a power cut could leave.

use ringmain_faults::journal::crash::{Size, run};
use ringmain_faults::random::Random;

#[test]
fn every_power_cut_is_survived() {
    let seed = Random::seed_from_environment();
    let count = run(seed, Size::from_environment()).unwrap_or_else(|what| panic!("{what}"));
    println!("{count:?}");
    assert!(count.exhaustive_points > 0 && count.nested > 0, "{count:?}");
}
