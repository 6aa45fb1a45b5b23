//! `ringmain request`: a line in, its reply out.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use ringmain_client::{RequestError, Requester};
use serde_json::json;

use super::Socket;
use super::args::RequestArgs;
use super::consume::rendering::put_bytes;
use super::exit::{Exit, Failure, Outcome};
use super::publish::{bad_input, lines::Lines, open_input};

pub(crate) fn run(socket: &Socket, args: &RequestArgs) -> Outcome {
    let input = open_input(&args.file)?;
    let client = socket.connect()?;
    let fail = |error| Failure::queue(&args.queue, error);
    let info = client.queue_info(&args.queue).map_err(fail)?;
    let mut requester = client.requester(&args.queue).map_err(fail)?;
    let max = usize::try_from(info.max_message).unwrap_or(usize::MAX);
    let mut lines = Lines::new(input.reader, max);
    let mut answered = 0;
    loop {
        let available = lines.next(1).map_err(|error| bad_input(&args.queue, answered, &error))?;
        let Some(line) = available.first() else { return Ok(()) };
        let start = Instant::now();
        let reply = ask(&mut requester, args, line, answered)?;
        write(&reply, start.elapsed(), args.format.json)?;
        answered += 1;
    }
}

fn ask(
    requester: &mut Requester,
    args: &RequestArgs,
    line: &[u8],
    answered: u64,
) -> Outcome<Vec<u8>> {
    let queue = &args.queue;
    let reply = requester.request(line, args.timeout);
    reply.map(ringmain_client::Reply::into_payload).map_err(|error| match error {
        RequestError::Timeout => Failure::new(
            Exit::Temporary,
            format_args!(
                "queue {queue}: no reply within {}; {answered} requests were answered. Is there a server \
                 ('ringmain reply {queue} --exec CMD')?",
                humantime::format_duration(args.timeout)
            ),
        ),
        RequestError::Send(error) => Failure::send(queue, &error),
        RequestError::Receive(error) => Failure::receive(requester.reply_queue(), &error),
        error => Failure::internal(error),
    })
}

fn write(reply: &[u8], took: Duration, json: bool) -> Outcome {
    let mut line = Vec::new();
    if json {
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mut document = json!({ "took_ns": took_ns });
        put_bytes(&mut document, "payload", reply);
        line.extend_from_slice(document.to_string().as_bytes());
    } else {
        line.extend_from_slice(reply);
    }
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(&line).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::stdout(&error))
}
