//! What the guest's kernel says, and which of it means that something is wrong.

/// One kernel message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Counts up from 0 in each boot.
    pub sequence: u64,
    /// 0 emergency .. 4 warning .. 7 debug.
    pub priority: u8,
    /// First line of the text.
    pub text: String,
}

impl Message {
    /// From a line of the agent's `kmsg` tool.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(3, ' ');
        Some(Self {
            sequence: words.next()?.parse().ok()?,
            priority: words.next()?.parse().ok()?,
            text: words.next().unwrap_or_default().to_owned(),
        })
    }
}

const WARNING: u8 = 4;

/// Warnings of a guest in which nothing is wrong: about the emulated machine and the command line, never about a disk.
const HARMLESS: [&str; 0] = [];

/// Messages at warning priority or worse that are not known to be harmless.
#[must_use]
pub fn suspicious(messages: &[Message]) -> Vec<String> {
    let bad = |m: &&Message| m.priority <= WARNING && !HARMLESS.iter().any(|h| m.text.contains(h));
    messages.iter().filter(bad).map(|m| format!("<{}> {}", m.priority, m.text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_warnings_and_worse_count() {
        let lines = [
            "1 6 nvme nvme0: pci function 0000:00:02.0",
            "2 4 nvme nvme0: I/O timeout",
            "3 3 Buffer I/O error",
            "x",
        ];
        let messages: Vec<Message> = lines.iter().filter_map(|l| Message::parse(l)).collect();
        assert_eq!(messages.len(), 3);
        assert_eq!(suspicious(&messages), ["<4> nvme nvme0: I/O timeout", "<3> Buffer I/O error"]);
    }
}
