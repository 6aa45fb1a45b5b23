//! From a decoded request to the method that carries it out.

use std::os::fd::OwnedFd;

use ringmain_client::protocol::{ErrorCode, Request};

use super::broker::{Broker, bug};
use super::connections::{Answer, Failure, refuse};
use super::link::ToKeeper;

/// Longest path of a binary, as the kernel has it.
const PATH_BYTES_MAX: usize = 4096;

impl Broker {
    /// `None`: the answer comes later.
    pub(super) fn on_request(
        &mut self,
        number: u64,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Answer>, Failure> {
        let expected = match &request {
            Request::RegisterDoorbell => 2,
            _ => 0,
        };
        if descriptors.len() != expected {
            let text = format!(
                "{} descriptors came with the request, it takes {expected}",
                descriptors.len()
            );
            return refuse(ErrorCode::Invalid, text);
        }
        if let Request::Hello { session, handles, .. } = &request {
            return self.hello(number, *session, handles).map(Some);
        }
        let session = self.session_of(number)?;
        let Some(connection) = self.connections.get(&number) else {
            return Err(bug("connection without entry").into());
        };
        let user = connection.user.clone();
        match request {
            Request::Hello { .. } => Err(bug("Hello came through").into()),
            Request::CreateQueue { name, spec } => {
                return self.create_queue(number, &user, name, &spec);
            }
            Request::DeleteQueue { name } => self.delete_queue(&user, &name),
            Request::PurgeQueue { name } => self.purge_queue(&user, &name),
            Request::ListQueues { after } => Ok(self.list_queues(&user, &after)),
            Request::QueueInfo { name } => self.queue_info(&user, &name),
            Request::Attach { name, role, options: _ } => self.attach(session, &user, &name, role),
            Request::EditQueue { name, .. } | Request::Redrive { name, .. } => refuse(
                ErrorCode::Invalid,
                format!("queue {name} is direct: only brokered queues have delivery rules"),
            ),
            Request::Detach { handle } => self.detach(session, handle),
            Request::RegisterDoorbell => self.register_doorbell(session, descriptors),
            Request::BindDoorbell { handle, doorbell } => {
                self.bind_doorbell(session, handle, doorbell)
            }
            Request::FetchDoorbell { queue, doorbell } => {
                self.fetch_doorbell(session, queue, doorbell)
            }
            Request::ReleaseDoorbell { doorbell } => self.release_doorbell(session, doorbell),
            Request::ReportFault { handle, what } => self.report_fault(session, handle, &what),
            Request::Status => Ok(self.status()),
            Request::Upgrade { binary } => {
                return self.upgrade(number, user.uid, binary).map(|()| None);
            }
        }
        .map(Some)
    }

    /// Passes the wish on to the keeper, whose decision is the answer.
    fn upgrade(&mut self, number: u64, uid: u32, binary: String) -> Result<(), Failure> {
        let own = nix::unistd::geteuid().as_raw();
        if uid != 0 && uid != own {
            let text = format!("only root and the user of the daemon ({own}) may replace it");
            return refuse(ErrorCode::NotPermitted, text);
        }
        if binary.len() > PATH_BYTES_MAX || binary.contains('\0') {
            return refuse(ErrorCode::Invalid, "the path of the binary is no path");
        }
        if self.upgrade_by.is_some() {
            return refuse(ErrorCode::Busy, "an upgrade is under way: try again later");
        }
        self.keeper.send(&ToKeeper::Upgrade { binary })?;
        self.upgrade_by = Some(number);
        Ok(())
    }
}
