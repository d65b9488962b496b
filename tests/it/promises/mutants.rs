//! Whether each rule of the three files is needed: every record, line and list element is taken out in turn, and some
//! promise test must fail under what is left. The command stands in docs/TESTS.md.
//!
//! `PII_MUTANTS` narrows the run: `jina-connect`, or `jina-connect:100-200` for a range of lines.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Test, jenny, jina, jiwa};
use crate::company::{Tenant, shipped};

type Tests = &'static [(&'static str, Test)];

const FILES: [(&str, Tests); 3] = [(jina::FILE, jina::TESTS), (jiwa::FILE, jiwa::TESTS), (jenny::FILE, jenny::TESTS)];

/// Lines that are no rules, by how they begin, and why nothing can miss them.
const NO_RULES: [(&str, &str); 4] = [
    ("title = ", "a name for people beside the one that rules use"),
    ("updated = ", "the date of the published text: for people"),
    ("section = ", "where a sentence stands: for people, and every claim must say it"),
    ("format = ", "every file says it"),
];

/// What else survives, and why it may.
const MAY_LIVE: [(&str, &str, &str); 5] = [
    ("jina-connect", "2026-08-15", "Independence Day of 2026 is a Saturday, no business day in any case"),
    ("jina-connect", "channels = ", "compared with the claims alone, and another recipient carries the same channel"),
    ("jina-connect", "from = \"origin\"", "it is the default, said for readers"),
    ("jiwa-ai", "from = \"origin\"", "it is the default, said for readers"),
    ("jenny-erp", "from = \"origin\"", "it is the default, said for readers"),
];

/// A file without one of its rules.
#[derive(Clone)]
struct Mutant {
    file: &'static str,
    /// Line, from 1, and what was taken out.
    line: usize,
    what: String,
    /// Table in which it was.
    table: String,
    text: String,
}

/// `key = [..]` of one line: the elements.
fn elements(line: &str) -> Option<(usize, usize, Vec<&str>)> {
    let open = line.find("= [")? + 2;
    let close = line.rfind(']')?;
    let inner = line.get(open + 1..close)?;
    let list: Vec<&str> = inner.split(", ").filter(|one| !one.is_empty()).collect();
    (list.len() > 1).then_some((open + 1, close, list))
}

fn mutants(file: &'static str, text: &str) -> Vec<Mutant> {
    let lines: Vec<&str> = text.lines().collect();
    let joined = |skip: std::ops::Range<usize>| {
        let kept: Vec<&str> = lines.iter().enumerate().filter(|(i, _)| !skip.contains(i)).map(|(_, l)| *l).collect();
        kept.join("\n") + "\n"
    };
    let mut all = Vec::new();
    let mut table = String::from("(top)");
    for (i, line) in lines.iter().enumerate() {
        let rule = line.trim();
        if rule.is_empty() || rule.starts_with('#') || NO_RULES.iter().any(|(start, _)| rule.starts_with(start)) {
            continue;
        }
        let mutant =
            |what: &str, text: String| Mutant { file, line: i + 1, what: what.into(), table: table.clone(), text };
        if rule.starts_with('[') {
            table = rule.split('#').next().unwrap_or(rule).trim().to_owned();
            let name = table.trim_matches(|c| c == '[' || c == ']').to_owned();
            // A record ends where another begins that is not its own part.
            let part = format!("{name}.");
            let ends = |l: &&str| l.starts_with('[') && !l.trim_matches('[').starts_with(part.as_str());
            let end = lines[i + 1..].iter().position(ends).map_or(lines.len(), |n| i + 1 + n);
            let whole = Mutant {
                file,
                line: i + 1,
                what: format!("the whole {table}"),
                table: table.clone(),
                text: joined(i..end),
            };
            all.push(whole);
            continue;
        }
        all.push(mutant(rule, joined(i..i + 1)));
        if let Some((open, close, list)) = elements(line) {
            for (n, element) in list.iter().enumerate() {
                let rest: Vec<&str> = list.iter().enumerate().filter(|(k, _)| *k != n).map(|(_, e)| *e).collect();
                let changed = format!("{}{}{}", &line[..open], rest.join(", "), &line[close..]);
                let mut copy = lines.clone();
                copy[i] = &changed;
                all.push(mutant(&format!("{element} of {rule}"), copy.join("\n") + "\n"));
            }
        }
    }
    all
}

/// Whether a test fails under a file.
fn fails(file: &str, text: &str, test: Test) -> bool {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let run = AssertUnwindSafe(|| {
        runtime.block_on(async {
            let t = Tenant::of(file, text).await;
            test(&t).await;
            t.stop().await;
        });
    });
    let failed = std::panic::catch_unwind(run).is_err();
    runtime.shutdown_timeout(Duration::from_millis(200));
    failed
}

/// The name of a test that misses the rule.
fn killer(mutant: &Mutant, tests: Tests, hints: &Mutex<HashMap<String, Vec<usize>>>) -> Option<&'static str> {
    // Whatever missed something of the same kind before is asked first.
    let mut order = hints.lock().unwrap().get(&mutant.table).cloned().unwrap_or_default();
    order.extend((0..tests.len()).filter(|n| !order.contains(n)).collect::<Vec<_>>());
    let n = order.into_iter().find(|n| fails(mutant.file, &mutant.text, tests[*n].1))?;
    let mut hints = hints.lock().unwrap();
    let known = hints.entry(mutant.table.clone()).or_default();
    known.retain(|k| *k != n);
    known.insert(0, n);
    Some(tests[n].0)
}

#[test]
#[ignore = "takes an hour; docs/TESTS.md"]
fn every_rule_of_the_three_files_is_missed_by_a_test() {
    let wanted = std::env::var("PII_MUTANTS").unwrap_or_default();
    let (name, range) = wanted.split_once(':').unwrap_or((&wanted, ""));
    let range = range.split_once('-').map(|(a, b)| a.parse().unwrap()..=b.parse().unwrap()).unwrap_or(0..=usize::MAX);
    std::panic::set_hook(Box::new(|_| ()));
    let mut survivors = Vec::new();
    for (file, tests) in FILES.iter().filter(|(file, _)| name.is_empty() || name == *file) {
        let text = shipped(file);
        for (test, body) in *tests {
            assert!(range != (0..=usize::MAX) || !fails(file, &text, *body), "{test} fails under the shipped file");
        }
        let all: Vec<Mutant> = mutants(file, &text).into_iter().filter(|m| range.contains(&m.line)).collect();
        let (total, hints) = (all.len(), Mutex::new(HashMap::new()));
        let queue = Arc::new(Mutex::new(all.into_iter()));
        let lived = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
                scope.spawn(|| {
                    loop {
                        let Some(mutant) = queue.lock().unwrap().next() else { return };
                        let may = MAY_LIVE.iter().any(|(f, w, _)| *f == mutant.file && mutant.what.starts_with(w));
                        match killer(&mutant, tests, &hints) {
                            Some(test) => println!("{file}:{} missed by {test}: {}", mutant.line, mutant.what),
                            None if may => println!("{file}:{} may be missing: {}", mutant.line, mutant.what),
                            None => {
                                println!("{file}:{} NOT MISSED: {} {}", mutant.line, mutant.table, mutant.what);
                                lived.lock().unwrap().push(format!("{file}:{} {}", mutant.line, mutant.what));
                            }
                        }
                    }
                });
            }
        });
        let lived = lived.into_inner().unwrap();
        println!("{file}: {} of {total} are missed", total - lived.len());
        survivors.extend(lived);
    }
    let _ = std::panic::take_hook();
    assert!(survivors.is_empty(), "{survivors:#?}");
}

#[test]
fn mutants_lack_one_thing_each() {
    let text = "format = 1\n[a]\nx = [\"1\", \"2\"] # two\n[a.b]\ny = 1\n[[c]]\ntitle = \"t\"\nz = 2\n";
    let found: Vec<(usize, String)> = mutants("file", text).into_iter().map(|m| (m.line, m.what)).collect();
    let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [2, 3, 3, 3, 4, 5, 6, 8], "{found:?}");
    let whole = mutants("file", text).remove(0).text;
    assert!(whole.starts_with("format = 1\n[[c]]"), "{whole}");
    let element = &mutants("file", text)[2].text;
    assert!(element.contains("x = [\"2\"] # two") && element.contains("y = 1"), "{element}");
}
