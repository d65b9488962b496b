//! The list of software as CycloneDX 1.5 JSON, from the `Cargo.lock` that was there when the program was built.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// Compiled in: what the program was built from, whatever lies beside it later.
const LOCK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"));

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    /// SHA-256 of the archive that the registry gave.
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

impl Package {
    fn reference(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
}

/// What the list is not, inside the list.
const SCOPE: &str = "All crates of the Cargo.lock that the program was built with: for every target, feature, test and build \
                     step, so more than what is linked. Not the compiler and its standard library, not C code inside crates \
                     (SQLite in libsqlite3-sys, parts of ring).";

/// The document, and how many components it names. `program` is the SHA-256 of the program's file, hexadecimal.
///
/// # Panics
/// Never: the text is compiled in, and a test reads it.
pub fn sbom(program: Option<&str>) -> (Vec<u8>, u64) {
    let lock: Lock = toml::from_str(LOCK).expect("cargo wrote it, and a test reads it");
    let mut by_name: BTreeMap<&str, Vec<&Package>> = BTreeMap::new();
    for package in &lock.package {
        by_name.entry(&package.name).or_default().push(package);
    }
    // `name`, or `name version` where there are several.
    let reference = |dependency: &String| -> Option<String> {
        let (name, version) = dependency.split_once(' ').map_or((dependency.as_str(), None), |(n, v)| (n, Some(v)));
        let version = version.map(|text| text.split(' ').next().unwrap_or(text));
        let known = by_name.get(name)?.iter().find(|one| version.is_none_or(|version| one.version == version))?;
        Some(known.reference())
    };
    let own = env!("CARGO_PKG_NAME");
    let component = |package: &Package| -> Value {
        let mut component = json!({
            "type": "library",
            "bom-ref": package.reference(),
            "name": package.name,
            "version": package.version,
            "purl": package.reference(),
        });
        if let Some(checksum) = &package.checksum {
            component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        if let Some(source) = &package.source {
            component["externalReferences"] = json!([{ "type": "distribution", "url": source }]);
        }
        component
    };
    let others: Vec<&Package> = lock.package.iter().filter(|package| package.name != own).collect();
    let dependencies = lock.package.iter().map(|package| {
        let on: Vec<String> = package.dependencies.iter().filter_map(reference).collect();
        json!({ "ref": package.reference(), "dependsOn": on })
    });
    let root = format!("pkg:cargo/{own}@{}", env!("CARGO_PKG_VERSION"));
    let hashes: Vec<Value> = program.iter().map(|sha256| json!({ "alg": "SHA-256", "content": sha256 })).collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": root, "name": own, "version": env!("CARGO_PKG_VERSION"), "purl": root,
                "hashes": hashes,
                "licenses": [{ "license": { "id": env!("CARGO_PKG_LICENSE") } }],
            },
            "properties": [{ "name": "pii-vault:scope", "value": SCOPE }],
        },
        "components": others.iter().map(|package| component(package)).collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    });
    let mut json = serde_json::to_vec_pretty(&document).expect("texts and numbers are JSON");
    json.push(b'\n');
    (json, others.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_names_what_the_lock_file_locks_and_every_edge_leads_somewhere() {
        let (json, count) = sbom(Some("00"));
        assert_eq!(sbom(Some("00")).0, json, "the same program says the same");
        let document: Value = serde_json::from_slice(&json).unwrap();
        let components = document["components"].as_array().unwrap();
        assert_eq!(components.len() as u64, count);
        assert_eq!(components.len() + 1, LOCK.matches("[[package]]").count());
        let tokio = components.iter().find(|one| one["name"] == "tokio").expect("tokio");
        assert_eq!(tokio["hashes"][0]["content"].as_str().unwrap().len(), 64);
        let mut known: BTreeSet<&str> = components.iter().map(|one| one["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(known.len(), components.len(), "each has a name of its own");
        known.insert(document["metadata"]["component"]["bom-ref"].as_str().unwrap());
        let mut edges = 0;
        for one in document["dependencies"].as_array().unwrap() {
            assert!(known.contains(one["ref"].as_str().unwrap()));
            for on in one["dependsOn"].as_array().unwrap() {
                assert!(known.contains(on.as_str().unwrap()), "{on}");
                edges += 1;
            }
        }
        assert_eq!(edges, LOCK.lines().filter(|line| line.starts_with(" \"")).count());
    }
}
