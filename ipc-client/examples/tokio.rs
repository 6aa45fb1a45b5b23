//! Sends and receives in a tokio program.
//!
//! Needs a running daemon (`ringmain serve`), at the default socket or where `RINGMAIN_SOCKET` says. Run it with
//! `cargo run --example tokio --features tokio`.

use std::error::Error;
use std::process::ExitCode;

use ringmain_client::async_io::{AsyncConsumer, AsyncProducer};
use ringmain_client::{Client, QueueSpec};

const MESSAGES: u64 = 10_000;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = result {
        eprintln!("tokio: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run() -> Result<(), Box<dyn Error>> {
    let client = Client::connect_default()?;
    let name = format!("tokio-{}", std::process::id());
    // Fewer slots than messages: the producer has to wait for room, without blocking the runtime.
    client.create_queue(&name, QueueSpec { slots: Some(64), ..QueueSpec::default() })?;
    let result = exchange(&client, &name).await;
    client.delete_queue(&name)?;
    result
}

async fn exchange(client: &Client, name: &str) -> Result<(), Box<dyn Error>> {
    let mut producer = AsyncProducer::new(client.producer(name)?)?;
    let mut consumer = AsyncConsumer::new(client.consumer(name)?)?;
    let sender = tokio::spawn(async move {
        for message in 0..MESSAGES {
            producer.send(&message.to_le_bytes()).await?;
        }
        Ok::<_, ringmain_client::SendError>(())
    });
    let mut buffer = Vec::new();
    for message in 0..MESSAGES {
        consumer.receive(&mut buffer).await?;
        assert_eq!(buffer, message.to_le_bytes());
    }
    sender.await??;
    println!("{MESSAGES} messages went through one thread");
    Ok(())
}
