//! Transactions: all or nothing, whatever dies.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmain_client::async_io::AsyncBrokeredProducer;
use ringmain_client::{
    Client, ConfirmError, ConsumerOptions, DeliverySpec, ProducerOptions, QueueSpec, SendError,
    TransactionError,
};

use crate::brokered_support::{
    Durable, consume, consumer, durable, eventually_inside, in_memory, inside, producer, publish,
    receive, text, with_rules,
};
use crate::support::{Actor, PATIENCE, eventually};

fn queues(client: &Client, spec: &QueueSpec) {
    for name in ["in", "out", "log"] {
        client.create_queue(name, spec.clone()).unwrap();
    }
}

#[test]
fn outputs_and_the_input_change_hands_together() {
    for spec in [durable(), in_memory()] {
        let daemon = Durable::start();
        let client = daemon.client();
        queues(&client, &spec);
        let mut sending = producer(&client, "in");
        publish(&mut sending, (1..=3).map(|number| format!("order {number}")));
        let mut input = consumer(&client, "in");
        let (mut out, log) = (producer(&client, "out"), producer(&client, "log"));
        for number in 1..=3_u64 {
            let order = receive(&mut input);
            let mut transaction = client.transaction();
            transaction.publish(&out, format!("invoice of {}", text(&order)).as_bytes()).unwrap();
            transaction.publish(&log, b"done").unwrap();
            transaction.ack(&input, &order).unwrap();
            assert_eq!((transaction.messages(), transaction.acks()), (2, 1));
            let receipt = transaction.commit_timeout(&mut out, PATIENCE).unwrap();
            let confirmation = out.wait_timeout(&receipt, PATIENCE).unwrap();
            assert_eq!((confirmation.sequence, confirmation.duplicate), (number, false));
        }
        eventually_inside(&client, "in", |info| info.messages == 0);
        let invoices = consume(&mut consumer(&client, "out"), 3);
        assert_eq!(invoices[2], (3, "invoice of order 3".to_owned()));
        assert_eq!(inside(&client, "log").messages, 3);
        // Ordinary messages go on in the same lane.
        publish(&mut out, ["plain".to_owned()]);
    }
}

#[test]
fn a_lease_that_is_over_stops_the_whole() {
    let daemon = Durable::start();
    let client = daemon.client();
    let rules = DeliverySpec { lease_ms: Some(200), ..DeliverySpec::default() };
    queues(&client, &with_rules(durable(), rules));
    publish(&mut producer(&client, "in"), ["order".to_owned()]);
    let mut input = consumer(&client, "in");
    let mut out = producer(&client, "out");
    let order = receive(&mut input);
    let mut transaction = client.transaction();
    transaction.publish(&out, b"invoice").unwrap().ack(&input, &order).unwrap();
    // Until it comes again: the lease of the first delivery is over.
    let again = receive(&mut input);
    assert_eq!(again.attempt(), 2);
    let receipt = transaction.commit_timeout(&mut out, PATIENCE).unwrap();
    assert_eq!(out.wait_timeout(&receipt, PATIENCE).unwrap_err(), ConfirmError::LeaseLost);
    assert_eq!(inside(&client, "out").next_sequence, 1);
    input.extend(&again, Duration::from_secs(60)).unwrap();
    let mut transaction = client.transaction();
    transaction.publish(&out, b"invoice").unwrap().ack(&input, &again).unwrap();
    let receipt = transaction.commit_timeout(&mut out, PATIENCE).unwrap();
    out.wait_timeout(&receipt, PATIENCE).unwrap();
    eventually_inside(&client, "in", |info| info.messages == 0);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let daemon = Durable::start();
    let client = daemon.client();
    queues(&client, &durable());
    client.create_queue("memory", in_memory()).unwrap();
    let mut out = producer(&client, "out");
    let mut memory = producer(&client, "memory");
    let mut transaction = client.transaction();
    assert_eq!(transaction.commit(&mut out).unwrap_err(), TransactionError::Empty);
    transaction.publish(&out, b"x").unwrap();
    let error = transaction.publish(&memory, b"x").unwrap_err();
    assert_eq!(error, TransactionError::CrossShard);
    assert_eq!(transaction.commit(&mut memory).unwrap_err(), TransactionError::CrossShard);
    let other = daemon.client();
    let mut foreign = producer(&other, "out");
    let error = transaction.publish(&foreign, b"x").unwrap_err();
    assert_eq!(error, TransactionError::ForeignHandle);
    assert_eq!(transaction.commit(&mut foreign).unwrap_err(), TransactionError::ForeignHandle);
    let long = vec![0; out.max_message() + 1];
    let error = transaction.publish(&out, &long).unwrap_err();
    assert!(matches!(error, TransactionError::Send(SendError::TooLarge { .. })), "{error}");
    // Each fits, the whole does not.
    let half = vec![0; out.max_message() / 2 + 1];
    let mut both = client.transaction();
    both.publish(&out, &half).unwrap().publish(&out, &half).unwrap();
    let error = both.commit(&mut out).unwrap_err();
    assert!(matches!(error, TransactionError::Send(SendError::TooLarge { .. })), "{error}");
    publish(&mut producer(&client, "in"), ["order".to_owned()]);
    let mut looker =
        client.brokered_consumer("in", ConsumerOptions::default().browse(true)).unwrap();
    let shown = receive(&mut looker);
    let error = transaction.ack(&looker, &shown).unwrap_err();
    assert!(matches!(error, TransactionError::Ack(_)), "{error}");
    let named = client.named_producer("log", "worker", ProducerOptions::default()).unwrap();
    transaction.publish(&named, b"x").unwrap();
    assert_eq!(transaction.commit(&mut out).unwrap_err(), TransactionError::OtherName);
    // A handle that was given back meanwhile.
    let gone = producer(&client, "log");
    let mut transaction = client.transaction();
    transaction.publish(&out, b"x").unwrap().publish(&gone, b"x").unwrap();
    drop(gone);
    eventually("the end of the handle", || {
        let before = inside(&client, "out").next_sequence;
        let receipt = transaction.commit_timeout(&mut out, PATIENCE).unwrap();
        let error = out.wait_timeout(&receipt, PATIENCE).err()?;
        assert_eq!(error, ConfirmError::CrossShard);
        assert_eq!(inside(&client, "out").next_sequence, before);
        Some(())
    });
}

/// Workers are killed in the middle of whatever they do, and brokers as well.
fn every_input_has_its_output_once_although_workers_die(spec: QueueSpec) {
    const INPUTS: usize = 3000;
    let daemon = Durable::start();
    let client = daemon.client();
    queues(&client, &spec);
    let socket = daemon.daemon.socket.clone();
    let sender = std::thread::spawn(move || {
        let client = Client::connect(&socket).unwrap();
        let mut sending = producer(&client, "in");
        for number in 0..INPUTS {
            sending.send_timeout(number.to_string().as_bytes(), PATIENCE).unwrap();
            if number % 50 == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        sending.wait_all_timeout(PATIENCE).unwrap();
    });
    let worker = || Actor::started(&daemon.daemon.socket, &["transform", "in", "out"]);
    let mut workers = [worker(), worker()];
    for round in 0..12_u64 {
        std::thread::sleep(Duration::from_millis(20 + round * 7 % 40));
        let index = usize::try_from(round % 2).unwrap();
        std::mem::replace(&mut workers[index], worker()).kill();
        if round % 3 == 0 {
            daemon.daemon.kill_broker();
        }
    }
    sender.join().unwrap();
    eventually_inside(&client, "in", |info| info.messages == 0);
    drop(workers);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    eventually_inside(&client, "out", |info| info.messages >= INPUTS as u64);
    let count = usize::try_from(inside(&client, "out").messages).unwrap();
    for (_, payload) in consume(&mut consumer(&client, "out"), count) {
        *seen.entry(payload).or_default() += 1;
    }
    let expected = (0..INPUTS).map(|number| (number.to_string(), 1)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn every_input_has_its_output_once_although_workers_die_durable() {
    every_input_has_its_output_once_although_workers_die(durable());
}

#[test]
fn every_input_has_its_output_once_although_workers_die_in_memory() {
    every_input_has_its_output_once_although_workers_die(in_memory());
}

/// Inputs are transformed while brokers, or everybody, die: each has its output once.
#[test]
fn every_input_has_its_output_once_although_everybody_dies() {
    const INPUTS: usize = 600;
    let mut daemon = Durable::start_with(&["--segment-size", "256KiB"]);
    queues(&daemon.client(), &durable());
    publish(&mut producer(&daemon.client(), "in"), (0..INPUTS).map(|n| format!("{n}")));
    let mut committed = 0;
    for round in 0.. {
        let client = daemon.client();
        if inside(&client, "in").messages == 0 {
            break;
        }
        assert!(round < 60, "{committed} were committed");
        let mut input = consumer(&client, "in");
        let (mut out, log) = (producer(&client, "out"), producer(&client, "log"));
        let mut receipts = Vec::new();
        for _ in 0..90 {
            let Ok(order) = input.receive_timeout(Duration::from_millis(300)) else { break };
            let mut transaction = client.transaction();
            transaction.publish(&out, text(&order).as_bytes()).unwrap();
            transaction.publish(&log, text(&order).as_bytes()).unwrap();
            transaction.ack(&input, &order).unwrap();
            receipts.push(transaction.commit_timeout(&mut out, PATIENCE).unwrap());
        }
        // Some are known to be durable, others are on their way.
        for receipt in receipts.iter().take(receipts.len() / 2) {
            out.wait_timeout(receipt, PATIENCE).unwrap();
            committed += 1;
        }
        match round % 3 {
            0 => {
                daemon.daemon.kill_broker();
                // The same handles, another broker.
                for receipt in &receipts {
                    out.wait_timeout(receipt, PATIENCE).unwrap();
                }
            }
            1 => daemon.kill_all(),
            _ => daemon.restart(),
        }
    }
    let client = daemon.client();
    for queue in ["out", "log"] {
        let count = usize::try_from(inside(&client, queue).messages).unwrap();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (_, payload) in consume(&mut consumer(&client, queue), count) {
            *seen.entry(payload).or_default() += 1;
        }
        let expected = (0..INPUTS).map(|number| (number.to_string(), 1)).collect();
        assert_eq!(seen, expected, "{queue}");
    }
}

#[test]
fn async_producers_have_names_and_commit_as_well() {
    let daemon = Durable::start();
    let client = daemon.client();
    queues(&client, &durable());
    publish(&mut producer(&client, "in"), ["order".to_owned()]);
    let mut input = consumer(&client, "in");
    let order = receive(&mut input);
    let attach = || client.named_producer("out", "worker", ProducerOptions::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let mut out = AsyncBrokeredProducer::new(attach()).unwrap();
        let receipt = out.send(b"one").await.unwrap();
        assert_eq!(out.wait(&receipt).await.unwrap().sequence, 1);
        let mut transaction = client.transaction();
        transaction.publish(out.get_mut(), b"two").unwrap();
        transaction.publish(out.get_mut(), b"three").unwrap().ack(&input, &order).unwrap();
        let receipt = out.commit(&transaction).await.unwrap();
        assert_eq!(out.wait(&receipt).await.unwrap().sequence, 2);
        assert_eq!(out.get_mut().next_own_sequence(), Some(4));
        // The same once more, as one that does not know how far it came.
        let mut again = attach();
        assert_eq!(again.stored_own_sequence(), Some(3));
        assert!(again.set_next_own_sequence(2));
        let mut again = AsyncBrokeredProducer::new(again).unwrap();
        let mut transaction = client.transaction();
        transaction.publish(again.get_mut(), b"two").unwrap();
        transaction.publish(again.get_mut(), b"three").unwrap();
        let receipt = again.commit(&transaction).await.unwrap();
        assert!(again.wait(&receipt).await.unwrap().duplicate);
        // One that is only there in part is no duplicate.
        assert!(again.get_mut().set_next_own_sequence(3));
        let receipt = again.commit(&transaction).await.unwrap();
        assert_eq!(again.wait(&receipt).await.unwrap_err(), ConfirmError::Rejected);
    });
    assert_eq!(inside(&client, "out").messages, 3);
    eventually_inside(&client, "in", |info| info.messages == 0);
}
