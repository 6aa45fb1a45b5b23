//! `ringmain serve`, and the hidden `broker` that it starts.

use std::fs;
use std::path::Path;

use ringmain::daemon::{self, DaemonError, Limits, ServeOptions};
use serde::Deserialize;

use super::Socket;
use super::args::ServeArgs;
use super::exit::{Exit, Failure, Outcome};
use super::units;

pub(crate) fn run(socket: &Socket, args: ServeArgs) -> Outcome {
    daemon::serve(&options(socket, args)?).map_err(|error| failure(&error))
}

pub(crate) fn broker() -> Outcome {
    daemon::broker_main().map_err(|error| failure(&error))
}

/// Defaults, then the file, then the flags.
fn options(socket: &Socket, args: ServeArgs) -> Outcome<ServeOptions> {
    let file = args.config.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
    let default = Limits::default();
    let mut options = ServeOptions::new(socket.path());
    options.data_dir = args.data_dir;
    options.limits = Limits {
        queues: args.queues_per_user.or(file.queues_per_user).unwrap_or(default.queues),
        bytes: args
            .bytes_per_user
            .or_else(|| file.bytes_per_user.map(|size| size.0))
            .unwrap_or(default.bytes),
        handles: args.handles_per_user.or(file.handles_per_user).unwrap_or(default.handles),
    };
    options.force_no_membarrier = args.force_no_membarrier;
    options.force_no_peer_pidfd = args.force_no_peer_pidfd;
    Ok(options)
}

fn failure(error: &DaemonError) -> Failure {
    let exit = match error.exit_code() {
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
    queues_per_user: Option<u32>,
    bytes_per_user: Option<Size>,
    handles_per_user: Option<u32>,
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
        for (text, bytes) in
            [("{\"bytes_per_user\": 42}", 42), ("{\"bytes_per_user\": \"1M\"}", 1 << 20)]
        {
            let file: ConfigFile = serde_json::from_str(text).unwrap();
            assert_eq!(file.bytes_per_user.unwrap().0, bytes);
        }
        assert!(serde_json::from_str::<ConfigFile>("{\"bytes_per_user\": \"much\"}").is_err());
        assert!(serde_json::from_str::<ConfigFile>("{\"bytes\": 1}").is_err());
    }
}
