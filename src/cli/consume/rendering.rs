//! How a message becomes a line.

use std::fmt::Write as _;

use ringmain_client::{Delivery, Metadata};
use serde_json::json;

/// Which line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Payload,
    WithSequence,
    Json,
}

impl Format {
    pub(crate) fn new(json: bool, with_sequence: bool) -> Self {
        match (json, with_sequence) {
            (true, _) => Self::Json,
            (false, true) => Self::WithSequence,
            (false, false) => Self::Payload,
        }
    }
}

/// What is known of a message.
pub(crate) struct Shown<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) sequence: u64,
    pub(crate) redelivered: bool,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) brokered: Option<BrokeredFacts>,
}

/// What brokered queues know besides.
pub(crate) struct BrokeredFacts {
    /// Of the delivery; 0 if the message is only shown.
    attempt: u32,
    published_ns: u64,
}

impl<'a> Shown<'a> {
    pub(crate) fn delivery(delivery: &'a Delivery, format: Format) -> Self {
        Self {
            payload: delivery.payload(),
            sequence: delivery.sequence(),
            redelivered: delivery.redelivered(),
            // Only JSON has a place for it.
            metadata: (format == Format::Json).then(|| delivery.metadata().ok()).flatten(),
            brokered: Some(BrokeredFacts {
                attempt: delivery.attempt(),
                published_ns: delivery.published_ns(),
            }),
        }
    }

    /// Appends the line with its line break.
    pub(crate) fn render(&self, format: Format, line: &mut Vec<u8>) {
        match format {
            Format::Payload => line.extend_from_slice(self.payload),
            Format::WithSequence => {
                line.extend_from_slice(format!("{}\t", self.sequence).as_bytes());
                line.extend_from_slice(self.payload);
            }
            Format::Json => line.extend_from_slice(self.document().to_string().as_bytes()),
        }
        line.push(b'\n');
    }

    pub(crate) fn document(&self) -> serde_json::Value {
        let mut document = json!({
            "sequence": self.sequence,
            "redelivered": self.redelivered,
        });
        put_bytes(&mut document, "payload", self.payload);
        if let Some(metadata) = &self.metadata {
            if let Some(key) = &metadata.key {
                put_bytes(&mut document, "key", key);
            }
            if !metadata.headers.is_empty() {
                let headers = metadata.headers.iter();
                document["headers"] = headers
                    .map(|(name, value)| json!([name, String::from_utf8_lossy(value)]))
                    .collect();
            }
        }
        if let Some(BrokeredFacts { attempt, published_ns }) = self.brokered {
            if attempt > 0 {
                document["attempt"] = attempt.into();
            }
            document["published_ns"] = published_ns.into();
        }
        document
    }
}

/// As text, or under another name as hexadecimal digits.
pub(crate) fn put_bytes(document: &mut serde_json::Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => document[name] = text.into(),
        Err(_) => document[format!("{name}_hex")] = hex(bytes).into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
