//! A server squares numbers, a client asks for them. The replies come through a queue that vanishes with the client.
//!
//! Needs a running daemon (`ringmain serve`), at the default socket or where `RINGMAIN_SOCKET` says.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use ringmain_client::{
    BrokeredConsumer, Client, ConsumerOptions, Plane, QueueSpec, ReceiveError, ReplyError,
};

const REQUESTS: u64 = 1000;
const PATIENCE: Duration = Duration::from_secs(10);

/// May come from another thread.
type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("request_reply: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run() -> Result<(), Failure> {
    let client = Client::connect_default()?;
    let queue = format!("squares-{}", std::process::id());
    let spec = QueueSpec { plane: Some(Plane::Brokered), ..QueueSpec::default() };
    client.create_queue(&queue, spec)?;
    let requests = client.brokered_consumer(&queue, ConsumerOptions::default())?;
    let server = std::thread::spawn({
        let client = client.clone();
        move || serve(&client, requests)
    });

    let result = ask(&client, &queue);

    // The server is told by its consumer.
    client.delete_queue(&queue)?;
    server.join().map_err(|_| "the server panicked")??;
    result
}

fn ask(client: &Client, queue: &str) -> Result<(), Failure> {
    let mut requester = client.requester(queue)?;
    let mut sum = 0;
    for number in 0..REQUESTS {
        let reply = requester.request(&number.to_le_bytes(), PATIENCE)?;
        sum += u64::from_le_bytes(reply.payload().try_into()?);
    }
    println!("{REQUESTS} replies; the squares add up to {sum}");
    Ok(())
}

fn serve(client: &Client, mut requests: BrokeredConsumer) -> Result<(), Failure> {
    let mut replier = client.replier();
    loop {
        let request = match requests.receive() {
            Ok(request) => request,
            Err(ReceiveError::Closed(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let number = u64::from_le_bytes(request.payload().try_into()?);
        if let Some(to) = request.reply_to() {
            match replier.reply(&to, &(number * number).to_le_bytes()) {
                // Whoever asked has gone: nobody misses the reply.
                Ok(()) | Err(ReplyError::Gone) => {}
                Err(error) => return Err(error.into()),
            }
        }
        requests.ack(&request)?;
    }
}
