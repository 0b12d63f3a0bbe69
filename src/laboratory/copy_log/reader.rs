//! Reading a copy log, whoever wrote it.

use std::io::{self, BufRead, Read as _};

use super::record::{Line, SCHEMA};

/// Bytes of a line at most. One of 256 ranges has some 100 KB.
const LINE: usize = 16 << 20;

/// Why a log cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says so.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The first line is none of a log.
    #[error("it is no copy log: its first line has no \"record\":\"log\"")]
    NoLog,
    /// Of another version.
    #[error("it is of schema {0}, and this program reads schema {SCHEMA}")]
    Schema(u32),
    /// A line that is none.
    #[error("line {number}: {why}")]
    Line {
        /// Counted from 1 on.
        number: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// The lines of a log, one after the other: their number from 1 on, and what they say. The first is checked, and given too.
/// An end in the middle of the last line is none: see [`Self::is_torn`].
pub struct LogReader<R> {
    from: R,
    line: Vec<u8>,
    number: u64,
    torn: bool,
    over: bool,
}

impl<R: BufRead> LogReader<R> {
    /// Of a log that is read from its start.
    pub fn new(from: R) -> Self {
        Self { from, line: Vec::new(), number: 0, torn: false, over: false }
    }

    /// Did it end in the middle of a line? Then it is being written, or who wrote it was killed.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    fn read(&mut self) -> Result<Option<(u64, Line)>, ReadError> {
        loop {
            self.line.clear();
            let most = u64::try_from(LINE).unwrap_or(u64::MAX);
            (&mut self.from).take(most).read_until(b'\n', &mut self.line)?;
            if self.line.is_empty() {
                return if self.number == 0 { Err(ReadError::NoLog) } else { Ok(None) };
            }
            self.number += 1;
            let Some(text) = self.line.strip_suffix(b"\n") else {
                if self.line.len() >= LINE {
                    return Err(self.wrong(format!("longer than {LINE} bytes")));
                }
                self.torn = true;
                return if self.number == 1 { Err(ReadError::NoLog) } else { Ok(None) };
            };
            if text.is_empty() && self.number > 1 {
                continue;
            }
            let line = serde_json::from_slice(text);
            if self.number == 1 {
                match &line {
                    Ok(Line::Log(opening)) if opening.schema == SCHEMA => {}
                    Ok(Line::Log(opening)) => return Err(ReadError::Schema(opening.schema)),
                    _ => return Err(ReadError::NoLog),
                }
            }
            return match line {
                Ok(line) => Ok(Some((self.number, line))),
                Err(error) => Err(self.wrong(error.to_string())),
            };
        }
    }

    fn wrong(&self, why: String) -> ReadError {
        ReadError::Line { number: self.number, why }
    }
}

impl<R: BufRead> Iterator for LogReader<R> {
    type Item = Result<(u64, Line), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.read().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENING: &str = r#"{"record":"log","schema":1,"version":"0","time":"2026-11-30T00:00:00Z"}"#;

    /// Numbers of the lines, the error if there was one, and whether it ended in the middle of a line.
    fn read(text: &[u8]) -> (Vec<u64>, Option<String>, bool) {
        let mut reader = LogReader::new(text);
        let (mut numbers, mut error) = (Vec::new(), None);
        for line in &mut reader {
            match line {
                Ok((number, _)) => numbers.push(number),
                Err(why) => error = Some(why.to_string()),
            }
        }
        assert!(reader.next().is_none(), "it is over");
        (numbers, error, reader.is_torn())
    }

    #[test]
    fn lines_are_read_to_the_end() {
        let end = r#"{"record":"end","copies":0,"dropped":0,"time":"2026-11-30T00:00:00Z","later":1}"#;
        let text =
            format!("{OPENING}\n{{\"record\":\"copy\"}}\n\n{{\"record\":\"new kind\",\"a\":[1]}}\n{end}\n");
        assert_eq!(read(text.as_bytes()), (vec![1, 2, 4, 5], None, false));
        let torn = &text[..text.len() - 5];
        assert_eq!(read(torn.as_bytes()), (vec![1, 2, 4], None, true));
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let no_log = Some("it is no copy log: its first line has no \"record\":\"log\"".to_owned());
        for text in ["", "\n", "hello", "hello\n", "{\"record\":\"copy\"}\n", OPENING] {
            assert_eq!(read(text.as_bytes()).1, no_log, "{text}");
        }
        let other = OPENING.replace("\"schema\":1", "\"schema\":2");
        assert_eq!(
            read(format!("{other}\n").as_bytes()).1.as_deref(),
            Some("it is of schema 2, and this program reads schema 1")
        );
    }

    #[test]
    fn bad_lines_are_named() {
        for bad in ["{", "[]", "{\"record\":\"copy\",\"cid\":70000}", "\u{fffd}", "{\"record\":\"dropped\"}"]
        {
            let (lines, error, _) = read(format!("{OPENING}\n{bad}\n{OPENING}\n").as_bytes());
            assert_eq!(lines, [1], "{bad}");
            assert!(error.is_some_and(|why| why.starts_with("line 2: ")), "{bad}");
        }
        let mut endless = format!("{OPENING}\n").into_bytes();
        endless.resize(LINE + 1000, b'x');
        assert_eq!(read(&endless).1, Some(format!("line 2: longer than {LINE} bytes")));
    }
}
