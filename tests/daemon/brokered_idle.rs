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
