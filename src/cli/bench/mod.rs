//! `ringmain bench`: figures between processes, with their conditions.

pub(crate) mod brokered;
pub(crate) mod deaths;
pub(crate) mod durable;
pub(crate) mod fan_out;
pub(crate) mod lateness;
pub(crate) mod lines;
pub(crate) mod load;
pub(crate) mod named;
pub(crate) mod pair;
pub(crate) mod pairs;
pub(crate) mod queues;
pub(crate) mod replay;
pub(crate) mod rtt;
pub(crate) mod soak;
pub(crate) mod throughput;
pub(crate) mod transaction;

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
        BenchCommand::FanOut(args) => fan_out::run(socket, &args),
        BenchCommand::Transaction(args) => transaction::run(socket, &args),
        BenchCommand::Named(args) => named::run(socket, &args),
        BenchCommand::Soak(args) => soak::run(socket, &args),
    }
}
