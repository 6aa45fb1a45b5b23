//! Lines of a stream, as many at once as are there already.

use std::io::{self, Read};

/// Bytes asked for with one read.
const READ_BYTES: usize = 128 * 1024;

/// Why there is no next line.
#[derive(Debug)]
pub(crate) enum Error {
    /// The stream cannot be read.
    Read(io::Error),
    /// A line is longer than a message may be.
    TooLong {
        /// Its number, from 1.
        line: u64,
        /// Bytes allowed.
        max: usize,
    },
}

/// Splits a stream at its line breaks. It never waits for a second line while it has a first one.
pub(crate) struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    /// `buffer[start..end]` was read and not yet given out.
    start: usize,
    end: usize,
    at_end: bool,
    max: usize,
    /// Lines given out.
    count: u64,
}

impl<R: Read> Lines<R> {
    /// Lines of at most `max` bytes.
    pub(crate) fn new(input: R, max: usize) -> Self {
        Self { input, buffer: Vec::new(), start: 0, end: 0, at_end: false, max, count: 0 }
    }

    /// Up to `limit` lines without their line breaks; none at the end. The lines before one that is too long are
    /// given out first.
    pub(crate) fn next(&mut self, limit: usize) -> Result<Vec<&[u8]>, Error> {
        let mut searched = 0;
        let ends = loop {
            let ends = self.line_ends(searched, limit);
            if !ends.is_empty() {
                break ends;
            }
            searched = self.end - self.start;
            if searched > self.max {
                return Err(self.too_long());
            }
            if self.at_end {
                if searched == 0 {
                    return Ok(Vec::new());
                }
                break vec![self.end];
            }
            self.fill().map_err(Error::Read)?;
        };
        let (mut start, mut lines) = (self.start, Vec::with_capacity(ends.len()));
        for end in ends {
            if end - start > self.max {
                break;
            }
            lines.push(start..end);
            start = self.end.min(end + 1);
        }
        if lines.is_empty() {
            return Err(self.too_long());
        }
        self.start = start;
        self.count += lines.len() as u64;
        Ok(lines.into_iter().map(|range| &self.buffer[range]).collect())
    }

    /// Whether [`Self::next`] can answer without reading.
    pub(crate) fn ready(&self) -> bool {
        self.at_end || self.buffer[self.start..self.end].contains(&b'\n')
    }

    fn too_long(&self) -> Error {
        Error::TooLong { line: self.count + 1, max: self.max }
    }

    /// Where the next lines end, if the first of them ends behind the first `searched` bytes.
    fn line_ends(&self, searched: usize, limit: usize) -> Vec<usize> {
        let from = self.start + searched;
        let found = self.buffer[from..self.end].iter().enumerate();
        found.filter(|(_, byte)| **byte == b'\n').map(|(at, _)| from + at).take(limit).collect()
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.end < READ_BYTES {
            self.buffer.resize(self.end + READ_BYTES, 0);
        }
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.at_end = true,
                Ok(bytes) => self.end += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of this length.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let bytes = self.1.min(self.0.len()).min(into.len());
            into[..bytes].copy_from_slice(&self.0[..bytes]);
            self.0 = &self.0[bytes..];
            Ok(bytes)
        }
    }

    fn all(text: &str, piece: usize, limit: usize, max: usize) -> (Vec<String>, Option<u64>) {
        let mut lines = Lines::new(Pieces(text.as_bytes(), piece), max);
        let mut found = Vec::new();
        loop {
            match lines.next(limit) {
                Ok(next) if next.is_empty() => return (found, None),
                Ok(next) => {
                    assert!(next.len() <= limit);
                    found.extend(next.iter().map(|l| String::from_utf8_lossy(l).into_owned()));
                }
                Err(Error::TooLong { line, .. }) => return (found, Some(line)),
                Err(Error::Read(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn every_line_whatever_the_pieces() {
        let text = "one\n\nthree\r\nfour\nlast without end";
        let expected = ["one", "", "three\r", "four", "last without end"];
        for piece in 1..text.len() + 1 {
            for limit in 1..7 {
                assert_eq!(all(text, piece, limit, 16).0, expected, "piece {piece} limit {limit}");
            }
        }
        assert!(all("", 1, 1, 0).0.is_empty());
        assert_eq!(all("\n", 1, 1, 0).0, [""]);
        assert_eq!(all("\n\n", 9, 8, 0).0, ["", ""]);
    }

    #[test]
    fn a_long_line_is_named() {
        for piece in 1..20 {
            let (found, line) = all("aa\nbb\nccc\ndd\n", piece, 8, 2);
            assert_eq!((found.len(), line), (2, Some(3)), "piece {piece}");
            assert_eq!(all("aa\nbbb", piece, 8, 2).1, Some(2), "piece {piece}");
        }
    }
}
