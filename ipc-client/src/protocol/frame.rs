//! The frame around every message: a header of [`FRAME_HEADER_BYTES`] and a body in postcard.
//!
//! Pure: bytes in, message or typed error out. A packet holds exactly one frame.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, PROTOCOL_VERSION};

/// Magic and version of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framing {
    /// First four bytes of every packet.
    pub magic: [u8; 4],
    /// Version of the messages.
    pub version: u16,
}

/// The control protocol between clients and the daemon.
pub const CONTROL: Framing = Framing { magic: *b"RMCP", version: PROTOCOL_VERSION };

/// Why bytes are no message, or a message does not become bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Not even a header.
    #[error("packet of {length} bytes: a header has {header}", header = FRAME_HEADER_BYTES)]
    Short {
        /// Bytes that came.
        length: usize,
    },
    /// Another protocol.
    #[error("packet does not start with the magic of this protocol")]
    Magic,
    /// Another version of the protocol.
    #[error(
        "protocol version {theirs}: this side speaks {ours}; use the same release on both sides"
    )]
    Version {
        /// In the packet.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The reserved field is in use.
    #[error("reserved header field is {0}, not zero")]
    Reserved(u16),
    /// The header names more bytes than came.
    #[error("body of {stated} bytes announced, {actual} came")]
    Truncated {
        /// In the header.
        stated: usize,
        /// In the packet.
        actual: usize,
    },
    /// More bytes came than the header or the message needs.
    #[error("{bytes} bytes too many behind the message")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("frame of {length} bytes: at most {max}", max = FRAME_BYTES_MAX)]
    TooLong {
        /// Bytes of the frame.
        length: usize,
    },
    /// The body is no message of this protocol.
    #[error("body is no known message: {0}")]
    Body(String),
}

impl Framing {
    /// Bytes of one packet.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; [`FrameError::Body`] if the message cannot be encoded.
    pub fn encode<T: Serialize>(&self, message: &T) -> Result<Vec<u8>, FrameError> {
        let mut frame = Vec::with_capacity(256);
        frame.extend_from_slice(&self.magic);
        frame.extend_from_slice(&self.version.to_le_bytes());
        frame.extend_from_slice(&[0; 6]);
        let mut frame = postcard::to_extend(message, frame)
            .map_err(|error| FrameError::Body(error.to_string()))?;
        if frame.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { length: frame.len() });
        }
        let length = u32::try_from(frame.len() - FRAME_HEADER_BYTES)
            .map_err(|_| FrameError::TooLong { length: frame.len() })?;
        frame[8..FRAME_HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
        Ok(frame)
    }

    /// The message in one packet.
    ///
    /// # Errors
    /// See [`FrameError`]; never a panic, whatever the bytes are.
    pub fn decode<T: DeserializeOwned>(&self, packet: &[u8]) -> Result<T, FrameError> {
        if packet.len() > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { length: packet.len() });
        }
        let Some((header, body)) = packet.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(FrameError::Short { length: packet.len() });
        };
        let [m0, m1, m2, m3, v0, v1, r0, r1, l0, l1, l2, l3] = *header;
        if [m0, m1, m2, m3] != self.magic {
            return Err(FrameError::Magic);
        }
        let theirs = u16::from_le_bytes([v0, v1]);
        if theirs != self.version {
            return Err(FrameError::Version { theirs, ours: self.version });
        }
        let reserved = u16::from_le_bytes([r0, r1]);
        if reserved != 0 {
            return Err(FrameError::Reserved(reserved));
        }
        let stated = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if stated > body.len() {
            return Err(FrameError::Truncated { stated, actual: body.len() });
        }
        if stated < body.len() {
            return Err(FrameError::Trailing { bytes: body.len() - stated });
        }
        let (message, rest) =
            postcard::take_from_bytes(body).map_err(|error| FrameError::Body(error.to_string()))?;
        if !rest.is_empty() {
            return Err(FrameError::Trailing { bytes: rest.len() });
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{HandleKey, Reply, Request};

    fn hello() -> Request {
        Request::Hello {
            client_version: "1".into(),
            session: 7,
            handles: vec![HandleKey { queue: 1, handle: 2, epoch: 3 }],
        }
    }

    #[test]
    fn header_bytes_are_fixed() {
        let frame = CONTROL.encode(&Request::Status).unwrap();
        assert_eq!(frame, [b'R', b'M', b'C', b'P', 6, 0, 0, 0, 1, 0, 0, 0, 14]);
    }

    #[test]
    fn every_truncation_and_extension_is_an_error() {
        let frame = CONTROL.encode(&hello()).unwrap();
        assert_eq!(CONTROL.decode::<Request>(&frame), Ok(hello()));
        for length in 0..frame.len() {
            let error = CONTROL.decode::<Request>(&frame[..length]).unwrap_err();
            let expected = if length < FRAME_HEADER_BYTES {
                FrameError::Short { length }
            } else {
                FrameError::Truncated {
                    stated: frame.len() - FRAME_HEADER_BYTES,
                    actual: length - FRAME_HEADER_BYTES,
                }
            };
            assert_eq!(error, expected);
        }
        let mut longer = frame.clone();
        longer.push(0);
        assert_eq!(CONTROL.decode::<Request>(&longer), Err(FrameError::Trailing { bytes: 1 }));
        // The header admits the byte, the message does not need it.
        longer[8] += 1;
        assert_eq!(CONTROL.decode::<Request>(&longer), Err(FrameError::Trailing { bytes: 1 }));
    }

    #[test]
    fn foreign_headers_are_told_apart() {
        let good = CONTROL.encode(&Request::Status).unwrap();
        let with = |index: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[index] = value;
            CONTROL.decode::<Request>(&bytes).unwrap_err()
        };
        assert_eq!(with(0, b'X'), FrameError::Magic);
        assert_eq!(with(4, 2), FrameError::Version { theirs: 2, ours: PROTOCOL_VERSION });
        assert_eq!(with(6, 1), FrameError::Reserved(1));
        assert_eq!(with(11, 255), FrameError::Truncated { stated: 0xff00_0001, actual: 1 });
        assert!(matches!(with(12, 200), FrameError::Body(_)));
        let long = vec![0; FRAME_BYTES_MAX + 1];
        assert!(matches!(CONTROL.decode::<Request>(&long), Err(FrameError::TooLong { .. })));
        let message = Reply::Error {
            code: crate::protocol::ErrorCode::Io,
            message: "x".repeat(FRAME_BYTES_MAX),
        };
        assert!(matches!(CONTROL.encode(&message), Err(FrameError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn random_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut frame = Vec::from(*b"RMCP");
            frame.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
            frame.extend_from_slice(&[0, 0]);
            frame.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
            frame.extend_from_slice(&body);
            let _ = CONTROL.decode::<Request>(&frame);
            let _ = CONTROL.decode::<Reply>(&frame);
            let _ = CONTROL.decode::<Request>(&body);
        }
    }
}
