//! A message that was delivered.

use std::time::Duration;

use crate::layout::metadata::{Metadata, MetadataError};
use crate::request::ReplyTo;
use crate::wire::{DeliveryHeader, LeaseToken};

/// A message that is with its consumer until it is acknowledged, given back, or its lease is over. A copy: dropping it
/// says nothing about the message.
#[derive(Debug, Clone, Default)]
pub struct Delivery {
    /// Of the consumer, so that another one's deliveries are recognised; 0 if nothing was delivered into it yet.
    pub(super) consumer: u64,
    pub(super) header: DeliveryHeader,
    /// Where it lay in the ring.
    pub(super) position: u64,
    pub(super) payload: Vec<u8>,
    pub(super) metadata: Vec<u8>,
}

impl Delivery {
    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The payload, without the rest.
    #[must_use]
    pub fn into_payload(self) -> Vec<u8> {
        self.payload
    }

    /// The metadata in front of the payload.
    ///
    /// # Errors
    /// The producer wrote something else.
    pub fn metadata(&self) -> Result<Metadata, MetadataError> {
        Metadata::decode(&self.metadata)
    }

    /// Where the reply goes, if this is a request.
    #[must_use]
    pub fn reply_to(&self) -> Option<ReplyTo> {
        ReplyTo::of(&self.metadata().ok()?)
    }

    /// Its place in the queue: dense, from 1.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.header.lease.sequence
    }

    /// Number of this delivery of the message, from 1; 0 if it is only shown.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.header.lease.attempt
    }

    /// Whether the message was delivered before.
    #[must_use]
    pub fn redelivered(&self) -> bool {
        self.header.lease.attempt > 1
    }

    /// When the daemon took the message: nanoseconds since 1970, never smaller than that of the sequence before.
    #[must_use]
    pub fn published_ns(&self) -> u64 {
        self.header.published_ns
    }

    /// Length of the lease; `None`: as long as this process lives.
    #[must_use]
    pub fn lease(&self) -> Option<Duration> {
        let lease_ms = self.header.lease_ms;
        (lease_ms != 0).then(|| Duration::from_millis(lease_ms))
    }

    /// No delivery of any consumer any more; its memory stays for the next one.
    pub(crate) fn forget(&mut self) {
        self.consumer = 0;
    }

    pub(super) fn token(&self) -> LeaseToken {
        self.header.lease
    }

    /// Bytes that it keeps.
    pub(super) fn bytes(&self) -> usize {
        self.payload.len() + self.metadata.len() + size_of::<Self>()
    }
}
