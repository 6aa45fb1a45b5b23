//! Copies between private memory and memory that another process may write at the same time.
//!
//! An ordinary `memcpy` over racing memory is undefined behaviour, and a loop of relaxed byte accesses is slow. On
//! x86-64 the copy is written in assembly, which the compiler cannot see into: bytes that a peer changes meanwhile
//! arrive as old, new or mixed, and nothing else can happen. Elsewhere relaxed atomic bytes do the same, slower.

/// From this length on `rep movsb` wins over a loop of 16-byte moves on processors with fast short strings.
#[cfg(target_arch = "x86_64")]
const STRING_MOVE_BYTES_MIN: usize = 512;

/// Copies `length` bytes from `source` to `target`.
///
/// # Safety
/// - `source` is valid for reads and `target` for writes of `length` bytes for the whole call.
/// - The two do not overlap.
/// - Other processes may access either side meanwhile; threads of this process must not write the private side.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, length: usize) {
    use core::arch::asm;

    if length >= STRING_MOVE_BYTES_MIN {
        // SAFETY: the caller's contract; the direction flag is clear by the ABI.
        unsafe {
            asm!("rep movsb", inout("rcx") length => _, inout("rsi") source => _, inout("rdi") target => _,
                 options(nostack, preserves_flags));
        }
        return;
    }
    let mut at = 0;
    while length - at >= 16 {
        // SAFETY: at + 16 <= length.
        unsafe { copy_16(source.add(at), target.add(at)) };
        at += 16;
    }
    let rest = length - at;
    if rest == 0 {
        return;
    }
    if length >= 16 {
        // SAFETY: the last 16 bytes lie within length; copying some of them twice changes nothing.
        unsafe { copy_16(source.add(length - 16), target.add(length - 16)) };
        return;
    }
    // Fewer than 16 bytes in all: two overlapping moves of 8, 4 or 2 bytes, or one byte.
    macro_rules! pair {
        ($register:literal, $bytes:literal) => {
            // SAFETY: $bytes <= length < 2 * $bytes: both moves lie within length.
            unsafe {
                let source_end = source.add(length - $bytes);
                let target_end = target.add(length - $bytes);
                asm!(
                    concat!("mov {a", $register, "}, [{s}]"),
                    concat!("mov {b", $register, "}, [{se}]"),
                    concat!("mov [{t}], {a", $register, "}"),
                    concat!("mov [{te}], {b", $register, "}"),
                    a = out(reg) _, b = out(reg) _,
                    s = in(reg) source, se = in(reg) source_end,
                    t = in(reg) target, te = in(reg) target_end,
                    options(nostack, preserves_flags)
                );
            }
        };
    }
    match length {
        8.. => pair!(":r", 8),
        4.. => pair!(":e", 4),
        2.. => pair!(":x", 2),
        // SAFETY: length is 1.
        _ => unsafe {
            asm!("mov {a}, [{s}]", "mov [{t}], {a}", a = out(reg_byte) _, s = in(reg) source, t = in(reg) target,
                 options(nostack, preserves_flags));
        },
    }
}

/// # Safety
/// Both sides are valid for 16 bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn copy_16(source: *const u8, target: *mut u8) {
    // SAFETY: the caller's contract; SSE2 is part of x86-64.
    unsafe {
        core::arch::asm!("movdqu {x}, [{s}]", "movdqu [{t}], {x}", x = out(xmm_reg) _, s = in(reg) source,
                         t = in(reg) target, options(nostack, preserves_flags));
    }
}

/// Copies `length` bytes from `source` to `target`.
///
/// # Safety
/// - `source` is valid for reads and `target` for writes of `length` bytes for the whole call.
/// - The two do not overlap.
/// - Other processes may access either side meanwhile; threads of this process must not write the private side.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, length: usize) {
    use crate::sync::atomic::{AtomicU8, Ordering};

    for at in 0..length {
        // SAFETY: at < length, and every address is aligned for one byte.
        let (from, to) = unsafe {
            (AtomicU8::from_ptr(source.add(at).cast_mut()), AtomicU8::from_ptr(target.add(at)))
        };
        // Relaxed: the slot's word orders the bytes.
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::copy;

    #[test]
    fn every_short_length_and_offset() {
        let source: Vec<u8> = (0..2048u32).map(|value| (value % 251) as u8).collect();
        for length in (0..600).chain([1000, 1024, 2000]) {
            for offset in 0..9 {
                let mut target = vec![0xee; length + 32];
                // SAFETY: both vectors are longer than offset + length.
                unsafe {
                    copy(source.as_ptr().add(offset), target.as_mut_ptr().add(offset), length)
                };
                assert!(target[..offset].iter().all(|byte| *byte == 0xee));
                assert_eq!(target[offset..offset + length], source[offset..offset + length]);
                assert!(target[offset + length..].iter().all(|byte| *byte == 0xee));
            }
        }
    }
}
