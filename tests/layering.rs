//! Holds the direction of the module borders (ARCHITECTURE.md): a room uses only rooms below it.
//!
//! Reads the sources as tokens, so comments and strings count for nothing, and tests, macros and
//! fully written paths count as much as `use` lines.

use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The rooms, lowest first, each with those it may not use although they are lower.
const ROOMS: &[(&str, &[&str])] = &[
    ("logging", &[]),
    ("spec", &[]),
    ("pci", &["spec"]),
    ("memory", &["pci"]),
    // Bytes, never NVMe: another front-end is to use it unchanged.
    ("disk", &["spec", "pci"]),
    ("namespace", &["pci", "memory"]),
    // Every front-end runs it, so it names no status.
    ("block", &["spec", "pci"]),
    ("status", &["pci"]),
    // Its range list reaches it as bytes: it never sees guest memory.
    ("copy", &["pci", "memory"]),
    // It serves every front-end: no wire, no guest.
    ("subsystem", &["spec", "pci", "memory", "copy"]),
    ("laboratory", &["pci", "memory", "disk", "subsystem"]),
    ("nvme_ctrl", &["pci"]),
    ("vfio_user", &[]),
    ("config", &[]),
    ("images", &["spec", "pci", "memory", "nvme_ctrl", "vfio_user"]),
    // They see nothing of a device but what it wrote.
    ("copy_log", &["pci", "memory", "disk", "subsystem", "nvme_ctrl", "vfio_user"]),
    ("plan", &["pci", "memory", "subsystem", "nvme_ctrl", "vfio_user", "copy_log"]),
    // It asks for what the control thread alone may touch: no session, no guest memory.
    ("control", &["spec", "pci", "memory"]),
    ("device", &[]),
    ("server", &[]),
    ("cli", &[]),
    ("main", &[]),
];

fn rank(room: &str) -> Option<usize> {
    ROOMS.iter().position(|(name, _)| *name == room)
}

/// Why room `from` may not use `to`, if it may not.
fn fault(from: &str, to: &str) -> Option<String> {
    let Some(to_rank) = rank(to) else {
        return Some(format!("{from} uses {to}, which is no room of ROOMS"));
    };
    let from_rank = rank(from)?;
    if to_rank > from_rank {
        Some(format!("{from} uses {to}, which lies above it"))
    } else if ROOMS[from_rank].1.contains(&to) {
        Some(format!("{from} uses {to}, which it must not know"))
    } else {
        None
    }
}

/// A name, a `::`, a group or anything else; what path reading needs of a token.
#[derive(Debug)]
enum Token {
    Name(String),
    Colons,
    Star,
    Group(Delimiter, Vec<Token>),
    Other,
}

fn tokens(stream: TokenStream) -> Vec<Token> {
    let mut out = Vec::new();
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        out.push(match tree {
            TokenTree::Ident(name) => Token::Name(name.to_string()),
            TokenTree::Group(group) => Token::Group(group.delimiter(), tokens(group.stream())),
            TokenTree::Punct(p) if p.as_char() == '*' => Token::Star,
            TokenTree::Punct(p) if p.as_char() == ':' => match trees.peek() {
                Some(TokenTree::Punct(q)) if q.as_char() == ':' => {
                    trees.next();
                    Token::Colons
                }
                _ => Token::Other,
            },
            TokenTree::Punct(_) | TokenTree::Literal(_) => Token::Other,
        });
    }
    out
}

/// Reads one file. `module` is its place: the names from the crate's root down.
struct Reader {
    module: Vec<String>,
    /// The rooms it names, or what could not be followed.
    found: Vec<Result<String, String>>,
    /// What it names, from the crate's root down, as far as that is a path.
    paths: Vec<Vec<String>>,
}

impl Reader {
    /// Walks tokens outside any path.
    fn walk(&mut self, tokens: &[Token]) {
        let mut rest = tokens;
        while let [token, after @ ..] = rest {
            rest = after;
            match (token, after) {
                (Token::Name(word), [Token::Name(name), Token::Group(Delimiter::Brace, body), more @ ..])
                    if word == "mod" =>
                {
                    self.module.push(name.clone());
                    self.walk(body);
                    self.module.pop();
                    rest = more;
                }
                // From here down.
                (Token::Name(word), [Token::Name(first), path @ ..])
                    if word == "use" && first != "crate" && first != "super" =>
                {
                    let mut below = self.module.clone();
                    if first != "self" {
                        below.push(first.clone());
                    }
                    self.follow(below, path);
                }
                (Token::Name(word), _) if word == "crate" => rest = self.after(Vec::new(), after),
                (Token::Name(word), _) if word == "super" => {
                    let parent = self.parent(&self.module.clone());
                    rest = self.after(parent, after);
                }
                (Token::Group(_, inner), _) => self.walk(inner),
                _ => {}
            }
        }
    }

    fn parent(&mut self, module: &[String]) -> Vec<String> {
        module.split_last().map(|(_, p)| p.to_vec()).unwrap_or_default()
    }

    /// What follows `base`, a module already reached. Returns the tokens after the path.
    fn after<'t>(&mut self, base: Vec<String>, tokens: &'t [Token]) -> &'t [Token] {
        match tokens {
            [Token::Colons, rest @ ..] => self.tail(base, rest),
            // `use crate as root` or `use {super as up}`: what it leads to cannot be read from here.
            [Token::Name(word), rest @ ..] if word == "as" => {
                self.reached(&base, "renames the crate's root");
                rest
            }
            _ => tokens,
        }
    }

    /// What follows `base::`.
    fn tail<'t>(&mut self, base: Vec<String>, tokens: &'t [Token]) -> &'t [Token] {
        match tokens {
            [Token::Name(word), rest @ ..] if word == "super" => {
                let parent = self.parent(&base);
                self.after(parent, rest)
            }
            [Token::Name(word), rest @ ..] if word == "self" => self.after(base, rest),
            [Token::Name(name), rest @ ..] => {
                let mut module = base;
                module.push(name.clone());
                self.reached(&module, "");
                // Inside the room a path may climb out again only by `super` at its start.
                self.follow(module, rest);
                rest
            }
            [Token::Star, rest @ ..] => {
                self.reached(&base, "takes all of the crate's root");
                rest
            }
            [Token::Group(_, items), rest @ ..] => {
                let mut items = items.as_slice();
                while !items.is_empty() {
                    let before = items.len();
                    items = self.tail(base.clone(), items);
                    // To the next item: its comma is the first `Other` here.
                    while let [token, more @ ..] = items {
                        items = more;
                        if matches!(token, Token::Other) {
                            break;
                        }
                    }
                    assert!(items.len() < before);
                }
                rest
            }
            _ => tokens,
        }
    }

    /// The rest of a path, of which only where it leads counts.
    fn follow(&mut self, mut path: Vec<String>, mut tokens: &[Token]) {
        while let [Token::Colons, Token::Name(name), rest @ ..] = tokens {
            path.push(name.clone());
            tokens = rest;
        }
        if let [Token::Colons, Token::Group(_, items), ..] = tokens {
            for item in items.split(|token| matches!(token, Token::Other)) {
                if let [Token::Name(name), rest @ ..] = item {
                    let mut path = path.clone();
                    if name != "self" {
                        path.push(name.clone());
                    }
                    self.follow(path, rest);
                }
            }
        } else {
            self.paths.push(path);
        }
    }

    fn reached(&mut self, module: &[String], at_root: &str) {
        match module.first() {
            Some(room) => self.found.push(Ok(room.clone())),
            None => self.found.push(Err(at_root.to_owned())),
        }
    }
}

/// Faults of one file of the library at `module` (`["copy", "plan"]` for `src/copy/plan.rs`).
fn faults(module: &[&str], source: &str) -> Vec<String> {
    let stream: TokenStream = match source.parse() {
        Ok(stream) => stream,
        Err(e) => return vec![format!("cannot be read: {e}")],
    };
    let mut reader = Reader {
        module: module.iter().map(|&m| m.to_owned()).collect(),
        found: Vec::new(),
        paths: Vec::new(),
    };
    reader.walk(&tokens(stream));
    let room = module[0];
    let mut faults: Vec<_> = reader
        .found
        .into_iter()
        .filter_map(|found| match found {
            Ok(to) => fault(room, &to),
            Err(what) => Some(format!("{room} {what}: its borders cannot be seen")),
        })
        .collect();
    faults.dedup();
    faults
}

/// Every Rust file below `dir` with its module path.
fn files(dir: &Path, module: &[String], out: &mut Vec<(Vec<String>, String)>) {
    for entry in fs::read_dir(dir).expect("src is there") {
        let path = entry.expect("src can be listed").path();
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("a plain name").to_owned();
        let mut inner = module.to_vec();
        if path.is_dir() {
            inner.push(stem);
            files(&path, &inner, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            if stem != "mod" {
                inner.push(stem);
            }
            out.push((inner, fs::read_to_string(&path).expect("a source can be read")));
        }
    }
}

/// Without its tests, which may use anything, and what it only hands on to others.
fn production(source: &str) -> String {
    let tests =
        source.find("#[cfg(test)]\nmod tests {").or(source.find("#[cfg(test)]\npub(super) mod tests {"));
    let mut kept = String::new();
    let mut handed_on = false;
    for line in source.get(..tests.unwrap_or(source.len())).unwrap_or_default().lines() {
        handed_on |= line.starts_with("pub") && line.contains(" use ");
        if !handed_on {
            kept.push_str(line);
            kept.push('\n');
        }
        handed_on &= !line.ends_with(';');
    }
    kept
}

/// What a `pub use` of these files hands on: where it stands, its name, and the module it comes from.
fn handed_on(sources: &[(Vec<String>, String)]) -> Vec<(Vec<String>, String, Vec<String>)> {
    let mut all = Vec::new();
    for (module, source) in sources {
        for item in source.split("pub").skip(1).filter_map(|rest| rest.split(';').next()) {
            let Some((_, path)) = item.split_once("use ").filter(|(before, _)| before.len() < 20) else {
                continue;
            };
            let path = path.replace(char::is_whitespace, "");
            let (base, names) = match path.split_once("::{") {
                Some((base, names)) => (base.to_owned(), names.trim_end_matches('}').to_owned()),
                None => path.rsplit_once("::").map_or_else(Default::default, |(a, b)| (a.into(), b.into())),
            };
            let from: Vec<String> = base.split("::").filter(|part| *part != "self").map(Into::into).collect();
            all.extend(
                names.split(',').map(|name| (module.clone(), name.to_owned(), [&module[..], &from].concat())),
            );
        }
    }
    all
}

/// The file that a path of the library leads to.
fn file_of(
    path: &[String],
    files: &[Vec<String>],
    handed_on: &[(Vec<String>, String, Vec<String>)],
) -> Vec<String> {
    let mut at: Vec<String> = Vec::new();
    for name in path {
        let deeper = [&at[..], std::slice::from_ref(name)].concat();
        if files.contains(&deeper) || (at.is_empty() && files.iter().any(|file| file.first() == Some(name))) {
            at = deeper;
            continue;
        }
        while let Some((_, _, from)) = handed_on.iter().find(|(place, what, _)| *place == at && what == name)
        {
            at = from.clone();
        }
        break;
    }
    at
}

/// Fails if files need each other in a circle, or two types have one name.
fn assert_straight(own: &[(Vec<String>, String)]) {
    let names: Vec<Vec<String>> = own.iter().map(|(file, _)| file.clone()).collect();
    let handed_on = handed_on(own);
    let mut uses: Vec<(Vec<String>, Vec<Vec<String>>)> = Vec::new();
    let mut types: Vec<(String, String)> = Vec::new();
    for (file, source) in own {
        let source = production(source);
        let stream: TokenStream = source.parse().expect("it compiles");
        let mut reader = Reader { module: file.clone(), found: Vec::new(), paths: Vec::new() };
        reader.walk(&tokens(stream));
        let to = reader.paths.iter().map(|path| file_of(path, &names, &handed_on));
        uses.push((file.clone(), to.filter(|to| to != file && names.contains(to)).collect()));
        for line in source.lines() {
            let line = ["pub(in crate::disk) ", "pub(super) ", "pub(crate) ", "pub "]
                .iter()
                .fold(line, |line, word| line.trim_start_matches(word));
            let mut words = line.split(|c: char| !c.is_alphanumeric());
            if let (Some("struct" | "enum" | "trait" | "type"), Some(name)) = (words.next(), words.next()) {
                let twice = types.iter().find(|(other, _)| other == name);
                assert!(twice.is_none(), "{name} in {} and {}", file.join("/"), twice.map_or("", |t| &t.1));
                types.push((name.to_owned(), file.join("/")));
            }
        }
    }
    // Files that need none that are left are taken away until none is left, or a circle is.
    while !uses.is_empty() {
        let left: Vec<_> = uses.iter().map(|(file, _)| file.clone()).collect();
        let before = uses.len();
        uses.retain(|(_, to)| to.iter().any(|to| left.contains(to)));
        assert!(uses.len() < before, "in a circle, or needing one: {left:?}");
    }
}

#[test]
fn no_circle_within_a_room() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    files(&src, &[], &mut sources);
    for (room, _) in ROOMS {
        let is_test = |name: &String| name == "tests" || name.ends_with("_tests");
        let own: Vec<_> = sources
            .iter()
            .filter(|(file, _)| file[0] == *room && !file.iter().any(is_test))
            .cloned()
            .collect();
        assert_straight(&own);
    }
}

/// The crates that look at the device from outside, and the rooms of it that each may name.
const TOOLS: [(&str, &[&str]); 2] = [("host", &[]), ("bench", &["spec", "config", "cli"])];

/// The rooms of the device that another crate names.
fn rooms_of_the_device(tokens: &[Token], found: &mut Vec<String>) {
    for (at, token) in tokens.iter().enumerate() {
        match (token, tokens.get(at + 1..)) {
            (Token::Group(_, inner), _) => rooms_of_the_device(inner, found),
            (Token::Name(krate), Some([Token::Colons, next, ..])) if krate == "vfio_user_nvme" => {
                match next {
                    Token::Name(room) => found.push(room.clone()),
                    Token::Group(_, items) => found.extend(items.iter().filter_map(|item| match item {
                        Token::Name(room) => Some(room.clone()),
                        _ => None,
                    })),
                    _ => found.push("all of it".to_owned()),
                }
            }
            _ => {}
        }
    }
}

#[test]
fn tools_are_straight_and_stay_outside() {
    for (tool, may) in TOOLS {
        let mut sources = Vec::new();
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(tool).join("src"), &[], &mut sources);
        for (module, _) in &mut sources {
            module.retain(|name| name != "lib");
        }
        assert!(sources.len() > 5, "the sources of {tool} were not found");
        assert_straight(&sources);
        let mut found = Vec::new();
        for (_, source) in &sources {
            rooms_of_the_device(&tokens(source.parse().expect("it compiles")), &mut found);
        }
        found.retain(|room| !may.contains(&room.as_str()));
        assert_eq!(found, Vec::<String>::new(), "{tool} names them");
    }
}

#[test]
fn no_use_points_up() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    files(&src, &[], &mut sources);
    assert!(sources.len() > 5, "the sources were not found");
    let mut all = Vec::new();
    for (module, source) in &sources {
        // lib.rs is the root that names every room; main.rs is the room above all.
        if module == &["lib"] || module == &["main"] {
            continue;
        }
        let names: Vec<_> = module.iter().map(String::as_str).collect();
        if rank(names[0]).is_none() {
            all.push(format!("src/{}: not in ROOMS; give it its place", names[0]));
        }
        all.extend(
            faults(&names, source).into_iter().map(|fault| format!("src/{}: {fault}", names.join("/"))),
        );
    }
    assert!(all.is_empty(), "\n{}", all.join("\n"));
}

#[test]
fn a_planted_violation_is_found() {
    for (module, source, want) in [
        (&["copy"][..], "use crate::memory::GuestBuf;", "copy uses memory, which it must not know"),
        (&["copy", "plan"], "use super::super::nvme_ctrl;", "copy uses nvme_ctrl, which lies above it"),
        (&["copy", "plan"], "use super::{super::server, x};", "copy uses server, which lies above it"),
        (&["spec"], "use crate::{spec::a::{B, C}, pci};", "spec uses pci, which lies above it"),
        (
            &["spec"],
            "use crate::{spec::a::{B, C}, self as r};",
            "spec renames the crate's root: its borders cannot be seen",
        ),
        (&["spec"], "use crate as r;", "spec renames the crate's root: its borders cannot be seen"),
        (&["spec"], "use crate::*;", "spec takes all of the crate's root: its borders cannot be seen"),
        (&["spec"], "use super::*;", "spec takes all of the crate's root: its borders cannot be seen"),
        (&["spec"], "use {crate::cli};", "spec uses cli, which lies above it"),
        (&["pci"], "fn f(a: &[crate::spec::X]) {}", "pci uses spec, which it must not know"),
        (
            &["disk"],
            "mod tests { mod deep { use super::super::super::config; } }",
            "disk uses config, which lies above it",
        ),
        (&["memory"], "fn f() { g(h!(crate :: disk :: X)) }", "memory uses disk, which lies above it"),
        (
            &["memory"],
            "macro_rules! m { () => { $crate::disk::x() } }",
            "memory uses disk, which lies above it",
        ),
        (&["namespace"], "use crate::memory;", "namespace uses memory, which it must not know"),
        (
            &["nvme_ctrl", "io"],
            "pub(in super::super::vfio_user) fn f() {}",
            "nvme_ctrl uses vfio_user, which lies above it",
        ),
        (&["nvme_ctrl"], "use crate::pci::Bar;", "nvme_ctrl uses pci, which it must not know"),
        (&["config"], "use crate::hidden;", "config uses hidden, which is no room of ROOMS"),
        (&["spec"], "fn f() {", "cannot be read: "),
    ] {
        let found = faults(module, source);
        assert!(found.len() == 1 && found[0].starts_with(want), "{source}: {found:?}, not {want}");
    }
}

#[test]
fn what_is_allowed_is_no_fault() {
    for (module, source) in [
        (&["copy"][..], "//! [`crate::memory`]\n/* use crate::cli; */ const S: &str = \"use crate::cli\";"),
        (&["copy", "plan"], "use super::run; use crate::copy::x; use crate::namespace::Y;"),
        (&["copy"], "mod tests { use super::*; use super::{a, self as b}; }"),
        (&["copy", "plan"], "mod tests { use super::super::ranges; }"),
        (&["namespace"], "use crate::{disk::{self, Op}, spec}; pub(crate) fn f() {} pub(super) fn g() {}"),
        (&["nvme_ctrl"], "use crate::memory::{Access, self}; fn f<'a>(c: char) { let _ = 'x'; }"),
        (&["vfio_user"], "use crate::{pci, nvme_ctrl, memory, spec};"),
        (&["cli"], "use crate::server::run;"),
        (&["spec"], "use other::crate_name::cli; use std::memory;"),
    ] {
        assert_eq!(faults(module, source), Vec::<String>::new(), "{source}");
    }
}
