//! `ringmain bench rtt|throughput|deaths|durable|replay`: figures between processes, with their conditions.

pub(crate) mod deaths;
pub(crate) mod durable;
pub(crate) mod lateness;
pub(crate) mod lines;
pub(crate) mod load;
pub(crate) mod pair;
pub(crate) mod pairs;
pub(crate) mod queues;
pub(crate) mod replay;
pub(crate) mod rtt;
pub(crate) mod throughput;

use super::Socket;
use super::args::BenchCommand;
use super::exit::Outcome;

pub(crate) fn run(socket: &Socket, command: BenchCommand) -> Outcome {
    match command {
        BenchCommand::Rtt(args) => rtt::run(socket, &args),
        BenchCommand::Throughput(args) => throughput::run(socket, &args),
        BenchCommand::Deaths(args) => deaths::run(socket, &args),
        BenchCommand::Durable(args) => durable::run(socket, &args),
        BenchCommand::Replay(args) => replay::run(socket, &args),
    }
}
