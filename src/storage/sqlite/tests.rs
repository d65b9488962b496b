//! What only a SQLite store promises; the rest is in `conformance`.

use super::*;
use crate::storage::conformance::{self, VAULT};

fn options(folder: &tempfile::TempDir) -> Options {
    Options::new(folder.path().join("vault.db"), VAULT).create()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn does_what_every_store_does() {
    let folder = tempfile::tempdir().unwrap();
    let made = AtomicUsize::new(0);
    conformance::all(|| {
        let path = folder.path().join(format!("{}.db", made.fetch_add(1, Ordering::SeqCst)));
        Arc::new(SqliteStore::open(Options::new(path, VAULT).create()).unwrap())
    })
    .await;
}

#[test]
fn every_connection_has_its_pragmas() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    drop(SqliteStore::open(options.clone()).unwrap());
    for reader in [false, true] {
        let conn = connect(&options, reader).unwrap();
        let text = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, String>(0)).unwrap();
        let number = |name: &str| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(text("journal_mode"), "wal");
        for (name, value) in [
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("secure_delete", 1),
            ("temp_store", 2),
            ("page_size", 4096),
            ("trusted_schema", 0),
            ("cell_size_check", 1),
            ("cache_size", -8192),
            ("wal_autocheckpoint", 0),
            ("journal_size_limit", 2 * 16_384 * 4096),
            ("query_only", i64::from(reader)),
            ("application_id", i64::from(schema::APPLICATION_ID)),
            ("user_version", i64::from(schema::VERSION)),
            ("auto_vacuum", 0),
        ] {
            assert_eq!(number(name), value, "{name}");
        }
        // Off at its lowest: an unmapped file answers no row or 0.
        let mapped = conn.pragma_query_value(None, "mmap_size", |row| row.get::<_, i64>(0)).unwrap_or(0);
        assert_eq!(mapped, 0);
        assert_eq!(conn.prepare("DELETE FROM meta").unwrap().execute([]).is_err(), reader);
    }
}
