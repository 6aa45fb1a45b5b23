//! What only real files, real limits and real processes show.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ringmain::disk::{
    Availability, Backend, BlockingDisk, Buffer, Disk, Durability, Operation, RawWrites, SelfTest,
    SyncMode, Ticket, UringDisk, availability, errno, open_disk, open_disk_after, probe_sync_modes,
};

use crate::mounted::Mounted;
use crate::suite::{filled, finish};

type Open = fn(&Path) -> io::Result<Box<dyn Disk>>;

fn backends() -> Vec<(&'static str, Open)> {
    let blocking: Open = |path| Ok(Box::new(BlockingDisk::new(path, SyncMode::Dsync)?));
    let uring: Open = |path| Ok(Box::new(UringDisk::new(path, SyncMode::Dsync)?));
    let mut all = vec![("blocking", blocking)];
    if availability() == Availability::Allowed {
        all.push(("uring", uring));
    }
    all
}

fn create_and_finish(disk: &mut dyn Disk, name: &str, bytes: u64) -> io::Result<()> {
    disk.submit(Ticket(1), Operation::Create { name: name.to_owned(), bytes });
    finish(disk, 1).remove(&1).unwrap().result.map(|_| ())
}

fn fills_up_and_recovers(path: &Path, bytes: u64) {
    for (name, open) in backends() {
        let mut disk = open(path).unwrap();
        create_and_finish(&mut *disk, "first", bytes).unwrap();
        let full = create_and_finish(&mut *disk, "second", bytes).unwrap_err();
        assert_eq!(errno(&full), libc::ENOSPC, "{name}: {full}");
        assert!(full.to_string().contains("second"), "{full}");
        assert_eq!(disk.list().unwrap(), [("first".to_owned(), bytes)], "{name}");
        drop(disk);
        // Not a block is left: a journal there must open all the same.
        let rest = path.join("rest");
        let filled_up = io::copy(&mut io::repeat(1), &mut File::create(&rest).unwrap());
        assert_eq!(filled_up.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        let (mut disk, description) = open_disk(path, Backend::Auto).unwrap();
        assert_eq!(description.sync_mode, SyncMode::Fdatasync, "{description}");
        assert!(description.to_string().contains("no room"), "{description}");
        let first = disk.open("first").unwrap();
        disk.write(first, 0, &filled(4, 1)).unwrap();
        drop(disk);
        fs::remove_file(rest).unwrap();
        let mut disk = open(path).unwrap();
        let file = disk.open("first").unwrap();
        // The first file's room is its own.
        disk.write(file, bytes - 4096, &filled(3, 1)).unwrap();
        disk.submit(Ticket(2), Operation::Remove { file });
        assert!(finish(&mut *disk, 1)[&2].result.is_ok());
        create_and_finish(&mut *disk, "second", bytes).unwrap();
        let file = disk.list().unwrap().pop().unwrap().0;
        assert_eq!(file, "second");
        drop(disk);
        fs::remove_file(path.join("second")).unwrap();
    }
}

#[test]
fn a_full_tmpfs_is_an_error_until_there_is_room() {
    let Some(mounted) = Mounted::tmpfs(1 << 20) else { return };
    fills_up_and_recovers(mounted.path(), 600 << 10);
}

#[test]
fn a_full_ext4_is_an_error_until_there_is_room() {
    let Some(mounted) = Mounted::loop_ext4(16 << 20) else { return };
    fills_up_and_recovers(mounted.path(), 7 << 20);
}

#[test]
fn a_file_system_without_direct_writes_or_with_them_is_described() {
    let folder = tempfile::tempdir().unwrap();
    for backend in [Backend::Auto, Backend::Blocking, Backend::Uring] {
        let (mut disk, description) = match open_disk(folder.path(), backend) {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!((backend, error.kind()), (Backend::Uring, io::ErrorKind::Unsupported));
                assert!(error.to_string().contains("io_uring"), "{error}");
                continue;
            }
        };
        let line = description.to_string();
        assert!(line.contains(description.backend) && !line.contains('\n'), "{line}");
        assert_eq!(line.contains("O_DIRECT") && !line.contains("refuses"), description.direct);
        let file = disk.create("a", 8192).unwrap();
        disk.write(file, 0, &filled(1, 2)).unwrap();
        disk.submit(Ticket(1), Operation::Remove { file });
        assert!(finish(&mut *disk, 1)[&1].result.is_ok());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
    assert_eq!(
        open_disk(&folder.path().join("missing"), Backend::Auto).err().map(|error| error.kind()),
        Some(io::ErrorKind::NotFound)
    );
}

#[test]
fn a_self_test_is_made_once_where_it_is_kept() {
    let (journal, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = |test, folder: &tempfile::TempDir| {
        let (mut disk, description) = open_disk_after(test, folder.path(), Backend::Auto).unwrap();
        assert_eq!(disk.list().unwrap(), []);
        (description.figures, description.to_string())
    };
    let earlier = |line: &str| line.contains("as the self-test before found");
    let files = |folder: &tempfile::TempDir| fs::read_dir(folder.path()).unwrap().count();
    // Times in nanoseconds: two self-tests never find the same.
    let (made, line) = open(SelfTest::Made, &journal);
    assert!(!earlier(&line) && files(&journal) == 0, "{line}");
    let (kept, line) = open(SelfTest::Kept, &journal);
    assert!(!earlier(&line) && files(&journal) == 1 && kept != made, "{line}");
    let (again, line) = open(SelfTest::Again, &journal);
    assert!(earlier(&line) && again == kept, "{line}");
    let (of, line) = open(SelfTest::Of(journal.path()), &beside);
    assert!(earlier(&line) && of == kept && files(&beside) == 0, "{line}");
    // Who opens it for the first time finds out anew.
    let (anew, _) = open(SelfTest::Kept, &journal);
    assert_ne!(anew, kept);
    assert_eq!(open(SelfTest::Again, &journal).0, anew);
    // Where nothing was kept, or nothing that can be understood, it is made.
    fs::write(journal.path().join(".sync-mode"), "{").unwrap();
    let (of, line) = open(SelfTest::Of(journal.path()), &beside);
    assert!(!earlier(&line) && of != anew && files(&beside) == 0, "{line}");
    let (again, line) = open(SelfTest::Again, &journal);
    assert!(!earlier(&line) && again != anew, "{line}");
    assert_eq!(open(SelfTest::Again, &journal).0, again);
}

#[test]
fn raw_writes_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mode = probe_sync_modes(folder.path()).unwrap().chosen;
    for (bytes, depth) in [(1, 1), (5000, 1), (256 << 10, 2), (1 << 20, 2)] {
        for backend in [Backend::Auto, Backend::Blocking] {
            let mut writes = RawWrites::new(folder.path(), backend, mode, bytes, depth).unwrap();
            for _ in 0..20 {
                assert!(writes.sample().unwrap() > Duration::ZERO);
            }
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_truncated_file_is_read_to_its_end_and_not_beyond() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), vec![6; 5000]).unwrap();
    for (name, open) in backends() {
        let mut disk = open(folder.path()).unwrap();
        let file = disk.open("a").unwrap();
        assert_eq!(disk.length(file).unwrap(), 5000);
        let mut buffer = Buffer::new(4096);
        disk.read(file, 0, &mut buffer).unwrap();
        assert_eq!(buffer[4095], 6);
        for operation in [4096, 8192] {
            let read = Operation::Read { file, offset: operation, buffer: Buffer::new(4096) };
            disk.submit(Ticket(operation), read);
            let error = finish(&mut *disk, 1).remove(&operation).unwrap().result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{name}: {error}");
            let error = disk.read(file, operation, &mut buffer).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{name}: {error}");
        }
    }
}

/// The ring belongs to the thread of the first operation. Dropped by another, it gives up the memory in flight rather than letting the kernel write to memory
/// that was freed.
#[test]
fn a_disk_moves_to_the_thread_that_uses_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, _) = open_disk(folder.path(), Backend::Auto).unwrap();
    let file = disk.create("a", 1 << 20).unwrap();
    let used = std::thread::spawn(move || {
        let write = |offset| Operation::Write {
            file,
            offset,
            buffer: filled(8, 128),
            durability: Durability::Durable,
        };
        disk.submit(Ticket(1), write(0));
        assert!(finish(&mut *disk, 1)[&1].result.is_ok());
        disk.submit(Ticket(2), write(1 << 19));
        disk.flush();
        disk
    });
    drop(used.join().unwrap());
    let bytes = fs::read(folder.path().join("a")).unwrap();
    assert!(bytes[..1 << 19].iter().all(|byte| *byte == 8));
}

/// Threads keep what is forbidden to them to themselves: only this one and its children lose io_uring.
#[test]
fn where_io_uring_is_forbidden_threads_take_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let thread = std::thread::spawn(move || {
        if let Err(error) = forbid_io_uring() {
            eprintln!("skipped: no seccomp filter can be set here: {error}");
            return;
        }
        assert!(matches!(availability(), Availability::Denied { errno: libc::EPERM, .. }));
        let (mut disk, description) = open_disk(&path, Backend::Auto).unwrap();
        assert_eq!(description.backend, "blocking");
        let line = description.to_string();
        assert!(line.contains("io_uring is not allowed") && line.contains("seccomp"), "{line}");
        let file = disk.create("a", 8192).unwrap();
        let durability = Durability::Durable;
        let write = Operation::Write { file, offset: 0, buffer: filled(1, 2), durability };
        disk.submit(Ticket(1), write);
        assert!(finish(&mut *disk, 1)[&1].result.is_ok());
        drop(disk);
        let refused = open_disk(&path, Backend::Uring).err().unwrap();
        assert!(refused.to_string().contains("seccomp"), "{refused}");
        // Whoever insists gets errors, not a hang.
        let mut disk = UringDisk::new(&path, SyncMode::Dsync).unwrap();
        let file = disk.open("a").unwrap();
        disk.submit(Ticket(2), Operation::Read { file, offset: 0, buffer: Buffer::new(8192) });
        let one = finish(&mut disk, 1).remove(&2).unwrap();
        let error = one.result.unwrap_err();
        assert_eq!((errno(&error), one.buffer.is_some()), (libc::EPERM, true), "{error}");
    });
    thread.join().unwrap();
}

/// A seccomp filter like that of container runtimes: io_uring_setup fails with EPERM.
fn forbid_io_uring() -> io::Result<()> {
    let statement =
        |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let errno = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, setup),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, errno),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live during both calls; the kernel copies them.
    let set = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        } else {
            -1
        }
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const CHILD: &str = "RINGMAIN_TEST_DISK_CHILD";

/// Not a test by itself: what `locks_end_with_a_killed_process` starts and kills.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let (mut disk, _) = open_disk(Path::new(&path), Backend::Auto).unwrap();
    let file = disk.create("locked", 8 << 20).unwrap();
    println!("\nwriting");
    let mut next = 0;
    let (mut buffers, mut completed) = (vec![filled(1, 256), filled(2, 256)], Vec::new());
    loop {
        while let Some(buffer) = buffers.pop() {
            let offset = next % 8 * (1 << 20);
            let durability = Durability::Durable;
            disk.submit(Ticket(next), Operation::Write { file, offset, buffer, durability });
            next += 1;
        }
        disk.flush();
        disk.wait(None).unwrap();
        disk.reap(&mut completed);
        buffers.extend(completed.drain(..).filter_map(|one| one.buffer));
    }
}

const LIMITED: &str = "RINGMAIN_TEST_DISK_LIMITED";

/// Not a test by itself: what `a_write_that_the_kernel_cuts_short_is_finished_or_fails` starts.
#[test]
fn child_whose_files_may_not_be_long() {
    let Some(path) = std::env::var_os(LIMITED) else { return };
    // SAFETY: the disposition of one signal of this process, which has just this one test.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    for (name, open) in backends() {
        let mut disk = open(Path::new(&path)).unwrap();
        let file = disk.create(name, 1 << 20).unwrap();
        let limit = libc::rlimit { rlim_cur: 8192, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the structure is valid during the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
        let durability = Durability::Durable;
        let write = Operation::Write { file, offset: 0, buffer: filled(7, 4), durability };
        disk.submit(Ticket(1), write);
        // The kernel writes two of the four blocks; asked for the rest it says why.
        let error = finish(&mut *disk, 1).remove(&1).unwrap().result.unwrap_err();
        assert_eq!(errno(&error), libc::EFBIG, "{name}: {error}");
        let unlimited =
            libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the structure is valid during the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const unlimited) }, 0);
        let mut buffer = Buffer::new(4 * 4096);
        disk.read(file, 0, &mut buffer).unwrap();
        assert_eq!((buffer[8191], buffer[8192]), (7, 0), "{name}");
    }
    println!("\nlimited");
}

#[test]
fn a_write_that_the_kernel_cuts_short_is_finished_or_fails() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "real::child_whose_files_may_not_be_long", "--nocapture"])
        .env(LIMITED, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\nlimited\n"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn locks_end_with_a_killed_process() {
    for _ in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "real::child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line == "writing")));
        std::thread::sleep(Duration::from_millis(20));
        child.kill().unwrap();
        let (mut disk, _) = open_disk(folder.path(), Backend::Auto).unwrap();
        let file = disk.open("locked").unwrap();
        disk.sync(file).unwrap();
        child.wait().unwrap();
        assert_eq!(disk.list().unwrap(), [("locked".to_owned(), 8 << 20)]);
    }
}
