//! A durable work queue: orders are confirmed when they are on disk, handled by a worker that acknowledges them, tried again when
//! that fails, and put aside in a dead-letter queue when it fails for good.
//!
//! Needs a running daemon with a data directory (`ringmain serve --data-dir DIR`), at the default socket or where
//! `RINGMAIN_SOCKET` says.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use ringmain_client::{
    BrokeredProducer, Client, ConsumerOptions, Delivery, DeliverySpec, Metadata, ProducerOptions,
    QueueSpec,
};

const ORDERS: u32 = 1000;
/// Handling these fails every time.
const BROKEN: u32 = 250;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if let Err(error) = run() {
        eprintln!("durable: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run() -> Result<(), Box<dyn Error>> {
    let client = Client::connect_default()?;
    let orders = format!("durable-{}.orders", std::process::id());
    let failed = format!("durable-{}.failed", std::process::id());
    client.create_queue(&failed, QueueSpec { durable: true, ..QueueSpec::default() })?;
    let delivery = DeliverySpec {
        max_deliveries: Some(3),
        dead_letter: Some(failed.clone()),
        ..DeliverySpec::default()
    };
    client.create_queue(&orders, QueueSpec { durable: true, delivery, ..QueueSpec::default() })?;

    let mut producer = client.brokered_producer(&orders, ProducerOptions::default())?;
    let result = publish(&mut producer)
        .and_then(|()| work(&client, &orders))
        .and_then(|()| look_at_failed(&client, &failed));

    drop(producer);
    client.delete_queue(&orders)?;
    client.delete_queue(&failed)?;
    result
}

/// Many orders are under way at once; the disk is waited for at the end.
fn publish(producer: &mut BrokeredProducer) -> Result<(), Box<dyn Error>> {
    let mut first = None;
    for order in 0..ORDERS {
        let metadata = Metadata {
            headers: vec![("customer".to_owned(), format!("c{}", order % 7).into_bytes())],
            ..Metadata::default()
        };
        let receipt = producer.send_message(&metadata, &order.to_le_bytes())?;
        first.get_or_insert(receipt);
    }
    producer.wait_all_timeout(PATIENCE)?;
    if let Some(receipt) = first {
        let confirmation = producer.wait(&receipt)?;
        println!("{ORDERS} orders are on disk, the first has sequence {}", confirmation.sequence);
    }
    Ok(())
}

/// Acknowledges what went well and gives back what did not.
fn work(client: &Client, orders: &str) -> Result<(), Box<dyn Error>> {
    let mut consumer = client.brokered_consumer(orders, ConsumerOptions::default().credit(64))?;
    let mut delivery = Delivery::default();
    let (mut done, mut tries) = (0, 0);
    while done + 1 < ORDERS || tries < 3 {
        consumer.receive_into(&mut delivery, Some(PATIENCE))?;
        let order = u32::from_le_bytes(delivery.payload().try_into()?);
        if order == BROKEN {
            tries += 1;
            println!("order {order} fails, attempt {}", delivery.attempt());
            consumer.nack(&delivery, Duration::from_millis(10))?;
        } else {
            done += 1;
            consumer.ack(&delivery)?;
        }
    }
    consumer.flush(PATIENCE)?;
    println!("{done} orders are handled, and that is on disk as well");
    Ok(())
}

/// What could not be handled says where it came from and why it is here.
fn look_at_failed(client: &Client, failed: &str) -> Result<(), Box<dyn Error>> {
    let mut consumer = client.brokered_consumer(failed, ConsumerOptions::default())?;
    let delivery = consumer.receive_timeout(PATIENCE)?;
    let order = u32::from_le_bytes(delivery.payload().try_into()?);
    println!("order {order} was put aside:");
    for (name, value) in delivery.metadata()?.headers {
        println!("  {name}: {}", String::from_utf8_lossy(&value));
    }
    consumer.ack_confirmed(&delivery, PATIENCE)?;
    Ok(())
}
