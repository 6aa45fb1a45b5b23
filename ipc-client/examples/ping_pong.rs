//! Two processes send one message back and forth; prints how long a round trip takes.
//!
//! Needs a running daemon (`ringmain serve`), at the default socket or where `RINGMAIN_SOCKET` says.

use std::error::Error;
use std::process::{Command, ExitCode};
use std::time::Instant;

use ringmain_client::{Client, Kind, QueueSpec, WaitPolicy, affinity};

const ROUNDS: usize = 100_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let result = match arguments.get(1).map(String::as_str) {
        Some(name) => pong(name),
        None => ping(),
    };
    if let Err(error) = result {
        eprintln!("ping_pong: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The parent: sends, waits for the answer, measures.
fn ping() -> Result<(), Box<dyn Error>> {
    let client = Client::connect_default()?;
    let name = format!("ping-pong-{}", std::process::id());
    let spec = QueueSpec { kind: Some(Kind::Spsc), ..QueueSpec::default() };
    client.create_queue(&format!("{name}.ping"), spec.clone())?;
    client.create_queue(&format!("{name}.pong"), spec)?;
    let mut child = Command::new(std::env::current_exe()?).arg(&name).spawn()?;

    let played = play(&client, &name);

    // Deleting the queues ends the other process: its wait returns `Closed`.
    client.delete_queue(&format!("{name}.ping"))?;
    client.delete_queue(&format!("{name}.pong"))?;
    child.wait()?;
    played
}

fn play(client: &Client, name: &str) -> Result<(), Box<dyn Error>> {
    pin(0)?;
    let mut producer = client.producer_with(&format!("{name}.ping"), WaitPolicy::Spin.into())?;
    let mut consumer = client.consumer_with(&format!("{name}.pong"), WaitPolicy::Spin.into())?;
    let mut buffer = Vec::new();
    let mut nanoseconds = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let started = Instant::now();
        producer.send(&round.to_le_bytes())?;
        consumer.receive(&mut buffer)?;
        nanoseconds.push(started.elapsed().as_nanos());
        assert_eq!(buffer, round.to_le_bytes());
    }
    nanoseconds.sort_unstable();
    let percentile = |per_mille: usize| nanoseconds[ROUNDS * per_mille / 1000];
    println!("{ROUNDS} round trips: p50 {} ns, p99 {} ns", percentile(500), percentile(990));
    Ok(())
}

/// The child: sends back what it receives, until the queue is closed.
fn pong(name: &str) -> Result<(), Box<dyn Error>> {
    pin(1)?;
    let client = Client::connect_default()?;
    let mut consumer = client.consumer_with(&format!("{name}.ping"), WaitPolicy::Spin.into())?;
    let mut producer = client.producer_with(&format!("{name}.pong"), WaitPolicy::Spin.into())?;
    let mut buffer = Vec::new();
    while consumer.receive(&mut buffer).is_ok() && producer.send(&buffer).is_ok() {}
    Ok(())
}

/// Keeps this thread on the n-th CPU that it may use, or on the last one.
fn pin(nth: usize) -> Result<(), Box<dyn Error>> {
    let cpus = affinity::available_cpus()?;
    let cpu = cpus.get(nth).or_else(|| cpus.last()).ok_or("no CPU is available")?;
    affinity::pin_current_thread(*cpu)?;
    Ok(())
}
