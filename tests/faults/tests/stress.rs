//! Stress between processes, see `docs/testing.md`. Forks, so it has no test harness.

fn main() {
    std::process::exit(ringmain_faults::stress::run(std::env::args().skip(1)));
}
