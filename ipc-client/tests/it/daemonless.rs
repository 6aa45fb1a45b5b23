//! What a client says when there is no daemon, or something else in its place.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use ringmain_client::{Client, ClientError};

fn error(socket: &Path) -> ClientError {
    Client::connect(socket).expect_err("no daemon is there")
}

#[test]
fn without_a_daemon_the_error_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("none.sock");
    let error = error(&socket);
    assert!(error.is_unavailable());
    let text = error.to_string();
    assert!(text.contains(socket.to_str().expect("UTF-8")), "{text}");
    assert!(text.contains("ringmain serve"), "{text}");
    assert!(!text.contains('\n'), "{text}");
}

#[test]
fn a_dead_daemons_socket_is_no_daemon() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("dead.sock");
    drop(UnixListener::bind(&socket).expect("bind"));
    assert!(error(&socket).is_unavailable());
}

#[test]
fn another_kind_of_socket_is_no_daemon() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("stream.sock");
    let _listener = UnixListener::bind(&socket).expect("bind");
    assert!(error(&socket).is_unavailable());
}

#[test]
fn a_path_that_no_socket_can_have_is_an_error() {
    let long = PathBuf::from("/tmp").join("x".repeat(200));
    assert!(error(&long).is_unavailable());
    assert!(error(Path::new("")).is_unavailable());
}
