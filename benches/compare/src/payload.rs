//! The 64-byte message that every contender sends: eight words that depend on its number, all of them checked.

/// Message size in bytes.
pub(crate) const BYTES: usize = 64;

/// A message.
pub(crate) type Payload = [u64; 8];

/// Message number `n`.
#[inline]
pub(crate) fn make(n: u64) -> Payload {
    let mut payload = [0; 8];
    for (word, value) in (0u64..).zip(&mut payload) {
        *value = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(word);
    }
    payload
}

/// Panics unless this is message number `n`.
#[inline]
pub(crate) fn check(payload: &Payload, n: u64) {
    let expected = make(n);
    let difference = payload.iter().zip(&expected).fold(0, |all, (got, want)| all | (got ^ want));
    assert!(difference == 0, "message {n} arrived altered");
}

/// The message as bytes.
#[inline]
pub(crate) fn bytes(payload: &Payload) -> &[u8; BYTES] {
    // SAFETY: 64 bytes either way, and bytes have no alignment.
    unsafe { &*std::ptr::from_ref(payload).cast() }
}

/// Room for a message, as bytes.
#[inline]
pub(crate) fn bytes_mut(payload: &mut Payload) -> &mut [u8; BYTES] {
    // SAFETY: as above; any bytes are valid words.
    unsafe { &mut *std::ptr::from_mut(payload).cast() }
}
