//! Sealing and opening one value, beside the bare cipher: `cargo bench --bench envelope`.

use std::hint::black_box;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pii_vault::clock::Timestamp;
use pii_vault::crypto::aad::{Aad, Place};
use pii_vault::crypto::aead::Cipher;
use pii_vault::crypto::blind_index::mac;
use pii_vault::ids::*;

fn place() -> Place {
    Place {
        vault: VaultId([1; 16]),
        tenant: TenantNo(1),
        uid: SubjectUid(Timestamp(1_768_478_400_000).0),
        class: ClassNo(1),
        field: FieldNo(2),
        item: 0,
        dek: DekId([2; 16]),
        bucket: Bucket::NONE,
        revision: Revision(1),
    }
}

fn envelope(c: &mut Criterion) {
    let key = [7; 32];
    let (ours, bare) = (Cipher::new(&key), Aes256Gcm::new(&key.into()));
    let mut group = c.benchmark_group("envelope");
    for size in [16, 64, 256, 4096] {
        let plain = vec![b'x'; size];
        group.bench_with_input(BenchmarkId::new("seal", size), &plain, |b, plain| {
            let mut out = Vec::with_capacity(size + 64);
            b.iter(|| {
                out.clear();
                ours.seal_into(&Aad::value(&place()), black_box(plain), &mut out);
            })
        });
        let sealed = ours.seal(&Aad::value(&place()), &plain);
        group.bench_with_input(BenchmarkId::new("open", size), &sealed, |b, sealed| {
            b.iter(|| ours.open(&Aad::value(&place()), black_box(sealed)).expect("it was sealed here"))
        });
        group.bench_with_input(BenchmarkId::new("bare seal", size), &plain, |b, plain| {
            let mut out = plain.clone();
            let nonce = Nonce::from([3; 12]);
            let aad = Aad::value(&place());
            b.iter(|| bare.encrypt_inout_detached(&nonce, aad.as_bytes(), black_box(&mut out[..]).into()))
        });
    }
    group.finish();
    c.bench_function("blind index of 30 bytes", |b| {
        b.iter(|| mac(black_box(&key), &[b"a.name.of.thirty.b@example.com"]))
    });
}

criterion_group!(benches, envelope);
criterion_main!(benches);
