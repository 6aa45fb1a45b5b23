//! A daemon with a data folder, and what the tests of brokered queues do with it.

use std::time::Duration;

use nix::sys::signal::Signal;
use ringmain_client::{
    AckError, BrokeredConsumer, BrokeredInfo, BrokeredProducer, Client, ConsumerOptions, Delivery,
    DeliverySpec, Plane, ProducerOptions, QueueSpec, ReceiveError,
};

use crate::support::{Daemon, PATIENCE, eventually, is_alive, signal};

/// Long enough for something that must not happen to be noticed.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// A daemon whose data folder outlives it.
pub(crate) struct Durable {
    pub(crate) daemon: Daemon,
    pub(crate) data: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Durable {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut all = vec!["--data-dir".to_owned(), data.path().display().to_string()];
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let daemon = serve(&all);
        Self { daemon, data, arguments: all }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.daemon.socket).unwrap()
    }

    /// Kills keeper and broker, and starts others over the same data.
    pub(crate) fn kill_all(&mut self) {
        let broker = self.daemon.status().broker_pid;
        // The broker first, stopped: it has no chance to close anything.
        signal(broker, Signal::SIGSTOP);
        signal(self.daemon.keeper_pid(), Signal::SIGSTOP);
        signal(broker, Signal::SIGKILL);
        self.daemon.end(Signal::SIGKILL);
        eventually("the end of the broker", || (!is_alive(broker)).then_some(()));
        self.daemon = serve(&self.arguments);
    }

    /// Stops the daemon as a service manager does, and starts another one.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Nobody has the data open from then on.
    pub(crate) fn stop(&mut self) {
        assert!(self.daemon.end(Signal::SIGTERM).success());
    }

    /// After [`Self::stop`].
    pub(crate) fn start_again(&mut self) {
        self.daemon = serve(&self.arguments);
    }
}

fn serve(arguments: &[String]) -> Daemon {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Daemon::start_with(&arguments)
}

pub(crate) fn durable() -> QueueSpec {
    QueueSpec { durable: true, ..QueueSpec::default() }
}

pub(crate) fn in_memory() -> QueueSpec {
    QueueSpec { plane: Some(Plane::Brokered), ..QueueSpec::default() }
}

pub(crate) fn with_rules(spec: QueueSpec, delivery: DeliverySpec) -> QueueSpec {
    QueueSpec { delivery, ..spec }
}

pub(crate) fn producer(client: &Client, queue: &str) -> BrokeredProducer {
    client.brokered_producer(queue, ProducerOptions::default()).unwrap()
}

pub(crate) fn consumer(client: &Client, queue: &str) -> BrokeredConsumer {
    client.brokered_consumer(queue, ConsumerOptions::default()).unwrap()
}

/// Sends these payloads and waits for their confirmation.
pub(crate) fn publish(producer: &mut BrokeredProducer, payloads: impl IntoIterator<Item = String>) {
    for payload in payloads {
        producer.send_timeout(payload.as_bytes(), PATIENCE).unwrap();
    }
    producer.wait_all_timeout(PATIENCE).unwrap();
}

pub(crate) fn receive(consumer: &mut BrokeredConsumer) -> Delivery {
    consumer.receive_timeout(PATIENCE).unwrap()
}

pub(crate) fn text(delivery: &Delivery) -> &str {
    std::str::from_utf8(delivery.payload()).unwrap()
}

/// Receives and acknowledges so many messages.
pub(crate) fn consume(consumer: &mut BrokeredConsumer, count: usize) -> Vec<(u64, String)> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let delivery = receive(consumer);
        seen.push((delivery.sequence(), text(&delivery).to_owned()));
        consumer.ack(&delivery).unwrap();
    }
    consumer.flush(PATIENCE).unwrap();
    seen
}

pub(crate) fn nothing_comes(consumer: &mut BrokeredConsumer) {
    assert_eq!(consumer.receive_timeout(QUIET).unwrap_err(), ReceiveError::Timeout);
}

pub(crate) fn inside(client: &Client, queue: &str) -> BrokeredInfo {
    client.queue_info(queue).unwrap().brokered.unwrap()
}

pub(crate) fn eventually_inside(
    client: &Client,
    queue: &str,
    what: impl Fn(&BrokeredInfo) -> bool,
) {
    eventually("the state of the queue", || what(&inside(client, queue)).then_some(()));
}

pub(crate) fn is_lost(result: Result<(), AckError>) -> bool {
    result == Err(AckError::LeaseLost)
}
