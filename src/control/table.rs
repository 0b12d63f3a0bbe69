//! The table of commands: from it follow what is served, what is refused and why, `help`, and what `ctl` takes.

use serde_json::{Value, json};

use super::command::{Command, Kind};
use super::commands::{copies, drain, fault, inspect, namespaces, oracle, resize, set, stats, status};
use super::wire::Refusal;

/// All commands, in the order of help.
pub const TABLE: &[Command] = &[
    Command {
        name: "help",
        about: "The commands that there are, with their arguments",
        args: &[],
        run: |_, _, _| Ok(help()),
    },
    status::COMMAND,
    set::COMMAND,
    resize::COMMAND,
    namespaces::ADD,
    namespaces::REMOVE,
    namespaces::ATTACH,
    namespaces::DETACH,
    fault::COMMAND,
    stats::COMMAND,
    inspect::COMMAND,
    drain::DRAIN,
    drain::RESUME,
    drain::QUIT,
    copies::COMMAND,
    oracle::COMMAND,
];

/// The command of this name.
///
/// # Errors
/// There is none; those that there are.
pub fn find(name: &str) -> Result<&'static Command, Refusal> {
    TABLE.iter().find(|command| command.name == name).ok_or_else(|| {
        let names: Vec<_> = TABLE.iter().map(|command| command.name).collect();
        let name: String = name.chars().take(40).collect();
        Refusal::new(format!("there is no command {name:?}"), names.join(", "))
    })
}

fn help() -> Value {
    let arg = |arg: &super::command::Arg| {
        let values = match arg.kind {
            Kind::Word(words) => json!(words),
            kind => kind.expected().into(),
        };
        json!({ "name": arg.name, "values": values, "required": arg.required, "about": arg.about })
    };
    let command = |command: &Command| {
        let args: Vec<_> = command.args.iter().map(arg).collect();
        json!({ "name": command.name, "about": command.about, "args": args })
    };
    TABLE.iter().map(command).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_explained() {
        for (at, command) in TABLE.iter().enumerate() {
            assert!(TABLE[..at].iter().all(|other| other.name != command.name), "{} twice", command.name);
            assert!(!command.about.is_empty(), "{}", command.name);
            for (at, arg) in command.args.iter().enumerate() {
                assert!(command.args[..at].iter().all(|other| other.name != arg.name), "{} twice", arg.name);
                assert!(!arg.about.is_empty(), "{} {}", command.name, arg.name);
                assert!(!["id", "command"].contains(&arg.name), "{} is the request's own", arg.name);
            }
        }
    }

    #[test]
    fn an_unknown_command_is_told_the_known_ones() {
        let refusal = find("stattus").unwrap_err();
        assert_eq!(refusal.text, "there is no command \"stattus\"");
        assert!(refusal.expected.starts_with("help, status, set"), "{}", refusal.expected);
    }
}
