//! A forked child: every call says so, nothing crashes, and the parent goes on.

use std::time::Duration;

use ringmain_client::{Client, ClientError, Kind, ReceiveError, Selector, SendError};

use crate::harness::{Daemon, Helper, create, helper_client};

/// What the child does with what its parent made; the number of the first check that fails.
fn misuse(client: &Client, tools: Tools) -> Result<(), i32> {
    let Tools { mut producer, mut consumer, mut other, mut selector } = tools;
    let check = |number: i32, good: bool| if good { Ok(()) } else { Err(number) };
    let mut buffer = Vec::new();
    check(1, producer.try_send(b"x") == Err(SendError::UsedAfterFork))?;
    check(2, producer.send(b"x") == Err(SendError::UsedAfterFork))?;
    check(3, producer.try_send_batch(&[b"x"]) == Err(SendError::UsedAfterFork))?;
    check(4, matches!(producer.try_reserve(1), Err(SendError::UsedAfterFork)))?;
    check(5, consumer.try_receive(&mut buffer) == Err(ReceiveError::UsedAfterFork))?;
    check(
        6,
        consumer.receive_timeout(&mut buffer, Duration::from_secs(9))
            == Err(ReceiveError::UsedAfterFork),
    )?;
    check(7, matches!(other.try_take(), Err(ReceiveError::UsedAfterFork)))?;
    check(8, consumer.try_receive_batch(9, |_| ()) == Err(ReceiveError::UsedAfterFork))?;
    check(9, matches!(selector.wait(None), Err(ClientError::UsedAfterFork)))?;
    check(10, matches!(client.status(), Err(ClientError::UsedAfterFork)))?;
    check(11, matches!(client.producer("q"), Err(ClientError::UsedAfterFork)))?;
    drop((producer, consumer, other, selector));
    // The child may connect anew.
    let own = Client::connect(client.socket()).map_err(|_| 12)?;
    let mut producer = own.producer("q").map_err(|_| 13)?;
    producer.send(b"from the child").map_err(|_| 14)?;
    Ok(())
}

struct Tools {
    producer: ringmain_client::Producer,
    consumer: ringmain_client::Consumer,
    other: ringmain_client::Consumer,
    selector: Selector,
}

/// Forks in a process of its own, where no other test holds a lock of the allocator.
#[test]
fn forker() {
    let Some(client) = helper_client() else {
        return;
    };
    let mut selector = Selector::new(&client).expect("the daemon answers");
    selector.add(client.consumer("selected").expect("attach")).expect("the daemon answers");
    let tools = Tools {
        producer: client.producer("q").expect("attach"),
        consumer: client.consumer("q").expect("attach"),
        other: client.consumer("q").expect("attach"),
        selector,
    };
    // SAFETY: the threads of this process are this one and one that waits for it; none holds a lock.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let code = match misuse(&client, tools) {
            Ok(()) => 0,
            Err(number) => number,
        };
        // SAFETY: leaves without running what the parent registered.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the child is ours, and `status` is a valid place.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    assert!(libc::WIFEXITED(status), "the child was killed: {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 0, "this check failed in the child");
    // The parent's handles are as good as before.
    let Tools { mut producer, mut consumer, mut selector, .. } = tools;
    let mut buffer = Vec::new();
    consumer.receive_timeout(&mut buffer, Duration::from_secs(9)).expect("the child has sent it");
    assert_eq!(buffer, b"from the child");
    producer.send(b"x").expect("there is room");
    consumer.receive(&mut buffer).expect("it is there");
    client.producer("selected").expect("attach").send(b"x").expect("there is room");
    assert_eq!(selector.wait(Some(Duration::from_secs(9))).expect("no fork").len(), 1);
    client.status().expect("the connection is still ours");
}

#[test]
fn a_forked_child_is_told_and_harms_nobody() {
    let (daemon, client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    create(&client, "selected", Kind::Mpmc, 64, 64);
    Helper::start("forked::forker", &daemon).finish();
}

/// Takes a message before it forks and looks at it in the child.
#[test]
fn forker_with_a_message() {
    let Some(client) = helper_client() else {
        return;
    };
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    producer.send(b"held").expect("there is room");
    let guard = consumer.take().expect("it is there");
    let mut reservation = producer.reserve(4).expect("there is room");
    // SAFETY: as in `forker`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let told = guard.copy_to(&mut Vec::new()) == Err(ReceiveError::UsedAfterFork)
            && guard.as_ptr().is_none()
            && guard.metadata().is_err()
            && reservation.write(0, b"x") == Err(SendError::UsedAfterFork)
            && reservation.as_mut_ptr().is_null()
            && reservation.commit(1) == Err(SendError::UsedAfterFork);
        drop(guard);
        // SAFETY: leaves without running what the parent registered.
        unsafe { libc::_exit(i32::from(!told)) };
    }
    ended_well(child);
    let mut buffer = Vec::new();
    guard.copy_to(&mut buffer).expect("this is no fork");
    assert_eq!(buffer, b"held");
    guard.release();
    reservation.write(0, b"kept").expect("this is no fork");
    reservation.commit(4).expect("this is no fork");
    consumer.receive(&mut buffer).expect("it is there");
    assert_eq!(buffer, b"kept");
}

#[test]
fn a_held_message_is_out_of_reach_in_a_forked_child() {
    let (daemon, _client) = Daemon::with_queue(Kind::Mpmc, 64, 64);
    Helper::start("forked::forker_with_a_message", &daemon).finish();
}

/// Forks while it writes a batch in place and while it is shown one.
#[test]
fn forker_in_a_batch() {
    let Some(client) = helper_client() else {
        return;
    };
    let mut producer = client.producer("q").expect("attach");
    let mut consumer = client.consumer("q").expect("attach");
    let (mut child, mut is_told) = (0, false);
    let sent = producer.send_batch_in_place(3, 8, |index, body| {
        if index == 1 {
            // SAFETY: as in `forker`.
            child = unsafe { libc::fork() };
            assert!(child >= 0);
        }
        let written = body.write(0, &index.to_le_bytes());
        if child == 0 && index == 1 {
            let told = written == Err(SendError::UsedAfterFork) && body.as_mut_ptr().is_null();
            is_told = told;
        } else {
            written.expect("eight bytes");
        }
    });
    if child == 0 {
        let told = is_told && sent == Err(SendError::UsedAfterFork);
        // SAFETY: leaves without running what the parent registered.
        unsafe { libc::_exit(i32::from(!told)) };
    }
    sent.expect("there is room");
    ended_well(child);
    let mut numbers = Vec::new();
    let shown = consumer.receive_batch(3, |message| {
        if numbers.len() == 1 {
            // SAFETY: as in `forker`.
            child = unsafe { libc::fork() };
            assert!(child >= 0);
        }
        let mut number = [0; 8];
        let read = message.read_at(0, &mut number);
        is_told = read == Err(ReceiveError::UsedAfterFork) && message.as_ptr().is_none();
        assert!(child != 0 || numbers.is_empty() || is_told, "the child was not told");
        numbers.push(usize::from_le_bytes(number));
    });
    if child == 0 {
        let told = consumer.try_receive(&mut Vec::new()) == Err(ReceiveError::UsedAfterFork);
        // SAFETY: leaves without running what the parent registered.
        unsafe { libc::_exit(i32::from(!told)) };
    }
    assert_eq!((shown, numbers), (Ok(3), vec![0, 1, 2]));
    ended_well(child);
}

fn ended_well(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the child is ours, and `status` is a valid place.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
}

#[test]
fn a_batch_is_out_of_reach_in_a_forked_child() {
    for kind in [Kind::Spsc, Kind::Mpmc] {
        let (daemon, _client) = Daemon::with_queue(kind, 64, 64);
        Helper::start("forked::forker_in_a_batch", &daemon).finish();
    }
}
