//! The words of a rule: one table for the parser, its errors and docs/faults.md.

use std::time::Duration;

use super::draft::Draft;
use super::error::Refused;
use super::ops::Ops;
use super::pieces;
use super::rule::Hold;
use super::values::{self, Window, number, within};
use crate::laboratory::script::Post;

/// What a word is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Which commands.
    Which,
    /// When.
    When,
    /// What they meet.
    Act,
}

/// One word of the grammar.
#[derive(Debug)]
pub struct RuleWord {
    /// Its name; `cdwN` stands for sixteen.
    pub name: &'static str,
    /// Which values it takes; nothing where it takes none.
    pub values: &'static str,
    /// What it is for.
    pub group: Group,
    /// What it means.
    pub help: &'static str,
    /// A rule with it.
    pub example: &'static str,
    pub(super) set: fn(&mut Draft, &str) -> Result<(), Refused>,
}

/// A row of [`WORDS`].
macro_rules! words {
    ($($group:ident $name:literal $values:literal, $help:literal, $example:literal, $set:expr;)*) => {
        /// Every word, in the order of the documentation.
        pub const WORDS: &[RuleWord] = &[$(RuleWord {
            name: $name,
            values: $values,
            group: Group::$group,
            help: $help,
            example: $example,
            set: $set,
        }),*];
    };
}

words! {
    Which "op" "NAME|OPCODE, several with +",
        "Commands: `io` (the default), `admin`, names or opcodes (`copy`, `READ`, `0x19`, `admin:0x06`); or what a host \
         does with CC: `enable`, `disable`, `shutdown`",
        "op=copy+write status=write-fault",
        |draft, text| Ops::parse(text).map(|ops| draft.ops = Some(ops));
    Which "queue" "0..65535",
        "Submission queue; 0 is the admin queue",
        "op=read queue=2 status=IOERR",
        |draft, text| within(text, 0..=u16::MAX).map(|queue| draft.queue = Some(queue));
    Which "nsid" "1..4294967295",
        "Namespace",
        "op=write nsid=1 status=NOSPC",
        |draft, text| within(text, 1..=u32::MAX).map(|nsid| draft.nsid = Some(nsid));
    Which "lba" "FIRST, FIRST-LAST or FIRST+COUNT",
        "Commands that touch one of these blocks; of a Copy, its destination",
        "op=read lba=100-107 status=MEDIUM",
        |draft, text| Window::parse(text).map(|window| draft.lba = Some(window));
    Which "start" "SECTOR",
        "The same in the block layer's sectors of 512 bytes: the first one",
        "add,op=READ,start=0,nr_sectors=8,status=IOERR",
        |draft, text| within(text, 0..=u64::MAX).map(|start| draft.start = Some(start));
    Which "nr_sectors" "1..",
        "How many of them; without it all to the end",
        "op=WRITE start=2048 nr_sectors=8 status=IOERR",
        |draft, text| within(text, 1..=u64::MAX).map(|count| draft.nr_sectors = Some(count));
    Which "source" "as lba",
        "Copies that read one of these blocks",
        "op=copy source=0+8 status=unrecovered-read-error",
        |draft, text| Window::parse(text).map(|window| draft.source = Some(window));
    Which "range" "0..255",
        "Copies that have this range, counted from 0; acts are about it: the Copy fails there, or this range is late, \
         torn or flipped",
        "op=copy range=2 status=write-fault",
        |draft, text| within(text, 0..=u8::MAX).map(|range| draft.range = Some(range));
    Which "cdwN" "VALUE or VALUE/MASK",
        "Dword N (0 to 15) of the submission queue entry has this value in the bits of the mask; may be given for \
         several dwords",
        "op=identify cdw10=1/0xff payload=77:05",
        |_, _| Err(Refused::new("has no number"));
    When "count" "NUMBER",
        "As in scsi_debug: negative, it fires so many times; 0, never; positive, always",
        "op=write count=-2 status=write-fault",
        |draft, text| pieces::signed(text).map(|count| draft.count = Some(count));
    When "times" "0..",
        "It fires so many times: `times=2` is `count=-2`",
        "op=write times=2 status=write-fault",
        |draft, text| within(text, 0..=u64::MAX).map(|times| draft.times = Some(times));
    When "every_nth" "1..",
        "It takes each N-th of the commands that it meets",
        "op=read every_nth=100 status=MEDIUM",
        |draft, text| within(text, 1..=u64::MAX).map(|every| draft.every = Some(every));
    When "skip" "0..",
        "It lets so many pass first",
        "op=copy skip=3 status=internal-error",
        |draft, text| within(text, 0..=u64::MAX).map(|skip| draft.skip = Some(skip));
    When "nth" "1..",
        "It takes the N-th and no other",
        "op=copy nth=4 drop",
        |draft, text| within(text, 1..=u64::MAX).map(|nth| draft.nth = Some(nth));
    When "chance" "1..",
        "As in block error injection: it takes one in so many, by a random number",
        "op=read chance=10 status=IOERR seed=7",
        |draft, text| within(text, 1..=u64::MAX).map(|chance| draft.below = Some(u64::MAX / chance));
    When "percent" "0..100",
        "The same in percent; `0.5` is one in 200",
        "op=read percent=0.5 status=IOERR",
        |draft, text| pieces::percent(text).map(|below| draft.below = Some(below));
    When "seed" "0..",
        "Where these numbers begin; without it one is chosen, and `fault list` shows it",
        "op=read chance=10 seed=1 status=IOERR",
        |draft, text| within(text, 0..=u64::MAX).map(|seed| draft.seed = Some(seed));
    When "depth" "1..",
        "So many commands of the queue are in flight at least",
        "op=write depth=16 status=IOERR",
        |draft, text| within(text, 1..=65536_usize).map(|depth| draft.depth = Some(depth));
    When "file" "PATH",
        "While this file exists",
        "op=write file=/tmp/inject status=write-fault",
        |draft, text| pieces::filled(text).map(|file| draft.file = Some(file));
    When "after" "RULE",
        "Once the rule of this name has fired",
        "op=read after=cut status=internal-error",
        |draft, text| pieces::name(text).map(|after| draft.after = Some(after));
    Act "status" "NAME, 0xSCTSC, SCT/SC or BLK_STS name",
        "The command does nothing and ends with this status; with `partial`, `torn`, `xor` or `range` it does that part",
        "op=read status=2/0x81 dnr",
        |draft, text| values::status(text).map(|status| draft.status = Some(status));
    Act "dnr" "",
        "Do Not Retry, of this status",
        "op=write status=write-fault dnr",
        |draft, _| { draft.dnr = true; Ok(()) };
    Act "more" "on|off",
        "More, whatever the Error Information log has of it",
        "op=write status=write-fault more=off",
        |draft, text| values::switch(text).map(|more| draft.more = Some(more));
    Act "crd" "0..3",
        "Command Retry Delay",
        "op=write status=internal-error crd=1",
        |draft, text| within(text, 0..=3).map(|crd| draft.crd = Some(crd));
    Act "dw0" "0..4294967295",
        "DW0 of the completion",
        "op=abort status=success dw0=1",
        |draft, text| within(text, 0..=u32::MAX).map(|dw0| draft.dw0 = Some(dw0));
    Act "partial" "nothing, all, prefix:N, prefix:N+M, scattered:SEED, beyond, beyond:N",
        "How much of the data lands. `nothing`: all is read and nothing written. `prefix:N`: the first N ranges of a Copy, \
         blocks of others; `+M`: and M blocks. `scattered`: half of the blocks, as the seed says which. `beyond:N`: all, \
         and DW0 of the Copy says that only N ranges did. Else DW0 is true",
        "op=copy status=write-fault partial=scattered:7",
        |draft, text| pieces::partial(text).map(|partial| draft.partial = Some(partial));
    Act "torn" "BYTES",
        "Only so many bytes land, of the command or of `range`, and its status says that all did",
        "op=copy range=1 torn=700",
        |draft, text| within(text, 0..=u64::MAX).map(|torn| draft.torn = Some(torn));
    Act "xor" "HEX or HEX@BYTE",
        "These bits are flipped in what is written or read, from this byte on: of the first block in `lba`, of `range`, or \
         of the command",
        "op=read lba=100 xor=01@17",
        |draft, text| pieces::flip(text).map(|flip| draft.flip = Some(flip));
    Act "bad" "",
        "The blocks of `lba` cannot be read (Unrecovered Read Error, Copies too) until they are written",
        "nsid=1 lba=100-107 bad",
        |draft, _| { draft.bad = true; Ok(()) };
    Act "delay" "TIME",
        "It waits so long: before it begins, or where `at` says, or its `range` does",
        "op=copy range=1 delay=250ms",
        |draft, text| values::time(text).map(|time| draft.holds.push(Hold::For(time)));
    Act "delay_us" "1..",
        "The same in microseconds",
        "op=write delay_us=500",
        |draft, text| within(text, 1..=86_400_000_000).map(|us| draft.holds.push(Hold::For(Duration::from_micros(us))));
    Act "stall" "",
        "It waits, as `delay` does, until `fault release`, `fault clear`, an Abort or a reset",
        "op=write nth=1 stall",
        |draft, _| { draft.holds.push(Hold::UntilReleased); Ok(()) };
    Act "reorder" "1..1000",
        "It is told of after so many later ends of its queue, or a second",
        "op=read every_nth=4 reorder=3",
        |draft, text| within(text, 1..=1000).map(|others| draft.holds.push(Hold::Others(others)));
    Act "at" "begin|end",
        "Where `delay` or `stall` is: before it begins, or when it is done and the host does not know yet",
        "op=write stall at=end",
        |draft, text| pieces::place(text).map(|place| draft.place = Some(place));
    Act "drop" "",
        "The completion is lost",
        "op=read nth=10 drop",
        |draft, _| { draft.posts.push(Post::Never); Ok(()) };
    Act "twice" "",
        "The completion comes twice",
        "op=read nth=10 twice",
        |draft, _| { draft.posts.push(Post::Twice); Ok(()) };
    Act "cid" "0..65535",
        "The completion bears this CID instead of the command's",
        "op=read nth=10 cid=0xfffe",
        |draft, text| within(text, 0..=u16::MAX).map(|cid| draft.posts.push(Post::As(cid)));
    Act "irq" "lost|spurious",
        "The completion comes without its interrupt; or an interrupt comes when the command is fetched",
        "op=write times=1 irq=lost",
        pieces::irq;
    Act "busy" "TIME",
        "No further command is taken from its queue for so long",
        "op=write nth=1 busy=1s",
        |draft, text| values::time(text).map(|time| draft.busy = Some(time));
    Act "cfs" "",
        "Controller Fatal Status: the controller does nothing more until it is reset",
        "op=flush times=1 cfs",
        |draft, _| { draft.cfs = true; Ok(()) };
    Act "payload" "OFFSET:HEX, several with +",
        "These bytes of what Identify, Get Log Page or Get Features sends are replaced",
        "op=identify cdw10=0/0xff payload=76:0000",
        |draft, text| pieces::edits(text).map(|edits| draft.edits = edits);
    Which "name" "NAME",
        "What the rule is called; without it a number",
        "name=cut op=write nth=100 cfs",
        |draft, text| pieces::name(text).map(|name| draft.name = Some(name));
}

/// The word of this name.
pub(super) fn find(name: &str) -> Option<&'static RuleWord> {
    let name = if dword_index(name).is_some() { "cdwN" } else { name };
    WORDS.iter().find(|word| word.name == name)
}

/// The number of `cdw0` to `cdw15`.
pub(super) fn dword_index(name: &str) -> Option<usize> {
    number(name.strip_prefix("cdw")?).and_then(|n| usize::try_from(n).ok()).filter(|n| *n < 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "cargo test --lib the_document -->\n";
    const END: &str = "<!-- end -->";

    /// The tables of docs/faults.md.
    fn tables() -> String {
        let table = |group, title: &str| {
            let words = WORDS.iter().filter(|word| word.group == group);
            let rows = words.map(|word| {
                let value =
                    if word.values.is_empty() { String::new() } else { format!("=`{}`", word.values) };
                let value = value.replace('|', "\\|");
                format!("| `{}`{value} | {} | `{}` |\n", word.name, word.help, word.example)
            });
            format!(
                "\n### {title}\n\n| word | meaning | for example |\n|---|---|---|\n{}",
                rows.collect::<String>()
            )
        };
        let which = table(Group::Which, "Which commands");
        format!("{which}{}{}\n", table(Group::When, "When"), table(Group::Act, "What they meet"))
    }

    #[test]
    fn the_document_says_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/faults.md");
        let text = std::fs::read_to_string(path).expect("docs/faults.md");
        let begin = text.find(BEGIN).expect("the first marker") + BEGIN.len();
        let end = text.find(END).expect("the second marker");
        let right = format!("{}{}{}", &text[..begin], tables(), &text[end..]);
        if std::env::var_os("UPDATE_FAULTS").is_some() {
            std::fs::write(path, right).expect("writable");
            return;
        }
        assert!(text == right, "run: UPDATE_FAULTS=1 cargo test --lib the_document");
    }

    /// Each row of the comparison names a test that there is, and this device has it all.
    #[test]
    fn each_feature_has_its_test() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
        let text = std::fs::read_to_string(format!("{root}docs/faults.md")).expect("docs/faults.md");
        let (_, table) = text.split_once("| feature | scsi_debug |").expect("the table");
        let mut count = 0;
        for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [_, feature, others @ .., ours, test, _] = cells.as_slice() else { panic!("{row}") };
            assert_eq!((others.len(), *ours), (8, "Y"), "{row}");
            assert!(others.iter().all(|cell| ["Y", "P", "N"].contains(cell)), "{row}");
            let (file, name) = test.trim_matches('`').split_once("::").expect(feature);
            let path = format!("{root}tests/faults/scripted/{file}.rs");
            let source = std::fs::read_to_string(path).expect(feature);
            assert!(source.contains(&format!("#[test]\nfn {name}()")), "{feature}: no test {test}");
            count += 1;
        }
        assert!(count > 30, "the table was not found");
    }
}
