//! One thread waits for a hundred queues at once.
//!
//! Needs a running daemon (`ringmain serve`), at the default socket or where `RINGMAIN_SOCKET` says.

use std::collections::HashMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use ringmain_client::{Client, QueueSpec, Selector, Token};

const QUEUES: usize = 100;
const MESSAGES: usize = 10_000;

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("many_queues: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run() -> Result<(), Box<dyn Error>> {
    let client = Client::connect_default()?;
    let names: Vec<String> =
        (0..QUEUES).map(|n| format!("many-queues-{}.{n}", std::process::id())).collect();
    let spec = QueueSpec { slots: Some(64), ..QueueSpec::default() };
    for name in &names {
        client.create_queue(name, spec.clone())?;
    }
    let result = exchange(&client, &names);
    for name in &names {
        client.delete_queue(name)?;
    }
    result
}

fn exchange(client: &Client, names: &[String]) -> Result<(), Box<dyn Error>> {
    let mut selector = Selector::new(client)?;
    let mut queue_of: HashMap<Token, &str> = HashMap::new();
    for name in names {
        queue_of.insert(selector.add(client.consumer(name)?)?, name);
    }
    let sender = {
        let client = client.clone();
        let names = names.to_vec();
        std::thread::spawn(move || send(&client, &names).map_err(|error| error.to_string()))
    };

    let mut received: HashMap<&str, usize> = HashMap::new();
    let mut waits = 0;
    let mut buffer = Vec::new();
    while received.values().sum::<usize>() < MESSAGES {
        let ready = selector.wait(Some(Duration::from_secs(10)))?;
        if ready.is_empty() {
            return Err("nothing came for ten seconds".into());
        }
        waits += 1;
        for token in ready {
            let Some(consumer) = selector.get_mut(token) else {
                continue;
            };
            while consumer.try_receive(&mut buffer).is_ok() {
                *received.entry(queue_of[&token]).or_default() += 1;
            }
        }
    }
    sender.join().map_err(|_| "the sender panicked")??;
    println!("{MESSAGES} messages of {} queues in {waits} waits", received.len());
    Ok(())
}

fn send(client: &Client, names: &[String]) -> Result<(), Box<dyn Error>> {
    let mut producers =
        names.iter().map(|name| client.producer(name)).collect::<Result<Vec<_>, _>>()?;
    for message in 0..MESSAGES {
        // A step that meets all queues, in no obvious order.
        let queue = message * 37 % producers.len();
        producers[queue].send(&message.to_le_bytes())?;
    }
    Ok(())
}
