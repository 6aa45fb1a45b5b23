//! `ringmain upgrade`: another broker process takes over every ring while the traffic goes on.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ringmain_client::Client;
use ringmain_client::raw::protocol::Status;
use serde_json::json;

use super::Socket;
use super::args::UpgradeArgs;
use super::exit::{Exit, Failure, Outcome};
use super::output::{print_json, print_line};

/// A broker starts in milliseconds; one that takes longer than this does not start.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run(socket: &Socket, args: UpgradeArgs) -> Outcome {
    let binary = args.binary.map(absolute).transpose()?;
    let client = socket.connect()?;
    let before = client.status()?;
    client.upgrade(binary.as_deref())?;
    let after = wait_for_another(&client, &before)?;
    if args.format.json {
        return print_json(&json!({ "before": before, "after": after }));
    }
    print_line(&format!(
        "broker {} (pid {}) took over from {} (pid {}), queues: {}, handles: {}",
        after.version,
        after.broker_pid,
        before.version,
        before.broker_pid,
        after.queues,
        after.handles
    ))
}

/// The daemon has another working directory, and the file may be missing: better said here. With the code that the
/// daemon's refusal of a file has that is there but does not run.
fn absolute(path: PathBuf) -> Outcome<PathBuf> {
    path.canonicalize().map_err(|error| {
        Failure::new(
            Exit::Io,
            format_args!("cannot start the binary {}: {error}; name another one", path.display()),
        )
    })
}

fn wait_for_another(client: &Client, before: &Status) -> Outcome<Status> {
    let start = Instant::now();
    loop {
        match client.status() {
            Ok(status) if status.broker_starts > before.broker_starts => return Ok(status),
            Err(error) if start.elapsed() >= LIMIT => return Err(error.into()),
            Ok(_) if start.elapsed() >= LIMIT => {
                return Err(Failure::new(
                    Exit::Temporary,
                    "the old broker still answers; the daemon's log on its stderr says why",
                ));
            }
            _ => thread::sleep(Duration::from_millis(10)),
        }
    }
}
