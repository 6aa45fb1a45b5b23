//! From a decoded request to the method that carries it out.

use std::os::fd::OwnedFd;

use ringmain_client::protocol::{ErrorCode, HandleKey, Plane, Reply, Request};

use super::broker::{Broker, bug};
use super::brokered::WantedHandle;
use super::connections::{Answer, Failure, refuse};
use super::link::ToKeeper;
use super::peer::Credentials;
use crate::shard::logic::GroupCommand;

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
        let Some(request) = self.on_brokered_request(number, session, &user, request)? else {
            return Ok(None);
        };
        match request {
            Request::Hello { .. } => Err(bug("Hello came through").into()),
            Request::CreateQueue { name, spec } => {
                return self.create_queue(number, &user, name, &spec);
            }
            Request::DeleteQueue { name } => self.delete_queue(&user, &name),
            Request::PurgeQueue { name } => self.purge_queue(&user, &name),
            Request::ListQueues { after } => {
                self.list_queues(number, &user, &after)?;
                return Ok(None);
            }
            Request::QueueInfo { name } => self.queue_info(&user, &name),
            Request::Attach { name, role, options: _ } => self.attach(session, &user, &name, role),
            Request::EditQueue { name, delivery } => self.edit_queue(&user, &name, &delivery),
            Request::Redrive { name, .. } => {
                self.find(&name)?;
                let text =
                    format!("queue {name} is direct: only brokered queues have dead letters");
                refuse(ErrorCode::Invalid, text)
            }
            Request::ListGroups { name, .. }
            | Request::GroupInfo { name, .. }
            | Request::CreateGroup { name, .. }
            | Request::ResetGroup { name, .. }
            | Request::DeleteGroup { name, .. } => {
                self.find(&name)?;
                refuse(
                    ErrorCode::Invalid,
                    format!("queue {name} is direct: only brokered queues have groups"),
                )
            }
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
            Request::Status => return self.answer_status(number).map(|()| None),
            Request::Upgrade { binary } => {
                return self.upgrade(number, user.uid, binary).map(|()| None);
            }
        }
        .map(Some)
    }

    /// Carries out what concerns a brokered queue; gives everything else back. What it carries out is answered later, or by the
    /// error.
    fn on_brokered_request(
        &mut self,
        number: u64,
        session: u64,
        user: &Credentials,
        request: Request,
    ) -> Result<Option<Request>, Failure> {
        let named = request.queue_name().and_then(|name| self.brokered_id(name));
        let keyed = |key: &HandleKey| self.brokered.queues.contains_key(&key.queue);
        match (request, named) {
            (Request::CreateQueue { name, spec }, _) if spec.plane() == Plane::Brokered => {
                if spec.durable && spec.plane == Some(Plane::Direct) {
                    let text = "a direct queue cannot be durable: leave the plane out, or ask for the brokered one";
                    return refuse(ErrorCode::Invalid, text);
                }
                self.create_brokered(number, user, name, &spec)?
            }
            (Request::DeleteQueue { .. }, Some(id)) => self.delete_brokered(number, user, id)?,
            (Request::PurgeQueue { .. }, Some(id)) => self.purge_brokered(number, user, id)?,
            (Request::QueueInfo { .. }, Some(id)) => self.brokered_queue_info(number, user, id)?,
            (Request::EditQueue { delivery, .. }, Some(id)) => {
                self.edit_brokered(number, user, id, &delivery)?
            }
            (Request::Redrive { count, .. }, Some(id)) => {
                self.redrive_brokered(number, user, id, count)?
            }
            (Request::ListGroups { after, .. }, Some(id)) => {
                self.brokered_groups(number, user, id, None, after)?
            }
            (Request::GroupInfo { group, .. }, Some(id)) => {
                self.brokered_groups(number, user, id, Some(group), None)?
            }
            (Request::CreateGroup { group, from, .. }, Some(id)) => {
                let command = GroupCommand::Create { from };
                self.brokered_group_command(number, user, id, group, command)?
            }
            (Request::ResetGroup { group, to, dry_run, force, .. }, Some(id)) => {
                let command = GroupCommand::Reset { to, dry_run, force };
                self.brokered_group_command(number, user, id, group, command)?
            }
            (Request::DeleteGroup { group, force, .. }, Some(id)) => {
                let command = GroupCommand::Delete { force };
                self.brokered_group_command(number, user, id, group, command)?
            }
            (Request::Attach { role, options, .. }, Some(id)) => {
                // Its handles count for the user of the session, whoever asks over this connection.
                let payer = self.sessions.get(&session).map_or(user.uid, |session| session.uid);
                let (connection, user, queue) = (number, user.clone(), id);
                let wanted =
                    WantedHandle { connection, session, user, payer, queue, role, options };
                self.attach_brokered(wanted)?
            }
            (Request::Detach { handle }, _) if keyed(&handle) => {
                self.check_brokered_handle(session, handle)?;
                self.close_brokered(handle.queue, handle.handle, false);
                self.answer(number, Ok(Some(Answer::of(Reply::Done))))?;
                None
            }
            (Request::ReportFault { handle, what }, _) if keyed(&handle) => {
                self.check_brokered_handle(session, handle)?;
                self.report_brokered_fault(handle, &what);
                self.answer(number, Ok(Some(Answer::of(Reply::Done))))?;
                None
            }
            (request, _) => return Ok(Some(request)),
        };
        Ok(None)
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
