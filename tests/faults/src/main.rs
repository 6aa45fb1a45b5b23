//! The fault suites as a program: `ringmain-faults kill-sweep|hostile|stress|kill-loops [FILTER ...]`. The canary test runs it.

fn main() {
    let mut arguments = std::env::args().skip(1);
    let code = match arguments.next().as_deref() {
        Some("kill-sweep") => ringmain_faults::sweep::run(arguments),
        Some("hostile") => ringmain_faults::hostile::run(arguments),
        Some("stress") => ringmain_faults::stress::run(arguments),
        Some("kill-loops") => ringmain_faults::kill_loops::run(arguments),
        _ => {
            eprintln!("usage: ringmain-faults kill-sweep|hostile|stress|kill-loops [FILTER ...]");
            64
        }
    };
    std::process::exit(code);
}
