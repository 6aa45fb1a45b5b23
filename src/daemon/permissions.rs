//! Who may do what with a queue: owner, group and mode, as for a file.

use ringmain_client::protocol::{Kind, Role};

use super::peer::Credentials;

/// Rights of one user on one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    read: bool,
    write: bool,
    execute: bool,
}

impl Rights {
    /// The first class that fits decides, as for files; root has every right.
    pub(super) fn of(user: &Credentials, owner_uid: u32, group_gid: u32, mode: u32) -> Self {
        if user.uid == 0 {
            return Self { read: true, write: true, execute: true };
        }
        let bits = if user.uid == owner_uid {
            mode >> 6
        } else if user.in_group(group_gid) {
            mode >> 3
        } else {
            mode
        };
        Self { read: bits & 4 != 0, write: bits & 2 != 0, execute: bits & 1 != 0 }
    }

    /// Whether a handle may be had. Members of an mpmc ring can all write all of it, so one right covers both roles.
    pub(super) fn may_attach(self, kind: Kind, role: Role) -> bool {
        match (kind, role) {
            (Kind::Mpmc, _) => self.read && self.write,
            (Kind::Spsc, Role::Produce) => self.write,
            (Kind::Spsc, Role::Consume) => self.read,
        }
    }

    /// What [`Self::may_attach`] asks for, for error texts.
    pub(super) fn needed(kind: Kind, role: Role) -> &'static str {
        match (kind, role) {
            (Kind::Mpmc, _) => "read and write",
            (Kind::Spsc, Role::Produce) => "write",
            (Kind::Spsc, Role::Consume) => "read",
        }
    }

    /// Send to a brokered queue, or have messages sent there.
    pub(super) fn may_send(self) -> bool {
        self.write
    }

    /// Delete and purge.
    pub(super) fn may_manage(self) -> bool {
        self.execute
    }

    /// See the queue at all.
    pub(super) fn may_see(self) -> bool {
        self.read || self.write || self.execute
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let rights = |user: &Credentials, mode| {
            let Rights { read, write, execute } = Rights::of(user, 100, 200, mode);
            (read, write, execute)
        };
        let (owner, member) = (user(100, 1, &[]), user(5, 1, &[7, 200]));
        let (main, other) = (user(5, 200, &[]), user(5, 5, &[]));
        assert_eq!(rights(&owner, 0o700), (true, true, true));
        assert_eq!(rights(&owner, 0o077), (false, false, false));
        assert_eq!(rights(&member, 0o740), (true, false, false));
        assert_eq!(rights(&main, 0o720), (false, true, false));
        assert_eq!(rights(&member, 0o707), (false, false, false));
        assert_eq!(rights(&other, 0o701), (false, false, true));
        assert_eq!(rights(&user(0, 0, &[]), 0), (true, true, true));
    }

    #[test]
    fn mpmc_has_one_right_and_spsc_two() {
        let other = user(5, 5, &[]);
        let rights = |mode| Rights::of(&other, 100, 200, mode);
        assert!(!rights(0o704).may_attach(Kind::Mpmc, Role::Consume));
        assert!(!rights(0o702).may_attach(Kind::Mpmc, Role::Produce));
        assert!(rights(0o706).may_attach(Kind::Mpmc, Role::Produce));
        assert!(rights(0o704).may_attach(Kind::Spsc, Role::Consume));
        assert!(!rights(0o704).may_attach(Kind::Spsc, Role::Produce));
        assert!(rights(0o702).may_attach(Kind::Spsc, Role::Produce));
        assert!(rights(0o701).may_manage() && !rights(0o706).may_manage());
        assert!(!rights(0o700).may_see());
    }
}
