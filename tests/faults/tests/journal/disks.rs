//! The same on real files, with both backends.

use std::path::Path;
use std::time::{Duration, Instant};

use ringmain::disk::{Backend, Disk, open_disk};
use ringmain::journal::{Config, Fetch, Journal, Ready, verify};
use ringmain_faults::journal::owner::Owner;

const BODY: [u8; 4_000] = [7; 4_000];

/// Publishes until so many bytes are there and closes.
fn fill(folder: &Path, backend: Backend, bytes: usize, config: &Config) -> Owner {
    let mut owner = Owner::default();
    let (mut journal, _) = open(folder, backend, config, &mut owner);
    let body = BODY;
    let mut written = 0;
    while written < bytes || journal.durable() < journal.last_lsn() {
        while written < bytes && journal.is_ready() == Ready::Ready {
            owner.publish(&mut journal, 1, &body).expect("there is room");
            written += body.len();
        }
        owner.drop_bodies();
        journal.submit(&owner, Instant::now());
        let progress = journal.reap();
        assert_eq!(progress.failed, None);
        if !progress.advanced {
            journal.wait(Some(Duration::from_millis(100))).expect("a healthy disk");
        }
    }
    journal.close(&owner, Duration::from_secs(60)).1.expect("a healthy disk");
    owner
}

/// The journal, and how long the opening took, the disk's included.
fn open(
    folder: &Path,
    backend: Backend,
    config: &Config,
    owner: &mut Owner,
) -> (Journal<Box<dyn Disk + Send>>, Duration) {
    let start = Instant::now();
    let (disk, _) = open_disk(folder, backend).expect("a disk");
    let (journal, _) = Journal::open(disk, config.clone(), owner).expect("opens");
    (journal, start.elapsed())
}

/// Publishes until so many bytes are there, closes, opens again and reads.
fn fill_and_open(backend: Backend, bytes: usize, config: &Config) {
    let folder = tempfile::tempdir().expect("a folder");
    let owner = fill(folder.path(), backend, bytes, config);
    let mut again = Owner::default();
    let (mut journal, _) = open(folder.path(), backend, config, &mut again);
    assert_eq!(again.state(), owner.state());
    let last = owner.state()[&1].next - 1;
    for sequence in [1, last / 2, last] {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match journal.message(1, sequence) {
                Fetch::Ready(stored) => break assert_eq!(stored.body, BODY),
                Fetch::Pending => assert!(Instant::now() < until, "a read hangs"),
                other => panic!("{sequence}: {other:?}"),
            }
            journal.reap();
            let _ = journal.wait(Some(Duration::from_millis(1)));
        }
    }
    drop(journal);
    let (mut disk, _) = open_disk(folder.path(), backend).expect("a disk");
    assert_eq!(verify(&mut disk).expect("nothing is damaged").messages, last);
}

fn small() -> Config {
    Config {
        segment_bytes: 1 << 20,
        batch_bytes: 64 << 10,
        cache_bytes: 64 << 10,
        ..Config::default()
    }
}

#[test]
fn what_the_kernel_offers() {
    fill_and_open(Backend::Auto, 6 << 20, &small());
}

#[test]
fn threads() {
    fill_and_open(Backend::Blocking, 6 << 20, &small());
}

/// Needs 5 GiB of disk (in `TMPDIR`) and prints figures: `docs/testing.md` has the command.
#[test]
#[ignore = "writes 4 GiB"]
fn opening_4_gib() {
    let (backend, config) = (Backend::Auto, Config::default());
    let folder = tempfile::tempdir().expect("a folder");
    let owner = fill(folder.path(), backend, 4 << 30, &config);
    for cache in ["warm", "cold"] {
        for _ in 0..7 {
            if cache == "cold"
                && let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "3")
            {
                return println!("skipped: cold: the page cache cannot be emptied: {error}");
            }
            let mut again = Owner::default();
            let (journal, took) = open(folder.path(), backend, &config, &mut again);
            assert_eq!(again.state(), owner.state());
            println!("a journal of 4 GiB opens in {took:?} ({cache})");
            drop(journal);
        }
    }
}

/// Who opens a journal waits for the locks of a dying process, and that one may go on to new files meanwhile.
#[test]
fn what_is_written_while_the_locks_are_waited_for_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |owner: &mut Owner| {
        let (disk, _) = open_disk(folder.path(), Backend::Blocking).expect("a disk");
        Journal::open(disk, small(), owner).expect("opens").0
    };
    let mut owner = Owner::default();
    let mut journal = open(&mut owner);
    let mut again = Owner::default();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let mut write = |segments: usize| {
            while journal.statistics().segments < segments || journal.durable() < journal.last_lsn()
            {
                while journal.is_ready() == Ready::Ready && journal.statistics().segments < segments
                {
                    owner.publish(&mut journal, 1, &[7; 4_000]).expect("there is room");
                }
                journal.submit(&owner, Instant::now());
                assert_eq!(journal.reap().failed, None);
                journal.wait(Some(Duration::from_millis(1))).expect("a healthy disk");
            }
        };
        write(2);
        scope.spawn(|| {
            let (disk, _) = open_disk(folder.path(), Backend::Blocking).expect("a disk");
            tell.send(()).expect("somebody listens");
            Journal::open(disk, small(), &mut again).map(drop).expect("opens");
        });
        told.recv().expect("it begins");
        std::thread::sleep(Duration::from_millis(50));
        write(8);
        drop(journal);
    });
    assert_eq!(again.state(), owner.state());
}
