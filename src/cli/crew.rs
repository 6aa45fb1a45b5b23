//! Child processes of a measurement, seen from the parent: start, tell, listen, and never leave one behind.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::exit::{Exit, Failure, Outcome};
use super::helper::{Event, Order, Task};
use super::private::{die_with_parent, this_program};
use super::signals;

/// How often the parent looks for a signal while it listens.
const SLICE: Duration = Duration::from_millis(50);

/// A number that stands for one child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member(usize);

impl Member {
    /// From zero, in the order of their start.
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// The children. All of them are killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Crew {
    members: Vec<State>,
    sender: Sender<(usize, Option<Event>)>,
    events: Receiver<(usize, Option<Event>)>,
}

#[derive(Debug)]
struct State {
    role: String,
    process: Child,
    stdin: ChildStdin,
    ready: bool,
    result: Option<serde_json::Value>,
}

impl Crew {
    pub(crate) fn new() -> Self {
        let (sender, events) = mpsc::channel();
        Self { members: Vec::new(), sender, events }
    }

    /// Starts a child with this task; it inherits these descriptors under their numbers.
    pub(crate) fn start(&mut self, role: &str, task: &Task, keep: &[i32]) -> Outcome<Member> {
        let mut command = this_program();
        command.arg("helper").stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_parent(&mut command, libc::SIGKILL, keep);
        let fail = |error| Failure::system(&format!("start the {role} process"), error);
        let mut process = command.spawn().map_err(fail)?;
        let (Some(stdin), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(Failure::internal("a child without pipes"));
        };
        let index = self.members.len();
        let role = role.to_string();
        self.members.push(State { role, process, stdin, ready: false, result: None });
        let sender = self.sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| Event::Failed {
                    exit: Exit::Internal,
                    message: format!("not understood: {line}"),
                });
                let _ = sender.send((index, Some(event)));
            }
            let _ = sender.send((index, None));
        });
        self.write(Member(index), task)?;
        Ok(Member(index))
    }

    /// Waits until all children are ready.
    pub(crate) fn wait_ready(&mut self) -> Outcome {
        while self.members.iter().any(|member| !member.ready) {
            self.listen(&mut |_, _| {})?;
        }
        Ok(())
    }

    /// Gives all children an order.
    pub(crate) fn order_all(&mut self, order: Order) -> Outcome {
        (0..self.members.len()).try_for_each(|index| self.write(Member(index), &order))
    }

    /// Gives some children an order.
    pub(crate) fn order(&mut self, members: &[Member], order: Order) -> Outcome {
        members.iter().try_for_each(|member| self.write(*member, &order))
    }

    /// Waits for the results of these children; progress of any child is passed on.
    pub(crate) fn results<T: DeserializeOwned>(
        &mut self,
        members: &[Member],
        mut progress: impl FnMut(Member, u64),
    ) -> Outcome<Vec<T>> {
        while members.iter().any(|member| self.members[member.0].result.is_none()) {
            self.listen(&mut progress)?;
        }
        let take = |member: &Member| {
            let value = self.members[member.0].result.clone().unwrap_or_default();
            serde_json::from_value(value).map_err(Failure::internal)
        };
        members.iter().map(take).collect()
    }

    /// Whether all of these have come to their end.
    pub(crate) fn has_results(&self, members: &[Member]) -> bool {
        members.iter().all(|member| self.members[member.0].result.is_some())
    }

    /// Process ids of all children, in the order of their start. None of them is waited for before the crew is dropped or
    /// one dies without a result, so the ids stay their own.
    pub(crate) fn process_ids(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.process.id()).collect()
    }

    fn write(&mut self, member: Member, value: &impl serde::Serialize) -> Outcome {
        let state = &mut self.members[member.0];
        let mut line = serde_json::to_vec(value).map_err(Failure::internal)?;
        line.push(b'\n');
        // A child that is gone is noticed, with its reason, by whoever listens.
        let _ = state.stdin.write_all(&line).and_then(|()| state.stdin.flush());
        Ok(())
    }

    /// Takes in one event, or none if nothing came for a moment.
    pub(crate) fn listen(&mut self, progress: &mut impl FnMut(Member, u64)) -> Outcome {
        signals::check()?;
        let (index, event) = match self.events.recv_timeout(SLICE) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => return Ok(()),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::internal("nobody is left to listen to"));
            }
        };
        let state = &mut self.members[index];
        match event {
            Some(Event::Ready) => state.ready = true,
            Some(Event::Progress { messages }) => progress(Member(index), messages),
            Some(Event::Done { result }) => state.result = Some(result),
            Some(Event::Failed { exit, message }) => {
                return Err(Failure::new(exit, format_args!("{}: {message}", state.role)));
            }
            None if state.result.is_some() => {}
            None => {
                let status = state.process.wait().map_err(|e| Failure::system("wait", e))?;
                return Err(died(&state.role, status));
            }
        }
        Ok(())
    }
}

fn died(role: &str, status: ExitStatus) -> Failure {
    Failure::new(Exit::Internal, format_args!("the {role} process died ({status})"))
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.process.kill();
        }
        for member in &mut self.members {
            let _ = member.process.wait();
        }
    }
}
