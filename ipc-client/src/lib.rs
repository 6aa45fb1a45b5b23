//! Client library of ringmain.
