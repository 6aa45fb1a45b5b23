//! `ringmain reply`: serves the requests of a queue with a command, or sends them back.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ringmain_client::raw::protocol::Plane;
use ringmain_client::{
    AckError, BrokeredConsumer, Client, Consumer, ConsumerOptions, ReceiveError, Replier,
    ReplyError, ReplyTo,
};
use serde_json::json;

use super::Socket;
use super::args::ReplyArgs;
use super::exit::{Exit, Failure, Outcome};
use super::output::{notice, print_json};
use super::signals;

/// How often a waiting server looks whether a signal asked it to stop.
const SLICE: Duration = Duration::from_millis(100);
/// How long the daemon may take to answer the last acknowledgements.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run(socket: &Socket, args: &ReplyArgs) -> Outcome {
    let client = socket.connect()?;
    let fail = |error| Failure::queue(&args.queue, error);
    let plane = client.queue_info(&args.queue).map_err(fail)?.plane;
    let requests = match plane {
        Plane::Direct => Requests::Direct(client.consumer(&args.queue).map_err(fail)?),
        Plane::Brokered => {
            // One at a time: what waits behind a command is for other servers.
            let options = ConsumerOptions::default().credit(1);
            Requests::Brokered(client.brokered_consumer(&args.queue, options).map_err(fail)?)
        }
    };
    signals::catch()?;
    let mut server = Server::new(&client, args, requests);
    let result = server.serve();
    server.summary()?;
    result
}

// There is one of them.
#[allow(clippy::large_enum_variant)]
enum Requests {
    Direct(Consumer),
    Brokered(BrokeredConsumer),
}

struct Server<'a> {
    args: &'a ReplyArgs,
    requests: Requests,
    replier: Replier,
    /// Replies that arrived.
    replied: u64,
    /// Requests whose requester was gone, or took no reply.
    lost: u64,
    /// Commands that failed.
    failed: u64,
    /// Messages that asked for no reply.
    plain: u64,
}

impl<'a> Server<'a> {
    fn new(client: &Client, args: &'a ReplyArgs, requests: Requests) -> Self {
        let replier = client.replier();
        Self { args, requests, replier, replied: 0, lost: 0, failed: 0, plain: 0 }
    }

    fn serve(&mut self) -> Outcome {
        let mut left = self.args.count.unwrap_or(u64::MAX);
        while left > 0 && signals::caught().is_none() {
            let served = match &mut self.requests {
                Requests::Direct(_) => self.serve_direct(),
                Requests::Brokered(_) => self.serve_brokered(),
            };
            match served {
                Ok(()) => left -= 1,
                Err(End::Nothing) => {}
                Err(End::Failure(failure)) => return Err(failure),
            }
        }
        match &mut self.requests {
            Requests::Direct(_) => Ok(()),
            Requests::Brokered(consumer) => match consumer.flush(FLUSH_LIMIT) {
                Ok(()) => Ok(()),
                Err(error) => Err(self.not_acknowledged(error)),
            },
        }
    }

    fn serve_direct(&mut self) -> Result<(), End> {
        let Requests::Direct(consumer) = &mut self.requests else { return Err(End::Nothing) };
        let mut payload = Vec::new();
        let (to, sequence) = {
            // Held no longer than it takes to copy it: a slot that is held delays others.
            let guard = consumer.take_timeout(SLICE).map_err(|error| self.args.failure(&error))?;
            guard.copy_to(&mut payload).map_err(|error| self.args.failure(&error))?;
            (guard.reply_to(), guard.sequence())
        };
        self.answer(to, sequence, &payload)?;
        Ok(())
    }

    fn serve_brokered(&mut self) -> Result<(), End> {
        let Requests::Brokered(consumer) = &mut self.requests else { return Err(End::Nothing) };
        let delivery =
            consumer.receive_timeout(SLICE).map_err(|error| self.args.failure(&error))?;
        let is_done = self.answer(delivery.reply_to(), delivery.sequence(), delivery.payload())?;
        let Requests::Brokered(consumer) = &mut self.requests else { return Err(End::Nothing) };
        let told = if is_done { consumer.ack(&delivery) } else { consumer.reject(&delivery) };
        told.map_err(|error| End::Failure(self.not_acknowledged(error)))
    }

    /// Whether the command succeeded.
    fn answer(&mut self, to: Option<ReplyTo>, sequence: u64, request: &[u8]) -> Outcome<bool> {
        let reply = match &self.args.exec {
            None => request.to_vec(),
            Some(command) => match execute(command, request)? {
                Ok(output) => output,
                Err(status) => {
                    self.failed += 1;
                    notice(&format!(
                        "message {sequence}: the command ended with {status}: no reply"
                    ));
                    return Ok(false);
                }
            },
        };
        let Some(to) = to else {
            self.plain += 1;
            return Ok(true);
        };
        match self.replier.reply(&to, &reply) {
            Ok(()) => self.replied += 1,
            // It has gone on without the reply: nothing that anybody must see.
            Err(ReplyError::Gone) => self.lost += 1,
            Err(error) => {
                self.lost += 1;
                notice(&format!("message {sequence}: no reply: {error}"));
            }
        }
        Ok(true)
    }

    fn not_acknowledged(&self, error: AckError) -> Failure {
        let exit = match error {
            AckError::JournalFailed { .. } => Exit::Io,
            AckError::Timeout | AckError::LeaseLost => Exit::Temporary,
            AckError::Closed(_) | AckError::Lost => Exit::Unavailable,
            _ => Exit::Internal,
        };
        let queue = &self.args.queue;
        Failure::new(
            exit,
            format_args!(
                "queue {queue}: cannot acknowledge: {error}; the last request may come again"
            ),
        )
    }

    fn summary(&self) -> Outcome {
        let Self { replied, lost, failed, plain, .. } = *self;
        if self.args.format.json {
            return print_json(&json!({
                "queue": self.args.queue,
                "replied": replied,
                "requester_gone": lost,
                "failed": failed,
                "without_reply_to": plain,
            }));
        }
        if lost > 0 {
            notice(&format!(
                "{lost} replies did not arrive: their requesters had gone or took none"
            ));
        }
        if plain > 0 {
            notice(&format!("{plain} messages asked for no reply"));
        }
        Ok(())
    }
}

/// Why no request was served.
enum End {
    /// None came.
    Nothing,
    Failure(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl ReplyArgs {
    fn failure(&self, error: &ReceiveError) -> End {
        match error {
            ReceiveError::Empty | ReceiveError::Timeout => End::Nothing,
            error => End::Failure(Failure::receive(&self.queue, error)),
        }
    }
}

/// Runs a command with the request as a line on its input; its output, without the last line break, or how it ended.
fn execute(command: &str, request: &[u8]) -> Outcome<Result<Vec<u8>, String>> {
    let failed = |error: io::Error| Failure::system("run the command", error);
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let line = [request, b"\n"].concat();
    // Beside it, so that a command may write before it has read everything; one that does not read is none of our business.
    let writer = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&line)));
    let output = child.wait_with_output().map_err(failed)?;
    let _ = writer.join();
    if !output.status.success() {
        return Ok(Err(output.status.to_string()));
    }
    let mut reply = output.stdout;
    if reply.last() == Some(&b'\n') {
        reply.pop();
    }
    Ok(Ok(reply))
}
