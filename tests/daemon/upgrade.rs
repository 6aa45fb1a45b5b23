//! Replacing the broker on purpose.

use std::os::unix::fs::PermissionsExt;

use ringmain_client::protocol::{ErrorCode, Reply, Request, Role};

use crate::support::*;

#[test]
fn an_upgrade_changes_the_broker_and_nothing_else() {
    let daemon = Daemon::start();
    let copy = daemon.folder.path().join("ringmain-next");
    std::fs::copy(BINARY, &copy).unwrap();
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let producing = raw.attach("m", Role::Produce);
    let mut producer = producing.producer();
    for binary in [String::new(), copy.to_str().unwrap().to_owned()] {
        let before = daemon.status();
        let (mut raw, _) = Raw::resume(&daemon.socket, 1, &[producing.key()]);
        assert_eq!(raw.ask(&Request::Upgrade { binary: binary.clone() }), Reply::Done);
        let after = daemon.next_broker(&before);
        assert_ne!(after.broker_pid, before.broker_pid);
        assert_eq!(after.keeper_pid, before.keeper_pid);
        assert_eq!((after.queues, after.handles), (1, 1));
        eventually("the old one is gone", || (!is_alive(before.broker_pid)).then_some(()));
        let runs = std::fs::read_link(format!("/proc/{}/exe", after.broker_pid)).unwrap();
        assert_eq!(runs == copy, !binary.is_empty(), "{runs:?}");
        producer.try_send(0, &[], b"x").unwrap();
    }
    // From now on the new binary is the one that is started again, even if its file is gone.
    std::fs::remove_file(&copy).unwrap();
    let status = daemon.kill_broker();
    let runs = std::fs::read_link(format!("/proc/{}/exe", status.broker_pid)).unwrap();
    assert!(runs.to_str().unwrap().contains("ringmain-next"), "{runs:?}");
    let (mut raw, lost) = Raw::resume(&daemon.socket, 1, &[producing.key()]);
    assert!(lost.is_empty());
    assert_eq!(raw.info("m").used_slots, 2);
}

#[test]
fn a_binary_that_is_no_broker_changes_nothing() {
    let daemon = Daemon::start();
    let status = daemon.status();
    let folder = daemon.folder.path();
    let garbage = folder.join("garbage");
    std::fs::write(&garbage, "no program").unwrap();
    std::fs::set_permissions(&garbage, PermissionsExt::from_mode(0o755)).unwrap();
    let plain = folder.join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let mut raw = Raw::hello(&daemon.socket, 1);
    for (binary, word) in [
        ("relative/path", "absolute"),
        ("/no/such/binary", "No such file"),
        (plain.to_str().unwrap(), "not an executable"),
        (folder.to_str().unwrap(), "not an executable"),
        (garbage.to_str().unwrap(), "cannot be started"),
        ("/bin/true", "does not run as a broker"),
        ("/bin/false", "does not run as a broker"),
    ] {
        let (code, text) = raw.refused(&Request::Upgrade { binary: binary.into() });
        assert_eq!(code, ErrorCode::Io, "{text}");
        assert!(text.contains(word) && text.contains(binary), "{word}: {text}");
    }
    let (code, _) = raw.refused(&Request::Upgrade { binary: "/a\0b".into() });
    assert_eq!(code, ErrorCode::Invalid);
    assert_eq!(raw.status().broker_pid, status.broker_pid);
    assert_eq!(raw.status().broker_starts, 1);
}

#[test]
fn a_binary_that_cannot_adopt_is_replaced_by_the_old_one() {
    // A broker that says it stands by and then fails: this binary again with a limit on its address space that lets it
    // start, but not map the ring.
    let daemon = Daemon::start();
    let wrapper = daemon.folder.path().join("wrapper");
    let Some(compiler) =
        ["/usr/bin/cc", "/usr/bin/gcc"].iter().find(|path| std::path::Path::new(path).exists())
    else {
        eprintln!("skipped: no C compiler here");
        return;
    };
    let source = daemon.folder.path().join("wrapper.c");
    // Reads nothing, answers the first thing a broker says, then leaves.
    let frame = {
        // ToKeeper::Standby { version: "x" }: variant 0, a string of one byte.
        let mut frame = Vec::from(*b"RMKP");
        frame.extend_from_slice(&[1, 0, 0, 0, 3, 0, 0, 0, 0, 1, b'x']);
        frame.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>()
    };
    let code = format!(
        "#include <sys/socket.h>\n#include <unistd.h>\nint main(void) {{ static const char f[] = \"{frame}\"; \
         char b[65536]; send(0, f, sizeof f - 1, 0); recv(0, b, sizeof b, 0); return 9; }}\n"
    );
    std::fs::write(&source, code).unwrap();
    let built = std::process::Command::new(compiler).arg(&source).arg("-o").arg(&wrapper).status();
    assert!(built.unwrap().success());
    let mut raw = Raw::hello(&daemon.socket, 1);
    raw.create("m", mpmc());
    let producing = raw.attach("m", Role::Produce);
    let before = daemon.status();
    let (mut raw, _) = Raw::resume(&daemon.socket, 1, &[producing.key()]);
    let binary = wrapper.to_str().unwrap().to_owned();
    assert_eq!(raw.ask(&Request::Upgrade { binary }), Reply::Done);
    let after = daemon.next_broker(&before);
    let runs = std::fs::read_link(format!("/proc/{}/exe", after.broker_pid)).unwrap();
    assert_eq!(runs, std::path::Path::new(BINARY).canonicalize().unwrap());
    assert_eq!((after.queues, after.handles), (1, 1));
    assert!(daemon.log().contains("back to"), "{}", daemon.log());
}
