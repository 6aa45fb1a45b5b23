//! Consume, transform, produce, exactly once: workers take orders, and each writes an invoice and acknowledges its order in one
//! transaction. Workers that are interrupted in the middle leave nothing half done: their orders come to others.
//!
//! Needs a running daemon with a data directory (`ringmain serve --data-dir DIR`), at the default socket or where
//! `RINGMAIN_SOCKET` says. `transform INPUT OUTPUT` works on queues that there are, until nothing is left for a second.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use ringmain_client::{
    BrokeredProducer, Client, ConfirmError, ConsumerOptions, Delivery, ProducerOptions, QueueSpec,
    ReceiveError,
};

const ORDERS: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(10);
/// Transactions on the way at a time: with more of them the disk is used better.
const WINDOW: usize = 64;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match &arguments[..] {
        [] => demonstrate(),
        [input, output] => Client::connect_default()
            .map_err(Into::into)
            .and_then(|client| transform(&client, input, output, usize::MAX))
            .map(|done| println!("{done} orders")),
        _ => Err("usage: transform [INPUT OUTPUT]".into()),
    };
    if let Err(error) = result {
        eprintln!("transform: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn demonstrate() -> Outcome {
    let client = Client::connect_default()?;
    let orders = format!("transform-{}.orders", std::process::id());
    let invoices = format!("transform-{}.invoices", std::process::id());
    for queue in [&orders, &invoices] {
        client.create_queue(queue, QueueSpec { durable: true, ..QueueSpec::default() })?;
    }
    let result = publish(&client, &orders)
        .and_then(|()| {
            // The first worker stops with orders in its hands.
            let first = transform(&client, &orders, &invoices, 400)?;
            let second = transform(&client, &orders, &invoices, usize::MAX)?;
            println!("{first} orders by the first worker, {second} by the second");
            Ok(())
        })
        .and_then(|()| count(&client, &invoices));
    client.delete_queue(&orders)?;
    client.delete_queue(&invoices)?;
    result
}

/// Under a name: should this be interrupted and started again, each order is there once.
fn publish(client: &Client, orders: &str) -> Outcome {
    let mut producer = client.named_producer(orders, "shop", ProducerOptions::default())?;
    let stored = producer.stored_own_sequence().unwrap_or(0);
    for order in u32::try_from(stored)?..ORDERS {
        producer.send(order.to_string().as_bytes())?;
    }
    producer.wait_all_timeout(PATIENCE)?;
    Ok(())
}

/// Takes at most so many orders, and ends when nothing comes for a second. Orders whose transactions are confirmed.
fn transform(client: &Client, input: &str, output: &str, most: usize) -> Outcome<usize> {
    let mut input = client.brokered_consumer(input, ConsumerOptions::default())?;
    let mut output = client.brokered_producer(output, ProducerOptions::default().window(WINDOW))?;
    let mut order = Delivery::default();
    let mut done = 0;
    for _ in 0..most {
        match input.receive_into(&mut order, Some(Duration::from_secs(1))) {
            Ok(()) => {}
            Err(ReceiveError::Timeout) => break,
            Err(error) => return Err(error.into()),
        }
        let invoice = format!("invoice of {}", String::from_utf8_lossy(order.payload()));
        let mut transaction = client.transaction();
        transaction.publish(&output, invoice.as_bytes())?.ack(&input, &order)?;
        transaction.commit(&mut output)?;
        done += settled(&mut output, false)?;
    }
    Ok(done + settled(&mut output, true)?)
}

/// Transactions that are confirmed and were not counted before; waits for all that are on their way if asked to.
fn settled(output: &mut BrokeredProducer, all: bool) -> Outcome<usize> {
    let mut done = 0;
    loop {
        let next = if all { output.next_settled(PATIENCE)? } else { output.try_next_settled()? };
        let Some(run) = next else { return Ok(done) };
        match run.result {
            Ok(_) => done += usize::try_from(run.count)?,
            // Another worker has the order by now.
            Err(ConfirmError::LeaseLost) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn count(client: &Client, invoices: &str) -> Outcome {
    let mut consumer = client.brokered_consumer(invoices, ConsumerOptions::default())?;
    let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    let mut invoice = Delivery::default();
    while consumer.receive_or_drained(&mut invoice, Some(PATIENCE))? {
        *seen.entry(invoice.payload().to_vec()).or_default() += 1;
        consumer.ack(&invoice)?;
    }
    consumer.flush(PATIENCE)?;
    let once = seen.values().filter(|times| **times == 1).count();
    println!("{} invoices, {once} of them once", seen.len());
    if seen.len() == once && once == ORDERS as usize {
        Ok(())
    } else {
        Err("orders were lost or handled twice".into())
    }
}
