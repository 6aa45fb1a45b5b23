//! Kill loops with real daemons, see `docs/testing.md`.

fn main() {
    std::process::exit(ringmain_faults::kill_loops::run(std::env::args().skip(1)));
}
