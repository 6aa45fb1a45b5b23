//! The `ringmain` command.

use std::path::PathBuf;
use std::process::ExitCode;

use ringmain::daemon::{DaemonError, ServeOptions, broker_main, serve};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringmain: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), DaemonError> {
    let mut arguments = std::env::args().skip(1);
    let usage = || DaemonError::Config("usage: ringmain serve --socket PATH".to_owned());
    match arguments.next().as_deref() {
        Some("broker") => broker_main(),
        Some("serve") => {
            let mut options = ServeOptions::new(PathBuf::new());
            while let Some(name) = arguments.next() {
                if name == "--force-no-membarrier" {
                    options.force_no_membarrier = true;
                    continue;
                }
                if name == "--force-no-peer-pidfd" {
                    options.force_no_peer_pidfd = true;
                    continue;
                }
                let value = arguments.next().ok_or_else(usage)?;
                let number = || value.parse().map_err(|_| usage());
                match name.as_str() {
                    "--socket" => options.socket = PathBuf::from(value),
                    "--data-dir" => options.data_dir = Some(PathBuf::from(value)),
                    "--limit-queues" => options.limits.queues = number()?,
                    "--limit-handles" => options.limits.handles = number()?,
                    "--limit-bytes" => options.limits.bytes = value.parse().map_err(|_| usage())?,
                    _ => return Err(usage()),
                }
            }
            serve(&options)
        }
        _ => Err(usage()),
    }
}
