//! docs/conformance.md says of the commands what their tables say. With UPDATE_CONFORMANCE set it is made to.

use std::fs;
use std::path::Path;

use vfio_user_nvme::spec::commands::{AdminCommand, NvmCommand};
use vfio_user_nvme::spec::log_page::effect;

const BEGIN: &str = "cargo test --test conformance -->\n";
const END: &str = "<!-- end -->";

/// One row: opcode, name, how Identify says that it is there, what it changes.
fn row(opcode: u8, name: &str, field: &str, bit: u16, effects: u32) -> String {
    let said = if bit == 0 { "always".into() } else { format!("{field} bit {}", bit.trailing_zeros()) };
    let changes = if effects & effect::LBCC == 0 { "" } else { "block content" };
    format!("| {opcode:02X}h | {name} | {said} | {changes} |\n")
}

fn tables() -> String {
    const HEAD: &str = "| opcode | command | there | changes |\n|---|---|---|---|\n";
    let admin = AdminCommand::ALL.iter().map(|c| row(c.opcode(), c.name(), "OACS", c.bit(), c.effects()));
    let nvm = NvmCommand::ALL.iter().map(|c| row(c.opcode(), c.name(), "ONCS", c.bit(), c.effects()));
    let (admin, nvm): (String, String) = (admin.collect(), nvm.collect());
    format!("\n## Admin commands\n\n{HEAD}{admin}\n## Commands of the NVM command set\n\n{HEAD}{nvm}\n")
}

#[test]
fn the_document_says_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    let text = fs::read_to_string(&path).expect("docs/conformance.md");
    let begin = text.find(BEGIN).expect("the first marker") + BEGIN.len();
    let end = text.find(END).expect("the second marker");
    let right = format!("{}{}{}", &text[..begin], tables(), &text[end..]);
    if std::env::var_os("UPDATE_CONFORMANCE").is_some() {
        fs::write(&path, right).expect("writable");
        return;
    }
    assert!(text == right, "run: UPDATE_CONFORMANCE=1 cargo test --test conformance");
}
