//! Idle costs nothing.

use std::time::Duration;

use crate::brokered_support::*;
use crate::support::*;

/// Times that any thread of a process has given up the processor.
pub(crate) fn switches(pid: u32) -> u64 {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let Ok(text) = std::fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        total += text
            .lines()
            .filter(|line| line.contains("voluntary_ctxt_switches"))
            .filter_map(|line| line.rsplit(':').next()?.trim().parse::<u64>().ok())
            .sum::<u64>();
    }
    total
}

#[test]
fn nobody_wakes_up_when_nothing_happens() {
    let daemon = Durable::start();
    let client = daemon.client();
    for number in 0..100 {
        client.create_queue(&format!("q{number}"), durable()).unwrap();
    }
    client.create_queue("m", in_memory()).unwrap();
    let clients: Vec<_> = (0..10).map(|_| daemon.client()).collect();
    let mut handles: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(number, client)| {
            let name = if number == 0 { "m".to_owned() } else { format!("q{number}") };
            (producer(client, &name), consumer(client, &name))
        })
        .collect();
    for (sending, receiving) in &mut handles {
        publish(sending, ["m".to_owned()]);
        consume(receiving, 1);
    }
    let broker = daemon.daemon.status().broker_pid;
    let quiet = eventually("a quiet second", || {
        let before = switches(broker);
        std::thread::sleep(Duration::from_secs(1));
        (switches(broker) == before).then_some(before)
    });
    std::thread::sleep(Duration::from_secs(2));
    // The worker threads of io_uring end some time after their last work.
    assert!(switches(broker) <= quiet + 2, "{} wake-ups", switches(broker) - quiet);
}

/// Private memory of a process in bytes.
fn private_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>()
        * 1024
}

/// `docs/testing.md` has the command and what was seen.
#[test]
#[ignore = "takes half a minute, and others on the machine may disturb it"]
fn a_thousand_queues_and_a_hundred_clients_cost_nothing() {
    const QUEUES: u64 = 1000;
    const CLIENTS: u64 = 100;
    let mut daemon = Durable::start_with(&["--limit-queues", "3000", "--limit-handles", "2000"]);
    let processes =
        |daemon: &Durable| [daemon.daemon.status().broker_pid, daemon.daemon.keeper_pid()];
    let private = |daemon: &Durable| processes(daemon).map(private_bytes).iter().sum::<u64>();
    let each = |bytes: u64, before: u64, count: u64| bytes.saturating_sub(before) / count;
    daemon.client().create_queue("first", durable()).unwrap();
    // Measured after a start: what a journal keeps in memory of what was written last is bounded, and no queue's. From no queues
    // to a thousand the memory that the start itself has given back is used first; from one to two thousand nothing is.
    let mut seen = Vec::new();
    for thousand in 0..3 {
        let client = daemon.client();
        for number in 0..QUEUES {
            if thousand > 0 {
                client.create_queue(&format!("q{thousand}-{number}"), durable()).unwrap();
            }
        }
        drop(client);
        daemon.restart();
        consume_one(&daemon.client(), "first");
        seen.push(private(&daemon));
    }
    for (before, after) in seen.iter().zip(&seen[1..]) {
        let of_queue = each(*after, *before, QUEUES);
        println!("{of_queue} bytes a queue ({before} and {after} bytes)");
        assert!(of_queue <= 4096, "{of_queue}");
    }

    let clients: Vec<_> = (0..CLIENTS).map(|_| daemon.client()).collect();
    let before = private(&daemon);
    let mut producers = Vec::new();
    let mut consumers = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        let queue = format!("q1-{}", number / 2);
        match number % 2 {
            0 => producers.push(producer(client, &queue)),
            _ => consumers.push(consumer(client, &queue)),
        }
    }
    println!("{} bytes a handle", each(private(&daemon), before, CLIENTS));
    for (sending, receiving) in producers.iter_mut().zip(&mut consumers) {
        publish(sending, ["m".to_owned()]);
        consume(receiving, 1);
    }
    let of = processes(&daemon);
    let count = || of.map(switches).iter().sum::<u64>();
    // The worker threads of io_uring end some time after their last work.
    eventually("three quiet seconds", || {
        let before = count();
        std::thread::sleep(Duration::from_secs(3));
        (count() == before).then_some(())
    });
    let before = count();
    std::thread::sleep(Duration::from_secs(10));
    let woken = count() - before;
    println!("{woken} wake-ups in 10 s");
    assert_eq!(woken, 0);
    drop((producers, consumers));
}

fn consume_one(client: &ringmain_client::Client, queue: &str) {
    publish(&mut producer(client, queue), ["m".to_owned()]);
    consume(&mut consumer(client, queue), 1);
}
