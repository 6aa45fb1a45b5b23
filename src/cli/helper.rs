//! Child processes of a measurement, seen from the child: one task on stdin, events on stdout, one JSON document a line.

use std::io::{self, BufRead, Write};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde::{Deserialize, Serialize};

use super::bench::brokered::consume;
use super::bench::{deaths, load, pair, replay, soak};
use super::demo::{durable as durable_demo, flow};
use super::exit::{Exit, Failure, Outcome};

/// What a child is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Sends and waits for the echo.
    Ping(pair::Task),
    /// Echoes.
    Pong(pair::Task),
    /// Sends generated messages as fast as it can.
    LoadProduce(load::ProduceTask),
    /// Verifies generated messages.
    LoadConsume(load::ConsumeTask),
    /// Sends or receives next to others that die.
    Survive(deaths::SurvivorTask),
    /// Holds a slot until it is killed.
    Hold(deaths::VictimTask),
    /// Gets the messages of consumers that die.
    Inherit(deaths::brokered::HeirTask),
    /// Holds a message until it is killed.
    HoldMessage(deaths::brokered::HolderTask),
    /// Sends records.
    RecordsProduce(flow::ProduceTask),
    /// Verifies records.
    RecordsConsume(flow::ConsumeTask),
    /// Publishes records to a durable queue.
    DurableProduce(durable_demo::ProduceTask),
    /// Consumes records of a durable queue.
    DurableConsume(durable_demo::ConsumeTask),
    /// Receives what a measurement publishes to a brokered queue.
    Consume(consume::Task),
    /// Consumes the backlog of `bench replay`.
    Replay(replay::Task),
    /// Reads the stream of `bench soak` again and again.
    Reread(soak::reread::Task),
}

/// What the parent says after the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Begin.
    Go,
    /// What is there now is all there will be.
    Stop,
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// It waits for [`Order::Go`].
    Ready,
    /// Messages so far.
    Progress { messages: u64 },
    /// The end.
    Done { result: serde_json::Value },
    /// The end, too.
    Failed { exit: Exit, message: String },
}

/// Whether [`Order::Stop`] came.
static STOP: AtomicBool = AtomicBool::new(false);

/// The child's side of the pipes.
#[derive(Debug)]
pub(crate) struct Parent {
    go: Receiver<()>,
}

impl Parent {
    /// Says that everything is set up, and waits for the start.
    pub(crate) fn wait_for_go(&self) -> Outcome {
        say(&Event::Ready);
        self.go.recv().map_err(|_| Failure::internal("the parent is gone"))
    }

    /// Whether nothing more will come than is there now.
    pub(crate) fn stopped(&self) -> bool {
        // Acquire: partner of the Release in `listen`; what the parent knew when it said so is known here.
        STOP.load(Ordering::Acquire)
    }

    pub(crate) fn progress(&self, messages: u64) {
        say(&Event::Progress { messages });
    }

    /// Says the result before the end, for a task that has none: its process is killed. The parent ceases to take its
    /// death for a failure.
    pub(crate) fn result_is(&self, result: impl Serialize) -> Outcome {
        say(&Event::Done { result: value(Ok(result))? });
        Ok(())
    }
}

/// Takes the task from stdin and does it.
pub(crate) fn run() -> Outcome {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|error| Failure::system("read", error))?;
    let task: Task = serde_json::from_str(&line)
        .map_err(|_| Failure::usage("helper: is started by other commands only"))?;
    let (sender, go) = mpsc::channel();
    thread::spawn(move || listen(&sender));
    let parent = Parent { go };
    let result = match task {
        Task::Ping(task) => value(pair::ping(&task, &parent)),
        Task::Pong(task) => value(pair::pong(&task, &parent)),
        Task::LoadProduce(task) => value(load::produce(&task, &parent)),
        Task::LoadConsume(task) => value(load::consume(&task, &parent)),
        Task::Survive(task) => value(deaths::survive(&task, &parent)),
        Task::Hold(task) => value(deaths::hold(&task, &parent)),
        Task::Inherit(task) => value(deaths::brokered::inherit(&task, &parent)),
        Task::HoldMessage(task) => value(deaths::brokered::hold(&task, &parent)),
        Task::RecordsProduce(task) => value(flow::produce(&task, &parent)),
        Task::RecordsConsume(task) => value(flow::consume(&task, &parent)),
        Task::DurableProduce(task) => value(durable_demo::produce(&task, &parent)),
        Task::DurableConsume(task) => value(durable_demo::consume(&task, &parent)),
        Task::Consume(task) => value(consume::run(&task, &parent)),
        Task::Replay(task) => value(replay::replay(&task, &parent)),
        Task::Reread(task) => value(soak::reread::run(&task, &parent)),
    };
    match result {
        Ok(result) => say(&Event::Done { result }),
        Err(Failure::Message { exit, message }) => say(&Event::Failed { exit, message }),
        Err(other) => return Err(other),
    }
    Ok(())
}

fn value<T: Serialize>(result: Outcome<T>) -> Outcome<serde_json::Value> {
    serde_json::to_value(result?).map_err(Failure::internal)
}

/// Hears the parent's orders until it is gone; then there is nobody to work for.
fn listen(go: &mpsc::Sender<()>) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Order::Go) => {
                let _ = go.send(());
            }
            // Release: partner of the Acquire in `Parent::stopped`.
            Ok(Order::Stop) => STOP.store(true, Ordering::Release),
            Err(_) => break,
        }
    }
    process::exit(Exit::Internal as i32);
}

fn say(event: &Event) {
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        let mut stdout = io::stdout().lock();
        // A parent that is gone takes its children with it.
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    }
}
