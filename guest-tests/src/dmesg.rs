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

/// The kernel says this when it begins to look at devices: what it said before is about processors, memory
/// and clocks, which a busy host makes it complain about.
const DEVICES_BEGIN: &str = "PCI host bridge to bus";

/// Parts of later warnings about the emulated machine and about a host too busy to keep its time; never about
/// a disk.
const HARMLESS: [&str; 14] = [
    "ACPI: IRQ 4 override",
    // A translated processor that did not run for a while: its time stamps and the clock that watches them
    // differ, so the kernel takes another clock. Said at the end of a slow boot, after devices began.
    "Unstable clock detected",
    "amd_pstate:",
    "clocksource watchdog",
    "clocksource:",
    "hogged CPU for",
    "hpet: Lost",
    "hrtimer: interrupt took",
    "perf: interrupt took too long",
    "rtc_cmos",
    "sched: DL replenish lagged too much",
    "sched: RT throttling activated",
    "timekeeping watchdog",
    "tsc:",
];

/// Messages at warning priority or worse that are not known to be harmless.
#[must_use]
pub fn suspicious(messages: &[Message]) -> Vec<String> {
    let devices = messages.iter().position(|m| m.text.starts_with(DEVICES_BEGIN)).unwrap_or(0);
    let bad = |m: &&Message| m.priority <= WARNING && !HARMLESS.iter().any(|h| m.text.contains(h));
    messages[devices..].iter().filter(bad).map(|m| format!("<{}> {}", m.priority, m.text)).collect()
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
    #[test]
    fn a_busy_hosts_clock_is_no_fault_of_a_disk() {
        let lines = [
            "1 3 Unstable clock detected, switching default tracing clock to \"global\"",
            "2 4 clocksource watchdog on CPU1: wd-tsc-wd excessive read-back delay",
        ];
        let messages: Vec<Message> = lines.iter().filter_map(|l| Message::parse(l)).collect();
        assert_eq!(messages.len(), 2);
        assert!(suspicious(&messages).is_empty());
    }
    #[test]
    fn what_comes_before_the_devices_is_not_about_them() {
        let early = Message::parse("1 3 ..MP-BIOS bug: 8254 timer not connected to IO-APIC").unwrap();
        let devices = Message::parse("2 6 PCI host bridge to bus 0000:00").unwrap();
        let late = Message::parse("3 4 irq 11: nobody cared").unwrap();
        assert_eq!(suspicious(&[early.clone(), devices, late]), ["<4> irq 11: nobody cared"]);
        // Without that line the messages are from a running system.
        assert_eq!(suspicious(&[early]).len(), 1);
    }
}
