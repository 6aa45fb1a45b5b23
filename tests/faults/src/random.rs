//! Reproducible random numbers: the whole run follows from one printed seed.

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed of `RINGMAIN_SEED`, or one from the clock and the process.
    pub fn seed_from_environment() -> u64 {
        if let Ok(text) = std::env::var("RINGMAIN_SEED") {
            match text.parse() {
                Ok(seed) => return seed,
                Err(_) => {
                    eprintln!("RINGMAIN_SEED={text}: must be a decimal number");
                    std::process::exit(64);
                }
            }
        }
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs() ^ u64::from(since.subsec_nanos()) << 20);
        now ^ u64::from(std::process::id()) << 40
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `bound` (not zero).
    pub fn below(&mut self, bound: usize) -> usize {
        #[allow(clippy::cast_possible_truncation)] // below a usize
        let value = (self.any() % bound as u64) as usize;
        value
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
