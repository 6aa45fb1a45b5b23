//! The hostile peer, see `docs/testing.md`. Forks, so it has no test harness.

fn main() {
    std::process::exit(ringmain_faults::hostile::run(std::env::args().skip(1)));
}
