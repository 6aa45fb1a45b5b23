//! `ringmain serve` and the hidden `broker`.
