//! Copies between private memory and memory that another process may write at the same time.
//!
//! An ordinary `memcpy` over racing memory is undefined behaviour, and a loop of relaxed byte accesses is slow. On
//! x86-64 the copy is written in assembly, which the compiler cannot see into: bytes that a peer changes meanwhile
//! arrive as old, new or mixed, and nothing else can happen. Elsewhere relaxed atomic bytes do the same, slower.

/// Moves 16 bytes at each of these offsets, all loads before all stores. SSE2 is part of x86-64.
#[cfg(all(target_arch = "x86_64", not(loom)))]
macro_rules! moves {
    ($source:expr, $target:expr, [$a:expr, $b:expr, $c:expr, $d:expr]) => {
        core::arch::asm!(
            "movdqu {w}, [{s} + {a}]", "movdqu {x}, [{s} + {b}]",
            "movdqu {y}, [{s} + {c}]", "movdqu {z}, [{s} + {d}]",
            "movdqu [{t} + {a}], {w}", "movdqu [{t} + {b}], {x}",
            "movdqu [{t} + {c}], {y}", "movdqu [{t} + {d}], {z}",
            s = in(reg) $source, t = in(reg) $target,
            a = in(reg) $a, b = in(reg) $b, c = in(reg) $c, d = in(reg) $d,
            w = out(xmm_reg) _, x = out(xmm_reg) _, y = out(xmm_reg) _, z = out(xmm_reg) _,
            options(nostack, preserves_flags)
        )
    };
}

/// From this length on `rep movsb` wins over a loop of 64-byte moves on processors with fast short strings.
#[cfg(all(target_arch = "x86_64", not(loom)))]
const STRING_MOVE_BYTES_MIN: usize = 512;

/// Loads 32 bytes word by word and stores them as vectors. A vector load of what was written word by word just now would
/// wait until those stores have left the store buffer, and vector stores take a quarter of the room in it.
#[cfg(all(target_arch = "x86_64", not(loom)))]
macro_rules! gathers {
    ($source:expr, $target:expr, [$a:expr, $b:expr]) => {
        core::arch::asm!(
            "movq {w}, [{s} + {a}]", "movhps {w}, [{s} + {a} + 8]",
            "movq {x}, [{s} + {b}]", "movhps {x}, [{s} + {b} + 8]",
            "movdqu [{t} + {a}], {w}", "movdqu [{t} + {b}], {x}",
            s = in(reg) $source, t = in(reg) $target, a = in(reg) $a, b = in(reg) $b,
            w = out(xmm_reg) _, x = out(xmm_reg) _,
            options(nostack, preserves_flags)
        )
    };
}

/// Copies `length` bytes from private memory to memory that others may access meanwhile.
///
/// # Safety
/// - `source` is valid for reads and `target` for writes of `length` bytes for the whole call.
/// - The two do not overlap.
/// - Other processes may access either side meanwhile; threads of this process must not write the private side.
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline(always)]
pub(super) unsafe fn copy_in(source: *const u8, target: *mut u8, length: usize) {
    // SAFETY: each branch moves bytes 0 to length and no others, some of them twice.
    unsafe {
        if length > 64 {
            copy_long(source, target, length);
        } else if length > ONE_LINE_BODY {
            gathers!(source, target, [0_usize, 16_usize]);
            gathers!(source, target, [length - 32, length - 16]);
        } else if length >= 8 {
            copy_words(source, target, length);
        } else if length > 0 {
            copy_short(source, target, length);
        }
    }
}

/// What lies in one cache line beside the word and the header of its slot.
#[cfg(all(target_arch = "x86_64", not(loom)))]
const ONE_LINE_BODY: usize = 48;

/// As [`copy_in`], the other way round. This processor did not write what it loads, so vector loads wait for nothing; a message
/// in one line, where the way back counts, is quicker word by word all the same: whoever reads the copy need not wait for it.
///
/// # Safety
/// As [`copy_in`].
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline(always)]
pub(super) unsafe fn copy_out(source: *const u8, target: *mut u8, length: usize) {
    // SAFETY: each branch moves bytes 0 to length and no others, some of them twice.
    unsafe {
        if length > 64 {
            copy_long(source, target, length);
        } else if length > ONE_LINE_BODY {
            moves!(source, target, [0_usize, 16_usize, length - 32, length - 16]);
        } else if length >= 8 {
            copy_words(source, target, length);
        } else if length > 0 {
            copy_short(source, target, length);
        }
    }
}

/// # Safety
/// As [`copy_in`]; `length` is 8 to 64.
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline(always)]
unsafe fn copy_words(source: *const u8, target: *mut u8, length: usize) {
    let last = length - 8;
    let mut at = 0;
    // SAFETY: at < last, so at + 8 < length; then the last eight bytes.
    unsafe {
        while at < last {
            core::arch::asm!("mov {x}, [{s} + {a}]", "mov [{t} + {a}], {x}", s = in(reg) source, t = in(reg) target,
                a = in(reg) at, x = out(reg) _, options(nostack, preserves_flags));
            at += 8;
        }
        core::arch::asm!("mov {x}, [{s} + {a}]", "mov [{t} + {a}], {x}", s = in(reg) source, t = in(reg) target,
            a = in(reg) last, x = out(reg) _, options(nostack, preserves_flags));
    }
}

/// # Safety
/// As [`copy_in`]; `length` is more than 64.
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline(never)]
unsafe fn copy_long(source: *const u8, target: *mut u8, length: usize) {
    if length >= STRING_MOVE_BYTES_MIN {
        // SAFETY: the caller's contract; the direction flag is clear by the ABI.
        unsafe {
            core::arch::asm!("rep movsb", inout("rcx") length => _, inout("rsi") source => _,
                inout("rdi") target => _, options(nostack, preserves_flags));
        }
        return;
    }
    let mut at = 0;
    while at + 64 <= length {
        // SAFETY: at + 64 <= length.
        unsafe { moves!(source, target, [at, at + 16, at + 32, at + 48]) };
        at += 64;
    }
    if at < length {
        // The last 64 bytes, some of them for the second time.
        let at = length - 64;
        // SAFETY: length is more than 64.
        unsafe { moves!(source, target, [at, at + 16, at + 32, at + 48]) };
    }
}

/// # Safety
/// As [`copy_in`]; `length` is 1 to 15.
#[cfg(all(target_arch = "x86_64", not(loom)))]
#[inline(always)]
unsafe fn copy_short(source: *const u8, target: *mut u8, length: usize) {
    // Two overlapping moves of 8, 4 or 2 bytes, or one byte.
    macro_rules! pair {
        ($register:literal, $bytes:literal) => {
            // SAFETY: $bytes <= length < 2 * $bytes: both moves lie within length.
            unsafe {
                core::arch::asm!(
                    concat!("mov {a", $register, "}, [{s}]"),
                    concat!("mov {b", $register, "}, [{s} + {end}]"),
                    concat!("mov [{t}], {a", $register, "}"),
                    concat!("mov [{t} + {end}], {b", $register, "}"),
                    a = out(reg) _, b = out(reg) _, end = in(reg) length - $bytes,
                    s = in(reg) source, t = in(reg) target, options(nostack, preserves_flags)
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
            core::arch::asm!("mov {a}, [{s}]", "mov [{t}], {a}", a = out(reg_byte) _, s = in(reg) source,
                t = in(reg) target, options(nostack, preserves_flags));
        },
    }
}

/// Copies `length` bytes from `source` to `target`.
///
/// # Safety
/// - `source` is valid for reads and `target` for writes of `length` bytes for the whole call.
/// - The two do not overlap.
/// - Other processes may access either side meanwhile; threads of this process must not write the private side.
#[cfg(all(not(target_arch = "x86_64"), not(loom)))]
pub(super) unsafe fn copy_in(source: *const u8, target: *mut u8, length: usize) {
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

#[cfg(all(not(target_arch = "x86_64"), not(loom)))]
pub(super) use copy_in as copy_out;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{copy_in, copy_out};

    #[test]
    fn every_short_length_and_offset() {
        let source: Vec<u8> = (0..2048u32).map(|value| (value % 251) as u8).collect();
        for length in (0..600).chain([1000, 1024, 2000]) {
            for (offset, out) in (0..9).flat_map(|offset| [(offset, false), (offset, true)]) {
                let mut target = vec![0xee; length + 32];
                let copy = if out { copy_out } else { copy_in };
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
