//! The kill sweep, see `docs/testing.md`. Forks, so it has no test harness.

fn main() {
    std::process::exit(ringmain_faults::sweep::run(std::env::args().skip(1)));
}
