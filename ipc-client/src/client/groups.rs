//! Groups of brokered queues.

use super::connection::unexpected;
use super::{Client, ClientError};
use crate::protocol::{ErrorCode, GroupInfo, GroupPlace, Reply, Request, StartAt};

/// How [`Client::reset_group`] goes about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResetOptions {
    /// Only says what it would come to.
    pub dry_run: bool,
    /// Although consumers are attached: their leases are lost.
    pub force: bool,
}

impl ResetOptions {
    /// The same, changing nothing or not.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The same, with consumers attached or not.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }
}

/// Everywhere the default group has an empty name.
impl Client {
    /// All groups of a brokered queue in the order of their names: how far behind they are, and who consumes.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, and `Invalid` on a direct queue.
    pub fn groups(&self, queue: &str) -> Result<Vec<GroupInfo>, ClientError> {
        let mut groups: Vec<GroupInfo> = Vec::new();
        loop {
            let after = groups.last().map(|last| last.group.clone());
            let request = Request::ListGroups { name: queue.to_owned(), after: after.clone() };
            let page = page(self.inner.request(&request)?.reply)?;
            // Ascending names: a daemon that does not come to an end is noticed.
            match page.first() {
                None => return Ok(groups),
                Some(first) if after.as_ref().is_none_or(|after| first.group > *after) => {
                    groups.extend(page);
                }
                Some(first) => {
                    let text = format!("group {:?} after {after:?}", first.group);
                    return Err(ClientError::Protocol(text));
                }
            }
        }
    }

    /// One group.
    ///
    /// # Errors
    /// As [`Self::groups`]; `NotFound` also if there is no such group.
    pub fn group_info(&self, queue: &str, group: &str) -> Result<GroupInfo, ClientError> {
        let request = Request::GroupInfo { name: queue.to_owned(), group: group.to_owned() };
        match <[GroupInfo; 1]>::try_from(page(self.inner.request(&request)?.reply)?) {
            Ok([info]) => Ok(info),
            Err(infos) => Err(ClientError::Protocol(format!("{} groups for one", infos.len()))),
        }
    }

    /// Creates a group; where it starts comes back. It is as safe as a confirmed message.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, `Invalid`, `Limit`, and `Exists`.
    pub fn create_group(
        &self,
        queue: &str,
        group: &str,
        from: StartAt,
    ) -> Result<GroupPlace, ClientError> {
        let (name, group) = (queue.to_owned(), group.to_owned());
        let request = Request::CreateGroup { name, group: group.clone(), from };
        match self.inner.request_once(&request, ErrorCode::Exists)? {
            Some(answer) => place(&answer.reply),
            // It was carried out before the connection was lost.
            None => {
                let info = self.group_info(queue, &group)?;
                Ok(GroupPlace { sequence: info.next_sequence, messages: info.lag_messages })
            }
        }
    }

    /// Puts a group to another start; where that really is comes back: what every group has acknowledged is gone.
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, `Invalid`, and `Busy` while consumers are attached.
    pub fn reset_group(
        &self,
        queue: &str,
        group: &str,
        to: StartAt,
        options: ResetOptions,
    ) -> Result<GroupPlace, ClientError> {
        let ResetOptions { dry_run, force } = options;
        let (name, group) = (queue.to_owned(), group.to_owned());
        let request = Request::ResetGroup { name, group, to, dry_run, force };
        place(&self.inner.request(&request)?.reply)
    }

    /// Deletes a group other than the default one. With `force` also while consumers are attached: they end with
    /// [`Closed::GroupDeleted`](crate::Closed::GroupDeleted).
    ///
    /// # Errors
    /// See [`Client`]; codes `NotFound`, `NotPermitted`, `Invalid`, and `Busy` while consumers are attached.
    pub fn delete_group(&self, queue: &str, group: &str, force: bool) -> Result<(), ClientError> {
        let (name, group) = (queue.to_owned(), group.to_owned());
        let request = Request::DeleteGroup { name, group, force };
        match self.inner.request_once(&request, ErrorCode::NotFound)? {
            Some(answer) => super::done(&answer.reply),
            None => Ok(()),
        }
    }
}

fn page(reply: Reply) -> Result<Vec<GroupInfo>, ClientError> {
    match reply {
        Reply::Groups(groups) => Ok(groups),
        reply => Err(unexpected(&reply)),
    }
}

fn place(reply: &Reply) -> Result<GroupPlace, ClientError> {
    match reply {
        Reply::Group(place) => Ok(*place),
        reply => Err(unexpected(reply)),
    }
}
