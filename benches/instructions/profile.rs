//! Reads what Callgrind writes: instructions by function, callees not included.

use std::collections::BTreeMap;

pub struct Profile {
    by_function: BTreeMap<String, u64>,
}

impl Profile {
    /// `text` in Callgrind's profile format, without compression: `fn=NAME`, then lines of position and cost.
    /// The line after a `calls=` is the callee's cost and counts there.
    pub fn parse(text: &str) -> Self {
        let mut by_function = BTreeMap::<String, u64>::new();
        let mut function = "";
        let mut of_callee = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=") {
                function = name;
            } else if line.starts_with("calls=") {
                of_callee = true;
            } else if line.starts_with(|c: char| c.is_ascii_digit()) && !std::mem::take(&mut of_callee) {
                let cost = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
                *by_function.entry(function.to_owned()).or_default() += cost.unwrap_or(0);
            }
        }
        Self { by_function }
    }

    pub fn total(&self) -> u64 {
        self.by_function.values().sum()
    }

    /// Of the C library's memcpy, memmove and memset, whichever variants the processor gets.
    pub fn of_copies(&self) -> u64 {
        let is_copy = |name: &str| ["memcpy", "memmove", "memset"].iter().any(|word| name.contains(word));
        self.by_function.iter().filter(|(name, _)| is_copy(name)).map(|(_, count)| count).sum()
    }

    /// The dearest functions.
    pub fn top(&self, count: usize) -> Vec<(&str, u64)> {
        let mut all: Vec<_> = self.by_function.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        all.truncate(count);
        all
    }
}
