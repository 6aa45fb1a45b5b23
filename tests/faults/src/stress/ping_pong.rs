//! Two processes, two rings, one message: whoever misses a wake stops both.

use std::time::Duration;

use ringmain_client::layout::Geometry;
use ringmain_client::protocol::{Kind, WakeMode};
use ringmain_client::ring::{Consumer, Kernel, Producer, TryReceiveError, wake_sleepers};
use ringmain_client::sys::kernel::HostKernel;

use super::member::{Watching, sleep_for_message};
use crate::arena::{Arena, Outbox};
use crate::child::{self, End};
use crate::random::Random;
use crate::runner::Tally;

/// Far beyond what the rounds take; a lost wake is found earlier, by the sleeper itself.
const CASE_SECONDS: u32 = 300;

struct Side<'a> {
    send: &'a Arena,
    receive: &'a Arena,
    /// Handles 1 and 2 on the one, 3 and 4 on the other side.
    first_handle: u8,
    begins: bool,
}

/// Runs the rounds.
pub(super) fn run(tally: &mut Tally, kind: Kind, mode: WakeMode, rounds: u64, seed: u64) {
    let geometry = Geometry::new(Some(64), Some(64), None).expect("valid sizes");
    let (there, back) = (Arena::new(kind, geometry), Arena::new(kind, geometry));
    let done = Outbox::new();
    let sides = [
        Side { send: &there, receive: &back, first_handle: 1, begins: true },
        Side { send: &back, receive: &there, first_handle: 3, begins: false },
    ];
    let mut children: Vec<_> = sides
        .iter()
        .map(|side| {
            child::spawn_for(CASE_SECONDS, || {
                let random = Random::new(seed ^ u64::from(side.first_handle));
                let result = play(side, mode, rounds, random, &done);
                if let Err(error) = &result {
                    eprintln!("{error}");
                }
                child::exit(i32::from(result.is_err()));
            })
        })
        .collect();
    while !children.is_empty() {
        let mut failed = false;
        children.retain_mut(|child| match child.try_wait() {
            None => true,
            Some(End::Exited(0)) => false,
            Some(end) => {
                let error = match end {
                    End::Exited(1) => Err("slept although there was a message".into()),
                    other => other.killed(),
                };
                tally.check(|| format!("{kind:?} {mode:?}"), error);
                failed = true;
                false
            }
        });
        if failed {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    tally.units += done.word(0).load(std::sync::atomic::Ordering::Relaxed);
}

fn play(
    side: &Side,
    mode: WakeMode,
    rounds: u64,
    mut random: Random,
    done: &Outbox,
) -> Result<(), String> {
    let host = HostKernel::new(mode);
    let kernel = Watching::new(&host);
    let attach = |fault| format!("attach: {fault}");
    let (send, receive) = (side.send, side.receive);
    let handle = side.first_handle;
    let mut producer =
        Producer::new(send.producer.clone(), send.geometry, handle).map_err(attach)?;
    let mut consumer =
        Consumer::new(receive.consumer.clone(), receive.geometry, handle + 1).map_err(attach)?;
    for round in 0..rounds {
        if !side.begins {
            receive_one(&mut consumer, &kernel, &mut random, round)?;
        }
        let payload = round.to_ne_bytes();
        producer.try_send(0, &[], &payload).map_err(|error| format!("send: {error:?}"))?;
        kernel.light_barrier();
        if producer.peer_park().any_sleeper() {
            wake_sleepers(producer.peer_park(), &kernel, 1);
        }
        if side.begins {
            receive_one(&mut consumer, &kernel, &mut random, round)?;
            done.word(0).fetch_add(2, std::sync::atomic::Ordering::Relaxed);
        }
    }
    Ok(())
}

fn receive_one(
    consumer: &mut Consumer,
    kernel: &Watching,
    random: &mut Random,
    round: u64,
) -> Result<(), String> {
    // Just long enough, now and then, for the answer to arrive between the last look and the announcement.
    let patience = random.below(256);
    let mut looks = 0;
    let taken = loop {
        match consumer.try_take() {
            Ok(taken) => break taken,
            Err(TryReceiveError::Empty) => {}
            Err(error) => return Err(format!("take: {error:?}")),
        }
        looks += 1;
        if looks > patience {
            match sleep_for_message(consumer, kernel)? {
                Some(Ok(taken)) => break taken,
                Some(Err(error)) => return Err(format!("take: {error:?}")),
                None => {}
            }
        }
    };
    let mut payload = [0; 8];
    consumer.read(&taken, 0, &mut payload);
    consumer.release(taken);
    if payload != round.to_ne_bytes() {
        return Err(format!("round {round}: got {payload:?}"));
    }
    Ok(())
}
