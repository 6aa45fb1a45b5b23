//! `ringmain serve`, and the hidden `broker` that it starts.

use std::fs;
use std::path::Path;

use ringmain::daemon::{self, DaemonError, JournalBackend, Limits, ServeOptions, ShardOptions};
use serde::Deserialize;

use super::Socket;
use super::args::{BackendArg, ServeArgs};
use super::exit::{Exit, Failure, Outcome};
use super::units;

/// Shortest file of a journal.
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// Longest file of a journal.
const SEGMENT_BYTES_MAX: u64 = 4 << 30;

pub(crate) fn run(socket: &Socket, args: ServeArgs) -> Outcome {
    daemon::serve(&options(socket, args)?).map_err(|error| failure(&error))
}

pub(crate) fn broker() -> Outcome {
    daemon::broker_main().map_err(|error| failure(&error))
}

/// Defaults, then the file, then the flags.
fn options(socket: &Socket, args: ServeArgs) -> Outcome<ServeOptions> {
    checked(&args)?;
    let file = args.config.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
    let default = Limits::default();
    let mut options = ServeOptions::new(socket.path());
    options.data_dir = args.data_dir;
    options.shards = ShardOptions {
        cpu: args.shard_cpu,
        backend: args.journal_backend.map_or_else(JournalBackend::default, backend),
        segment_bytes: args.segment_size,
    };
    options.limits = Limits {
        queues: args.limit_queues.or(file.limit_queues).unwrap_or(default.queues),
        bytes: args
            .limit_bytes
            .or_else(|| file.limit_bytes.map(|size| size.0))
            .unwrap_or(default.bytes),
        handles: args.limit_handles.or(file.limit_handles).unwrap_or(default.handles),
    };
    options.force_no_membarrier = args.force_no_membarrier;
    options.force_no_peer_pidfd = args.force_no_peer_pidfd;
    Ok(options)
}

/// What is wrong without looking at the host.
fn checked(args: &ServeArgs) -> Outcome {
    const BLOCK_BYTES: u64 = ringmain::disk::BLOCK_BYTES as u64;
    let Some(bytes) = args.segment_size else {
        return Ok(());
    };
    let possible = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
    if possible.contains(&bytes) && bytes.is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    Err(Failure::usage(format_args!(
        "--segment-size {bytes}: must be a multiple of 4 KiB from {} to {}",
        units::bytes(SEGMENT_BYTES_MIN),
        units::bytes(SEGMENT_BYTES_MAX)
    )))
}

fn backend(backend: BackendArg) -> JournalBackend {
    match backend {
        BackendArg::Auto => JournalBackend::Auto,
        BackendArg::Uring => JournalBackend::Uring,
        BackendArg::Blocking => JournalBackend::Blocking,
    }
}

fn failure(error: &DaemonError) -> Failure {
    let exit = match error.exit_code() {
        65 => Exit::Data,
        69 => Exit::Unavailable,
        73 => Exit::Exists,
        74 => Exit::Io,
        77 => Exit::NotPermitted,
        78 => Exit::Config,
        _ => Exit::Internal,
    };
    Failure::new(exit, error)
}

/// The file behind `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    limit_queues: Option<u32>,
    limit_bytes: Option<Size>,
    limit_handles: Option<u32>,
}

impl ConfigFile {
    fn read(path: &Path) -> Outcome<Self> {
        let text = fs::read_to_string(path).map_err(|error| {
            match Failure::file(path, "read", &error) {
                // A daemon without its configuration is a configuration error.
                Failure::Message { message, .. } => Failure::new(Exit::Config, message),
                other => other,
            }
        })?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::new(Exit::Config, format_args!("{}: {error}", path.display()))
        })
    }
}

/// Bytes as a number or as text with a unit.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "SizeText")]
struct Size(u64);

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Self, String> {
        match text {
            SizeText::Bytes(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => units::parse_size(&text).map(Self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_the_file_are_numbers_or_text() {
        for (text, bytes) in [("{\"limit_bytes\": 42}", 42), ("{\"limit_bytes\": \"1M\"}", 1 << 20)]
        {
            let file: ConfigFile = serde_json::from_str(text).unwrap();
            assert_eq!(file.limit_bytes.unwrap().0, bytes);
        }
        assert!(serde_json::from_str::<ConfigFile>("{\"limit_bytes\": \"much\"}").is_err());
        assert!(serde_json::from_str::<ConfigFile>("{\"bytes\": 1}").is_err());
    }
}
