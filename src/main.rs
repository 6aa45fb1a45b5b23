//! The command line of ringmain: exit codes and nothing else; `cli` does the rest.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
