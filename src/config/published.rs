//! What evidence tells of the configuration. It says where secrets are and holds none; nothing that could be one by mistake
//! is told either. A tenant's bundle has the settings that its promises stand on and nothing of the machine.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use toml::Value;

use super::Config;
use crate::vault::evidence::Configuration;

/// Sections and keys that tenants' bundles have too: no paths, no addresses, no names of the machine.
const TOLD: &[&str] = &[
    "profile",
    "region",
    "storage_host",
    "root_kek.provider",
    "tls.minimum_version",
    "tls.require_client_certificate",
    "argon2.",
    "passwords.",
    "audit.",
    "jobs.",
    "rotation.",
    "backup.nightly",
    "backup.hour",
    "backup.horizon_days",
    "keeper.replicas",
    "development.",
];

/// Endings of keys that should hold a place; where one holds something else, it is not told.
const SECRETS: &[&str] = &["pin", "secret", "token", "passphrase", "password", "access_key"];

impl Config {
    /// Every setting by its name with dots.
    pub fn published(&self) -> Configuration {
        let mut whole = BTreeMap::new();
        if let Ok(value) = Value::try_from(self) {
            flatten("", &value, &mut whole);
        }
        whole.insert("keeper.replicas".into(), json!(self.keeper.paths.len()));
        if self.tls.is_none() {
            whole.insert("tls.minimum_version".into(), json!("plain text"));
        }
        let told =
            |key: &String| TOLD.iter().any(|known| key == known || known.ends_with('.') && key.starts_with(known));
        let own = whole.iter().filter(|(key, _)| told(key));
        Configuration { told: own.map(|(key, value)| (key.clone(), value.clone())).collect(), whole }
    }
}

fn flatten(key: &str, value: &Value, out: &mut BTreeMap<String, Json>) {
    let last = key.rsplit('.').next().unwrap_or_default();
    let hidden = SECRETS.iter().any(|end| last == *end || last.ends_with(&format!("_{end}")));
    let told = match value {
        Value::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, value, out);
            }
            return;
        }
        Value::String(_) if hidden => json!("(not told)"),
        // `https://user:password@host` is no place for a password, and somebody will try.
        Value::String(text) if text.contains("://") && text.contains('@') => json!("(not told)"),
        Value::String(text) => json!(text),
        Value::Integer(number) => json!(number),
        Value::Boolean(flag) => json!(flag),
        Value::Array(list) => {
            json!(
                list.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect::<Vec<_>>()
            )
        }
        other => json!(other.to_string()),
    };
    out.insert(key.to_owned(), told);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_tenant_is_told_nothing_of_the_machine_and_nobody_a_secret() {
        let text = "region = \"eu\"\ndata_dir = \"/srv/data\"\n[keeper]\npaths = [\"/k1\", \"/k2\"]\n[root_kek]\n\
                    provider = \"transit\"\naddress = \"https://me:hunter2@bao:8200\"\nkey = \"k\"\ntoken_file = \"/run/t\"\n";
        let told = Config::parse(Path::new("t"), text).unwrap().published();
        assert_eq!(told.whole["data_dir"], "/srv/data");
        assert_eq!(told.whole["root_kek.token_file"], "/run/t", "where it is, not what it is");
        assert_eq!(told.whole["root_kek.address"], "(not told)");
        assert_eq!((&told.told["root_kek.provider"], &told.told["keeper.replicas"]), (&json!("transit"), &json!(2)));
        assert_eq!((&told.told["region"], &told.told["tls.minimum_version"]), (&json!("eu"), &json!("plain text")));
        for (key, value) in &told.told {
            let value = value.to_string();
            assert!(!value.contains('/') && !value.contains("hunter2"), "{key}: {value}");
        }
        assert!(told.told.contains_key("rotation.data_days") && !told.told.contains_key("listen.address"));
    }
}
