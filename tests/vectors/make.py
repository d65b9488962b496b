"""Makes the frozen vectors from the written formats alone, with Python's hashlib and the `cryptography` package, so that
they check the Rust code rather than repeat it. A vector that was released is never changed: a new format gets a new file.

    pip install cryptography && python tests/vectors/make.py
"""

import hashlib
import hmac
import json
import pathlib
import struct

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = pathlib.Path(__file__).parent
VAULT = bytes(range(0x10, 0x20))
# The kind of a credential's ciphertext, and the first of the field numbers that the vault keeps for credentials.
CREDENTIAL, FIRST_OWN = 13, 65280


def key(n):
    return hashlib.sha256(b"vector key %d" % n).digest()


def part(b):
    return bytes([len(b)]) + b


def aad(kind, tenant, *parts):
    out = part(b"pv-1") + part(bytes([1, kind])) + part(VAULT) + part(struct.pack(">I", tenant))
    return out + b"".join(map(part, parts))


def seal(k, context, plain, n):
    nonce = hashlib.sha256(b"vector nonce %d" % n).digest()[:12]
    return nonce + AESGCM(k).encrypt(nonce, plain, context)


def hkdf(ikm, label, context=b"", size=32):
    prk = hmac.new(bytes(32), ikm, hashlib.sha256).digest()
    info, out, block = label + b"\0" + context, b"", b""
    for i in range(1, 255):
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out += block
        if len(out) >= size:
            return out[:size]


def mac(k, *parts):
    return hmac.new(k, b"".join(struct.pack(">I", len(p)) + p for p in parts), hashlib.sha256).digest()


def labels():
    """The text of each label, written down here on its own and not read from the code."""
    names = {
        "DekId": "id", "ValueSeal": "value", "ManifestMac": "manifest", "AuditDetail": "audit detail",
        "ExpiringSeal": "expiring value", "ExpiringMac": "expiring manifest", "IndexField": "index field",
        "SubjectDigest": "subject digest", "SubjectIdSeal": "subject id", "ObjectSeal": "object",
        "RequestFingerprint": "request fingerprint", "DataKey": "data key", "Detached": "detached",
        "ApiKeyChecksum": "access key checksum", "ApiKeyPepper": "access key pepper", "RootKekId": "root kek id",
        "PassphraseKek": "passphrase kek", "SigningSeal": "signing key", "AnchorMac": "anchor",
        "Commitment": "commitment", "PageToken": "page token", "RecipientRef": "recipient ref",
        "PasswordPepper": "password pepper", "GuessSource": "guess source",
        "UserKeyChecksum": "api key checksum", "UserKeyPepper": "api key pepper", "CodeDigest": "code digest",
    }
    return {name: b"pii-vault/1 " + text.encode() for name, text in names.items()}


L = labels()


def crypto():
    dek, expiry, secret, kek, root, node = (key(n) for n in range(1, 7))
    dek_id = hkdf(dek, L["DekId"], size=16)
    places = []
    for n, (uid, cls, field, item, bucket, revision, text) in enumerate([
        (1, 1, 1, 0, 0, 1, "Jane"),
        (2**40, 16, FIRST_OWN - 1, 0, 20000, 2**63, "जेन डो"),
        (7, 3, 9, 1795219200000 << 20 | 12345, 20777, 1, ""),
        (7, 3, 9, 0, 0, 5, "x" * 300),
        (7, 3, FIRST_OWN, 0, 0, 6, "verifier"),
        (7, 3, 65535, 3, 20777, 7, "verifier"),
    ]):
        kind = CREDENTIAL if field >= FIRST_OWN else 2 if item else 1
        context = aad(kind, 4242, struct.pack(">q", uid), bytes([cls]), struct.pack(">H", field),
                      struct.pack(">q", item), dek_id, struct.pack(">I", bucket), struct.pack(">Q", revision))
        if bucket:
            k = hkdf(dek + expiry, L["ExpiringSeal"])
        else:
            k = hkdf(dek, L["ValueSeal"])
        places.append({"uid": uid, "class": cls, "field": field, "item": item, "bucket": bucket,
                       "revision": str(revision), "aad": context.hex(), "plain": text.encode().hex(),
                       "sealed": seal(k, context, text.encode(), n).hex()})
    node_plain = b"".join(hashlib.sha256(b"child %d" % n).digest() for n in range(120))
    top = aad(3, 4242, struct.pack(">I", 0), struct.pack(">Q", 9))
    leaf = aad(3, 4242, struct.pack(">I", 1742520), struct.pack(">Q", 7))
    root_aad = aad(4, 4242, struct.pack(">Q", 9), hkdf(kek, L["RootKekId"], size=16))
    signer = Ed25519PrivateKey.from_private_bytes(key(7))
    public = signer.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    domains = {"Receipt": "receipt", "Checkpoint": "audit checkpoint", "Ledger": "ledger", "Anchor": "anchor",
               "Archive": "archive", "Report": "report", "KeyChain": "key chain", "Drill": "drill", "Evidence": "evidence"}
    index_key = hkdf(secret, L["IndexField"], struct.pack(">H", 12))
    return {
        "vault": VAULT.hex(), "tenant": 4242,
        "dek": dek.hex(), "dek_id": dek_id.hex(), "expiry": expiry.hex(), "values": places,
        "manifest": {"parts": ["", "00", "6162"],
                     "mac": mac(hkdf(dek, L["ManifestMac"]), b"", b"\0", b"ab")[:16].hex(),
                     "expiring": mac(hkdf(dek + expiry, L["ExpiringMac"]), b"", b"\0", b"ab")[:16].hex()},
        "kdf": [{"label": name, "ikm": key(20).hex(), "context": c.hex(), "okm": hkdf(key(20), L[name], c, 48).hex()}
                for name in L for c in (b"", b"\1\2")],
        "secret": secret.hex(),
        "digests": [{"id": i, "digest": mac(hkdf(secret, L["SubjectDigest"]), i.encode())[:16].hex()}
                    for i in ("usr_1", "a@b.example", "x" * 128)],
        "index": [{"field": 12, "term": t.hex(), "tag": mac(index_key, t)[:16].hex()}
                  for t in (b"jane@example.com", "जेन".encode(), b"")],
        "kek": kek.hex(), "kek_id": hkdf(kek, L["RootKekId"], size=16).hex(), "root": root.hex(),
        "root_generation": 9, "wrapped_root": seal(kek, root_aad, root, 30).hex(),
        "node_key": node.hex(), "node_plain_sha256": hashlib.sha256(node_plain).hexdigest(),
        "top": {"ordinal": 0, "generation": 9, "blob": (b"\1" + seal(root, top, node_plain, 31)).hex()},
        "leaf": {"ordinal": 1742520, "generation": 7, "blob": (b"\1" + seal(node, leaf, node_plain, 32)).hex()},
        "signing": {"seed": key(7).hex(), "public": public.hex(), "key_id": hashlib.sha256(public).hexdigest()[:16],
                    "message": "6d", "signatures": {
                        d: signer.sign(b"pii-vault " + t.encode() + b" v1\0" + b"m").hex() for d, t in domains.items()}},
    }


def finish(record, end):
    record = record.ljust(end, b"\0")
    return (record + hashlib.sha256(record).digest()).ljust(512, b"\0")


def start(tenant, kind, number):
    return b"pvkeeper" + VAULT + struct.pack(">I", tenant) + bytes([kind, 1, 0, 0]) + struct.pack(">Q", number)


def keeper():
    wrapped = bytes(range(60))
    root = finish(start(4242, 1, 9) + bytes(range(100, 116)) + wrapped, 116)
    own = finish(start(0, 4, 77) + struct.pack(">H", 5) + b"hello", 442)
    signer = Ed25519PrivateKey.from_private_bytes(key(7))
    public = signer.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    ledger = (b"pvledger" + VAULT).ljust(512, b"\0")
    prev, seq, heads = hashlib.sha256(b"pii-vault ledger genesis" + VAULT).digest(), 0, []
    for count in (1, 12):
        body = b"pvLB" + struct.pack(">IQI", 4 + 4 + 8 + 4 + 32 + 8 + 62 * count + 104, seq + 1, count) + prev
        body += hashlib.sha256(public).digest()[:8]
        for n in range(count):
            body += bytes([n % 12 + 1, n + 1]) + struct.pack(">IqIQq", 4242, n - 1, n + 2, n + 3, 1795219200000 + n)
            body += bytes(range(n, n + 16)) + struct.pack(">qI", n, n + 5)
        prev = hashlib.sha256(body).digest()
        foot = prev + signer.sign(b"pii-vault ledger v1\0" + VAULT + prev)
        ledger += body + foot + hashlib.sha256(foot).digest()[:8]
        seq += count
        heads.append({"seq": seq, "hash": prev.hex()})
    kek = key(4)
    anchor = struct.pack(">qQ", 1795219200000, 12) + bytes([3] * 32) + struct.pack(">Q", seq) + prev
    anchor += mac(hkdf(kek, L["AnchorMac"]), VAULT, anchor)[:16]
    kek_id = hkdf(kek, L["RootKekId"], size=16)
    sealed = kek_id + public + seal(hkdf(kek, L["SigningSeal"]), aad(8, 0, kek_id, public), key(7), 40)
    return {
        "vault": VAULT.hex(), "root": {"tenant": 4242, "generation": 9, "kek": bytes(range(100, 116)).hex(),
                                       "wrapped": wrapped.hex(), "record": root.hex()},
        "tombstone": {"tenant": 4242, "record": finish(start(4242, 2, 0), 116).hex()},
        "own": {"kind": "anchor", "sequence": 77, "bytes": b"hello".hex(), "record": own.hex()},
        "ledger": {"public": public.hex(), "file": ledger.hex(), "heads": heads},
        "kek": kek.hex(), "signing_seed": key(7).hex(), "sealed_signing": sealed.hex(),
        "anchor": {"at": 1795219200000, "audit_count": 12, "audit_head": bytes([3] * 32).hex(), "bytes": anchor.hex()},
    }


for name, value in (("crypto-v1.json", crypto()), ("keeper-v1.json", keeper())):
    path = HERE / name
    text = json.dumps(value, indent=1, ensure_ascii=True) + "\n"
    if path.exists() and path.read_text() != text:
        raise SystemExit(f"{name} is frozen and differs from what this makes: give the new format a new file")
    path.write_text(text)
    print(name, len(text))
