//! Facts about the source tree that a reviewer should not have to check by eye.
//!
//! Hard facts only: which crate may know which, where `unsafe`, the clock and a few libraries may
//! appear, that every dependency gives its reason, that nothing is left over and no link is dead.
//! Taste (length of a function, choice of a name) stays with the reader.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test that cannot read the tree should fail loudly")]

use std::fs;
use std::path::{Path, PathBuf};

/// What each crate may depend on. Lower layers first; an arrow only ever points up this list.
const LAYERS: [(&str, &[&str]); 7] = [
    ("wire", &[]),
    ("engine", &["wire"]),
    ("client", &["wire"]),
    ("servers", &["wire", "engine", "client"]),
    ("gateway", &["wire", "client"]),
    ("benches", &["wire", "engine", "client", "servers", "gateway"]),
    ("cli", &["wire", "engine", "client", "servers", "gateway", "benches"]),
];

/// Where the clock may be read: at the edges. Decisions take `now` as an argument.
const CLOCKS: &[&str] = &["servers/src/clock.rs", "engine/src/runtime/", "client/", "gateway/", "benches/", "cli/"];

/// A word of code, and the only places that may say it.
const CONFINED: [(&str, &[&str]); 8] = [
    ("unsafe", &["engine/src/runtime/"]),
    ("redb", &["servers/src/master/"]),
    ("bincode", &["wire/src/codec.rs"]),
    ("axum", &["gateway/"]),
    ("glommio", &["engine/", "benches/", "servers/src/chunkserver/mod.rs"]),
    ("monoio", &["engine/", "benches/", "servers/src/chunkserver/mod.rs"]),
    ("Instant::now", CLOCKS),
    ("SystemTime::now", CLOCKS),
];

/// What may be written while iterating, and must be gone before it is kept.
const LEFTOVERS: [&str; 7] = ["FIXME", "TODO", "XXX", "HACK", "dbg!", "todo!", "unimplemented!"];

/// Places that exist on one machine only.
/// Put together here, so that this list does not find itself.
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Longest source file. A longer one has more than one subject, or stands in [`LONG`].
const FILE_LINES_MAX: usize = 700;

/// Longer files that are better whole, each with its reason.
const LONG: [(&str, &str); 0] = [];

#[test]
fn crates_know_only_the_layers_below() {
    for (name, allowed) in LAYERS {
        let known = dependencies(&read(&format!("{name}/Cargo.toml")), "dependencies");
        for other in known.iter().filter(|other| LAYERS.iter().any(|(layer, _)| layer == *other)) {
            assert!(allowed.contains(&other.as_str()), "{name} must not depend on {other}");
        }
    }
}

#[test]
fn every_member_of_the_workspace_has_a_layer_and_its_lints() {
    let root = read("Cargo.toml");
    let members = root.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    let members: Vec<&str> = members.split(',').map(|name| name.trim().trim_matches('"')).collect();
    assert_eq!(members.len(), LAYERS.len(), "{members:?}");
    for member in members {
        assert!(LAYERS.iter().any(|(name, _)| *name == member), "{member} has no layer");
        let manifest = read(&format!("{member}/Cargo.toml"));
        assert!(section(&manifest, "lints").contains("workspace = true"), "{member} must use the shared lints");
    }
}

#[test]
fn every_dependency_says_what_it_saves() {
    let root = read("Cargo.toml");
    let mut covered = String::new();
    let mut complaints = Vec::new();
    for line in section(&root, "workspace.dependencies").lines().map(str::trim) {
        let name = dependency_name(line);
        match name {
            Some(name) if line.contains("path = ") || line.contains(" # ") => covered = family(name),
            // The reason above one crate also covers its companions: `hyper-util` below `hyper`.
            Some(name) if covered == "#" || covered == family(name) => covered = family(name),
            Some(name) => complaints.push(name.to_owned()),
            None => covered = if line.starts_with('#') { "#".into() } else { String::new() },
        }
    }
    assert!(complaints.is_empty(), "no reason above, in the root Cargo.toml: {complaints:?}");
}

#[test]
fn versions_are_chosen_in_one_place() {
    for (name, _) in LAYERS {
        let manifest = read(&format!("{name}/Cargo.toml"));
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for line in section(&manifest, table).lines().filter(|line| dependency_name(line).is_some()) {
                assert!(line.contains("workspace = true"), "{name}: `{line}` belongs in the root Cargo.toml");
            }
        }
    }
}

#[test]
fn every_crate_refuses_unsafe_code() {
    for (path, text) in files(&[".rs"]) {
        let is_root =
            ["/src/lib.rs", "/src/main.rs"].iter().any(|end| path.ends_with(end)) || path.contains("/src/bin/");
        if is_root {
            let want = if path == "engine/src/lib.rs" { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
            assert!(text.contains(want), "{path} must say {want}");
        }
    }
}

#[test]
fn words_stay_where_they_belong() {
    let mut complaints = Vec::new();
    for (path, text) in files(&[".rs"]) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (word, homes) in CONFINED {
                if says(code, word) && !homes.iter().any(|home| path.starts_with(home)) {
                    complaints.push(format!("{path}:{}: {word} belongs in {homes:?}", number + 1));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn nothing_is_left_over_and_no_machine_is_named() {
    let mut complaints = Vec::new();
    for (path, text) in files(&[".rs", ".md", ".toml", ".sh", ".py", ".yml", ".yaml", ".mk", "Makefile", "Dockerfile"])
    {
        for (number, line) in text.lines().enumerate() {
            for word in LEFTOVERS.iter().filter(|word| says(line, word)) {
                complaints.push(format!("{path}:{}: leftover {word}", number + 1));
            }
            for place in MACHINE_PATHS.iter().filter(|place| line.contains(**place)) {
                complaints.push(format!("{path}:{}: {place} is a place on one machine", number + 1));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn files_have_one_subject() {
    let long: Vec<(String, usize)> = files(&[".rs"])
        .into_iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .collect();
    for (path, lines) in &long {
        assert!(LONG.iter().any(|(allowed, _)| allowed == path), "{path}: {lines} lines, more than {FILE_LINES_MAX}");
    }
    for (allowed, reason) in LONG {
        assert!(long.iter().any(|(path, _)| path == allowed), "{allowed} is no longer long ({reason})");
    }
}

#[test]
fn documentation_links_resolve() {
    let mut complaints = Vec::new();
    for (path, text) in files(&[".md"]) {
        let folder = root().join(&path).parent().unwrap().to_path_buf();
        for target in links(&prose(&text)).filter(|target| !target.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { root().join(&path) } else { folder.join(file) };
            let anchors = || headings(&fs::read_to_string(&file).unwrap_or_default());
            if !file.exists() || (!anchor.is_empty() && !anchors().contains(&anchor.to_owned())) {
                complaints.push(format!("{path}: dead link {target}"));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn source_files_named_in_documentation_exist() {
    let mut complaints = Vec::new();
    for (path, text) in files(&[".md"]) {
        for name in prose(&text).split('`').skip(1).step_by(2) {
            let crate_name = name.split('/').next().unwrap_or_default();
            let is_source = name.contains('/') && LAYERS.iter().any(|(layer, _)| *layer == crate_name);
            if is_source && !name.contains(['{', '*', '<', ' ', '…']) && !root().join(name).exists() {
                complaints.push(format!("{path}: no such file `{name}`"));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn the_checks_see_what_they_look_for() {
    assert!(says("let x = unsafe { y };", "unsafe") && says("use redb::Database;", "redb"));
    assert!(!says("#![forbid(unsafe_code)]", "unsafe") && !says("is_unsafe()", "unsafe"));
    assert_eq!(dependency_name("tokio-util = { version = \"0.7\" }"), Some("tokio-util"));
    assert_eq!(dependency_name("wire.workspace = true"), Some("wire"));
    assert_eq!([dependency_name("# a reason"), dependency_name("")], [None, None]);
    assert_eq!(
        dependencies("[dependencies]\na.workspace = true\n[x]\nb = 1\n[dependencies.c]\n", "dependencies"),
        ["a", "c"]
    );
    assert_eq!(links("[a](b.md#c) and ![d](e.svg \"title\")").collect::<Vec<_>>(), ["b.md#c", "e.svg"]);
    assert_eq!(headings("# Life of an *append*, and `more`\n## 2. Two\n"), ["life-of-an-append-and-more", "2-two"]);
    assert_eq!(prose("a\n```\n[x](y)\n```\nb\n"), "a\nb\n");
}

/// Whether `code` says `word` as a word of its own.
fn says(code: &str, word: &str) -> bool {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(is_part) && !code[at + word.len()..].starts_with(is_part))
}

/// The crates that a manifest names in a table, also as tables of their own.
fn dependencies(manifest: &str, table: &str) -> Vec<String> {
    let lines = section(manifest, table).lines().filter_map(dependency_name).map(str::to_owned);
    let own = manifest.lines().filter_map(|line| line.strip_prefix(&format!("[{table}.")));
    lines.chain(own.map(|rest| rest.trim_end_matches(']').to_owned())).collect()
}

fn dependency_name(line: &str) -> Option<&str> {
    let name = line.split([' ', '.', '=']).next()?;
    (!name.is_empty() && !name.starts_with(['#', '['])).then_some(name)
}

/// `hyper` of `hyper-util`.
fn family(name: &str) -> String {
    name.split(['-', '_']).next().unwrap_or_default().to_owned()
}

/// The lines of one table of a manifest.
fn section<'a>(manifest: &'a str, table: &str) -> &'a str {
    let body = manifest.split(&format!("\n[{table}]\n")).nth(1).unwrap_or_default();
    let body = if body.is_empty() { manifest.strip_prefix(&format!("[{table}]\n")).unwrap_or_default() } else { body };
    body.split("\n[").next().unwrap_or_default()
}

/// Markdown without its fenced blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut out = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Targets of the links in Markdown.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter_map(|target| target.split_whitespace().next())
}

/// Anchors of the headings in Markdown, as the usual viewers make them.
fn headings(text: &str) -> Vec<String> {
    let titles = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    titles.map(|title| title.to_lowercase().chars().filter_map(anchor_letter).collect()).collect()
}

fn anchor_letter(letter: char) -> Option<char> {
    match letter {
        ' ' => Some('-'),
        '-' | '_' => Some(letter),
        letter => letter.is_alphanumeric().then_some(letter),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every file of the workspace with one of these endings, except this one, as (path from the root, text).
fn files(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                // What a build, a run or a backup leaves behind is no source.
                let foreign = ["target", "data", "backups"].contains(&name.as_str());
                if !foreign && (name == ".ci" || !name.starts_with('.')) {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) && name != "wire/tests/tidy.rs" {
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
