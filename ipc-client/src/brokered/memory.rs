//! Asks for a brokered handle and maps what comes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::shard_link::ShardEnd;
use crate::client::ClientError;
use crate::client::internal::{
    Attachment, Inner, check_count, descriptor_of, map_verified, wrong_plane,
};
use crate::layout::Geometry;
use crate::pair::{HandleStatus, LeaseTable, Pair, PairGeometry};
use crate::protocol::{AttachOptions, Attached, Memory, NamedHandle, Plane, Request, Role};
use crate::ring::{self, Region};
use crate::sys::map::{Access, Mapping};
use crate::wait::WaitPolicy;

/// What a brokered handle has.
#[derive(Debug)]
pub(super) struct Opened {
    // Before the attachment, which owns the mappings.
    pub(super) up: ring::Producer,
    pub(super) down: ring::Consumer,
    pub(super) shard: ShardEnd,
    pub(super) table: (LeaseTable, HandleStatus),
    pub(super) shard_number: u32,
    pub(super) durable: bool,
    pub(super) leases: u32,
    /// Longest payload in bytes.
    pub(super) max_message: usize,
    pub(super) named: Option<NamedHandle>,
    pub(super) group_created: bool,
    pub(super) attachment: Attachment,
}

struct Parts {
    pair: Pair,
    shard: ShardEnd,
    shard_number: u32,
    durable: bool,
    leases: u32,
    max_message: u32,
    named: Option<NamedHandle>,
    group_created: bool,
}

pub(super) fn open(
    client: &Arc<Inner>,
    queue: &str,
    role: Role,
    options: AttachOptions,
    policy: WaitPolicy,
) -> Result<Opened, ClientError> {
    let request = Request::Attach { name: queue.to_owned(), role, options };
    let (attachment, parts) =
        Attachment::new_with(client, queue, &request, policy, |attached, descriptors| {
            map(client, queue, role, attached, &descriptors)
        })?;
    let handle = attachment.key.handle;
    let geometry = *parts.pair.geometry();
    let up = ring::Producer::new(parts.pair.up(), geometry.up(), handle)?;
    let down = ring::Consumer::new(parts.pair.down(), geometry.down(), handle)?;
    Ok(Opened {
        up,
        down,
        shard: parts.shard,
        table: (parts.pair.leases(), parts.pair.status()),
        shard_number: parts.shard_number,
        durable: parts.durable,
        leases: parts.leases,
        max_message: parts.max_message as usize,
        named: parts.named,
        group_created: parts.group_created,
        attachment,
    })
}

fn map(
    client: &Inner,
    queue: &str,
    role: Role,
    attached: &Attached,
    descriptors: &[OwnedFd],
) -> Result<(Geometry, Vec<Mapping>, Parts), ClientError> {
    let Some(brokered) = &attached.brokered else {
        let form = match role {
            Role::Produce => "producer",
            Role::Consume => "consumer",
        };
        return Err(wrong_plane(queue, Plane::Direct, form));
    };
    check_count(attached, descriptors)?;
    let geometry = PairGeometry::new(
        role,
        attached.slots,
        attached.slot_size,
        attached.max_message,
        brokered.record_slots,
        brokered.leases,
    )
    .map_err(|error| ClientError::Protocol(error.to_string()))?;
    let file = |what: Memory, bytes: usize, access: Access| {
        map_verified(descriptor_of(attached, descriptors, what)?, what, bytes, access)
    };
    let client_file = file(Memory::ClientFile, geometry.client_file_bytes(), Access::ReadWrite)?;
    let shard_file = file(Memory::ShardFile, geometry.shard_file_bytes(), Access::ReadOnly)?;
    let region = |mapping: &Mapping| {
        // SAFETY: page-aligned, of this length, from a file that cannot shrink; the handle keeps the mapping longer than the rings
        // that get the region. The shard's file is only read: a producer writes its own page and its slots, a consumer its
        // own page, all of which lie in the client's file.
        unsafe { Region::new(mapping.base(), mapping.len()) }
    };
    let pair = Pair::new(geometry, region(&client_file), region(&shard_file))
        .ok_or_else(|| ClientError::Protocol("files of a handle".to_owned()))?;
    let shard = ShardEnd::new(client, attached, brokered.shard, brokered.ready_index, descriptors)?;
    let parts = Parts {
        pair,
        shard,
        shard_number: brokered.shard,
        durable: brokered.durable,
        leases: brokered.leases,
        max_message: attached.max_message,
        named: brokered.named,
        group_created: brokered.group_created,
    };
    Ok((geometry.up(), vec![client_file, shard_file], parts))
}
