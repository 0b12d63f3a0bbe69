//! `fault`: rules that say which commands meet what, while the device runs. docs/faults.md has their grammar.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::command::{Arg, Command, Kind};
use crate::control::context::{Context, PATIENCE};
use crate::control::wire::{Refusal, Request};
use crate::laboratory::faults::{Rule, RuleError, RuleReport};

/// The row of the table.
pub const COMMAND: Command = Command {
    name: "fault",
    about: "Add, list and clear fault rules, and release what they hold",
    args: &[
        Arg::new("action", Kind::Word(&["add", "list", "clear", "release"]), "What to do")
            .required()
            .positional(),
        Arg::new("rule", Kind::Text("a rule, or the name of one"), "add: the rule; else its name, or all")
            .rest(),
    ],
    run: |context, request, _| fault(context, request),
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultArgs {
    action: String,
    rule: Option<String>,
}

fn fault(context: &Context, request: &Request) -> Result<Value, Refusal> {
    let FaultArgs { action, rule } = request.args()?;
    let faults = &context.faults;
    let name = rule.as_deref().map(str::trim).filter(|name| *name != "all");
    match action.as_str() {
        "add" => {
            let text = rule.ok_or_else(|| {
                Refusal::new("fault add needs a rule", "op=copy status=write-fault, for example")
            })?;
            let rule = Rule::parse(&text).map_err(refused)?;
            let name = faults.add(rule, PATIENCE).map_err(refused)?;
            let all = faults.list();
            Ok(json!(all.iter().find(|rule| rule.name == name)))
        }
        "list" => {
            let mut rules = faults.list();
            if let Some(name) = name {
                rules.retain(|rule| rule.name == name);
                if rules.is_empty() {
                    return Err(unknown(name, &faults.list()));
                }
            }
            Ok(json!({ "rules": rules }))
        }
        "clear" => {
            let before = faults.list();
            match (faults.clear(name, PATIENCE), name) {
                (0, Some(name)) => Err(unknown(name, &before)),
                (cleared, _) => Ok(json!({ "cleared": cleared })),
            }
        }
        _ => {
            let released = faults.release(name, PATIENCE);
            let released = released.ok_or_else(|| unknown(name.unwrap_or_default(), &faults.list()))?;
            Ok(json!({ "released": released }))
        }
    }
}

fn refused(error: RuleError) -> Refusal {
    let (word, problem, remedy) = error.parts();
    Refusal::new(format!("{word}: {problem}"), remedy)
}

fn unknown(name: &str, rules: &[RuleReport]) -> Refusal {
    let names: Vec<_> = rules.iter().map(|rule| rule.name.as_str()).collect();
    let expected = if names.is_empty() { "a rule; there is none".into() } else { names.join(", ") };
    let name: String = name.chars().take(40).collect();
    Refusal::new(format!("no rule is called {name:?}"), expected)
}
