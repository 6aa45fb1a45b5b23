//! The command line: arguments are parsed, turned into what a command needs, and carried out, in separate types.

mod args;
mod bench;
mod consume;
mod crew;
mod demo;
mod doctor;
mod exit;
mod group;
mod helper;
mod host;
mod journal;
mod output;
mod peek;
mod private;
mod publish;
mod queue;
mod reply;
mod request;
mod serve;
mod signals;
mod statistics;
mod status;
mod units;
mod upgrade;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use ringmain_client::Client;

use args::{Cli, Command};
use exit::{Exit, Failure, Outcome};

/// Parses, runs, and turns the result into an exit code.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(()) | Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(Failure::Message { exit, message }) => {
            output::notice(&message);
            ExitCode::from(exit as u8)
        }
        Err(Failure::Signal(signal)) => signals::die(signal),
    }
}

fn run(cli: Cli) -> Outcome {
    let socket = Socket(cli.socket);
    match cli.command {
        Command::Demo(args) => demo::run(demo::Config::new(args)?),
        Command::Serve(args) => serve::run(&socket, args),
        Command::Status(args) => status::run(&socket, args),
        Command::Upgrade(args) => upgrade::run(&socket, args),
        Command::Queue(command) => queue::run(&socket, command),
        Command::Publish(args) => publish::run(&socket, publish::Config::new(args)?),
        Command::Consume(args) => consume::run(&socket, consume::Config::new(args)),
        Command::Peek(args) => peek::run(&socket, &args),
        Command::Tail(args) => peek::tail(&socket, &args),
        Command::Group(command) => group::run(&socket, &command),
        Command::DeadLetter(command) => peek::dead_letter(&socket, &command),
        Command::Request(args) => request::run(&socket, &args),
        Command::Reply(args) => reply::run(&socket, &args),
        Command::Journal(command) => journal::run(command),
        Command::Bench(command) => bench::run(&socket, command),
        Command::Doctor(args) => doctor::run(&socket, args),
        Command::Broker(_) => serve::broker(),
        Command::Helper => helper::run(),
    }
}

/// Where the daemon listens, if the command line says so.
#[derive(Debug)]
struct Socket(Option<PathBuf>);

impl Socket {
    fn connect(&self) -> Outcome<Client> {
        let path = self.path();
        let length = path.as_os_str().len();
        if length > private::SOCKET_PATH_MAX {
            return Err(Failure::new(
                Exit::Config,
                format_args!(
                    "socket path {} has {length} bytes: Unix sockets allow at most {}; choose a \
                     shorter one",
                    path.display(),
                    private::SOCKET_PATH_MAX
                ),
            ));
        }
        Ok(Client::connect(path)?)
    }

    fn path(&self) -> PathBuf {
        self.0.clone().unwrap_or_else(ringmain_client::default_socket)
    }

    fn given(&self) -> Option<&Path> {
        self.0.as_deref()
    }
}

/// Help and version go to stdout; a usage error becomes one line on stderr and exit code 64.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A reader that left (`ringmain --help | head -1`) is no error.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    output::notice(&usage_line(error));
    ExitCode::from(Exit::Usage as u8)
}

/// The first paragraph of clap's text, as one line, and where to read on.
fn usage_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return format!("a command is missing; see '{} --help'", command_words());
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let first = lines.collect::<Vec<_>>().join(" ");
    let first = first.strip_prefix("error: ").unwrap_or(&first);
    format!("{first}; see '{} --help'", command_words())
}

/// The command and its subcommands as far as they were understood.
fn command_words() -> String {
    let definition = Cli::command();
    let mut command = &definition;
    let mut words = vec!["ringmain".to_string()];
    // Not `args`: it panics at an argument that is not UTF-8.
    for argument in std::env::args_os().skip(1) {
        if let Some(subcommand) = command.find_subcommand(&argument) {
            command = subcommand;
            words.push(subcommand.get_name().to_string());
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_usage_error_is_one_line() {
        for line in [
            &["ringmain", "queue", "create"][..],
            &["ringmain", "queue", "create", "a", "--slots", "many"],
            &["ringmain", "nonsense"],
            &["ringmain", "queue"],
            &["ringmain"],
        ] {
            let text = usage_line(&Cli::try_parse_from(line).expect_err("accepted"));
            assert!(!text.contains('\n') && text.contains("--help'"), "{line:?}: {text}");
        }
    }
}
