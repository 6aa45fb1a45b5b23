//! What happens on a direct queue to a message for which there is no room.

use ringmain_client::protocol::{DeliverySpec, ErrorCode, Kind, Overflow, Reply, Role};

use super::broker::{Broker, bug};
use super::connections::{Answer, Failure, refuse};
use super::peer::Credentials;

/// The only rule that a direct queue has, out of those that are asked for.
///
/// # Errors
/// One line that says what to do.
pub fn check(kind: Kind, asked: &DeliverySpec) -> Result<Option<Overflow>, &'static str> {
    let DeliverySpec { overflow, .. } = *asked;
    if *asked != (DeliverySpec { overflow, ..DeliverySpec::default() }) {
        return Err(
            "a direct queue has no delivery rules (--max-deliveries, --dead-letter, --lease, --ttl), and no limits \
             (--retention, --max-messages, --max-bytes, --max-age) but its ring; leave them out, or add \
             --durable or --plane brokered when it is created",
        );
    }
    if kind == Kind::Spsc && overflow == Some(Overflow::DropOldest) {
        return Err(
            "overflow=drop-oldest: on a direct spsc queue only the consumer can take a message away; use --kind mpmc, \
             --plane brokered, or --overflow block or reject",
        );
    }
    Ok(overflow)
}

impl Broker {
    /// Takes effect with the next message that finds no room, and for those who wait for room already.
    pub(super) fn edit_queue(
        &mut self,
        user: &Credentials,
        name: &str,
        asked: &DeliverySpec,
    ) -> Result<Answer, Failure> {
        let id = self.find_managed(user, name, "editing")?;
        let Some(queue) = self.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        let overflow = check(queue.entry.kind, asked)
            .or_else(|text| refuse(ErrorCode::Invalid, format!("queue {name}: {text}")))?;
        if overflow == Some(Overflow::DropOldest) {
            // Producers that drop take messages, so no consumer has its side to itself.
            self.stop_biased_takes(id)?;
        }
        let Some(queue) = self.queues.get(&id) else {
            return Err(bug("queue without entry").into());
        };
        if let Some(overflow) = overflow {
            if overflow == Overflow::DropOldest {
                // Also not when the rule is another one again: a producer may be stopped in the middle of a drop for as long as it
                // likes.
                queue.memory.bar_bias(Role::Consume);
            }
            queue.memory.set_overflow(overflow);
            self.wake(queue);
        }
        Ok(Answer::of(Reply::Queue(Box::new(self.queue_summary(id, queue)))))
    }
}
