//! Reads the `crate::` paths of every file under `src` and checks that a file uses lower floors and its own part only,
//! so that the drawing in `ARCHITECTURE.md` stays true.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Floor of each part (a file or folder directly under `src`).
const FLOORS: &[(u8, &[&str])] = &[
    (0, &["access", "causes", "clock", "ids", "outbound", "secret", "telemetry"]),
    (1, &["crypto"]),
    (2, &["audit", "auth", "evidence", "policy", "receipt", "report"]),
    (3, &["storage"]),
    (4, &["keyring"]),
    (5, &["recovery", "vault"]),
    (6, &["grpc", "jobs"]),
    (7, &["config"]),
    (8, &["server"]),
    (9, &["cli", "main"]),
];

/// Neighbours on one floor that may see each other, in this direction only.
const NEIGHBOURS: &[(&str, &str)] = &[
    ("access", "ids"),
    ("evidence", "audit"),
    ("evidence", "receipt"),
    ("evidence", "report"),
    ("main", "cli"),
    ("recovery", "vault"),
];

fn floor(part: &str) -> Option<u8> {
    FLOORS.iter().find(|(_, parts)| parts.contains(&part)).map(|(floor, _)| *floor)
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Names after `crate::` (or `pii_vault::` in the binary), also inside one level of braces.
fn uses(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        for prefix in ["crate::", "pii_vault::"] {
            // An odd number of quotes before it: it stands inside a text.
            for (at, _) in line.match_indices(prefix).filter(|(at, _)| line[..*at].matches('"').count() % 2 == 0) {
                let rest = &line[at + prefix.len()..];
                let names: Vec<&str> = match rest.strip_prefix('{') {
                    Some(group) => group.split(['}', ',']).collect(),
                    None => vec![rest],
                };
                for name in names {
                    let end = name.trim().find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.trim().len());
                    let name = &name.trim()[..end];
                    if floor(name).is_some() {
                        found.insert(name.to_owned());
                    }
                }
            }
        }
    }
    found
}

#[test]
fn a_file_uses_lower_floors_and_its_own_part_only() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut wrong = BTreeMap::new();
    let mut checked = 0;
    for path in all {
        let inside = path.strip_prefix(&src).unwrap();
        let part = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if part == "lib" {
            continue;
        }
        let own = floor(&part).unwrap_or_else(|| panic!("{part} stands on no floor: add it to the drawing and here"));
        for used in uses(&std::fs::read_to_string(&path).unwrap()) {
            checked += 1;
            let allowed =
                used == part || floor(&used).unwrap() < own || NEIGHBOURS.contains(&(part.as_str(), used.as_str()));
            if !allowed {
                wrong.entry(inside.display().to_string()).or_insert_with(Vec::new).push(used);
            }
        }
    }
    assert!(checked > 100, "the reader of imports found only {checked}: it is broken");
    assert!(wrong.is_empty(), "files that use a higher floor or the folder next door: {wrong:#?}");
}

/// `docs/TESTS.md` has a row for every number that a test begins with, and no row without a test.
#[test]
fn the_page_of_tests_is_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    files(&root.join("src"), &mut sources);
    files(&root.join("tests"), &mut sources);
    let mut tests = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source).unwrap();
        for (at, _) in text.match_indices("fn t") {
            let name: String = text[at + 4..].chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
            // Some tests show two properties: `t01_t27_...`.
            let second = text[at + 4 + name.len()..].strip_prefix("_t").map(|rest| rest.chars().take(2).collect());
            for number in [Some(name), second].into_iter().flatten().filter_map(|n| n.parse::<u8>().ok()) {
                tests.insert(number);
            }
        }
    }
    let page = std::fs::read_to_string(root.join("docs/TESTS.md")).unwrap();
    let mut rows = BTreeSet::new();
    for row in page.lines().filter_map(|line| line.strip_prefix("| T")) {
        let numbers: Vec<u8> =
            row.split('|').next().unwrap().split(" to T").map(|n| n.trim().parse().unwrap()).collect();
        rows.extend(numbers[0]..=*numbers.last().unwrap());
    }
    assert!(tests.len() > 20);
    assert_eq!(tests, rows, "left: numbers of tests; right: rows of docs/TESTS.md");
}

#[test]
fn every_test_that_the_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    files(&root.join("src"), &mut sources);
    files(&root.join("tests"), &mut sources);
    let all: String = sources.iter().map(|source| std::fs::read_to_string(source).unwrap()).collect();
    let page = std::fs::read_to_string(root.join("docs/TESTS.md")).unwrap();
    let named = page.split('`').skip(1).step_by(2);
    let named =
        named.filter(|name| name.len() > 10 && !name.contains(|c: char| !(c.is_ascii_alphanumeric() || c == '_')));
    let named: Vec<&str> = named.filter(|name| name.starts_with("row_") || name.starts_with('t')).collect();
    assert!(named.len() > 15, "{named:?}");
    let missing: Vec<&&str> = named.iter().filter(|name| !all.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
