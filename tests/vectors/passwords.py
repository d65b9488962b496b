#!/usr/bin/env python3
"""Freezes hashes that other implementations made: tests/vectors/passwords-v1.json.

    pip install argon2-cffi bcrypt Django Werkzeug passlib
    python3 tests/vectors/passwords.py > tests/vectors/passwords-v1.json

Nothing of pii-vault takes part. Salts are fixed, so that the file is the same on every run; hashlib, argon2-cffi (the
reference C code) and bcrypt (the OpenBSD code in Rust) make the hashes, Django and Werkzeug write their own layouts.
"""
import base64
import hashlib
import json
import struct

import argon2.low_level as argon2
import bcrypt
from django.conf import settings

settings.configure(PASSWORD_HASHERS=["django.contrib.auth.hashers.PBKDF2PasswordHasher"])
from django.contrib.auth import hashers  # noqa: E402
from passlib.hash import pbkdf2_sha256, pbkdf2_sha512, scrypt as passlib_scrypt  # noqa: E402

PASSWORDS = ["correct horse battery staple", "p\u00e4ssw\u00f6rd \u2603", "x", "a" * 71, "b" * 72, "c" * 100]
SALT = bytes(range(16))
TEXT_SALT = "seasalt0123456"


def b64(data):
    return base64.b64encode(data).decode()


def vector(form, algorithm, password, text):
    return {"form": form, "algorithm": algorithm, "password": password, "hash": text}


def aspnet(prf, name, rounds, password):
    key = hashlib.pbkdf2_hmac(name, password, SALT, rounds, 32)
    return b64(struct.pack(">BIII", 1, prf, rounds, len(SALT)) + SALT + key)


def main():
    out = []
    for n, password in enumerate(PASSWORDS):
        raw = password.encode()
        for prefix in ("2a", "2b", "2y"):
            # bcrypt reads 72 bytes and no more; newer versions of the package refuse longer ones instead.
            text = bcrypt.hashpw(raw[:72], b"$2b$04$abcdefghijklmnopqrstuu")
            out.append(vector("bcrypt " + prefix, "bcrypt", password, "$" + prefix + text.decode()[3:]))
        if n > 2:
            continue
        hexed = hashlib.sha256(raw).hexdigest().encode()
        text = bcrypt.hashpw(hexed, b"$2b$04$abcdefghijklmnopqrstuu").decode()
        out.append(vector("django bcrypt_sha256", "bcrypt", password, "bcrypt_sha256$" + text))
        out.append(vector("django bcrypt", "bcrypt", password,
                          "bcrypt$" + bcrypt.hashpw(raw, b"$2b$04$abcdefghijklmnopqrstuu").decode()))
        out.append(vector("django pbkdf2", "pbkdf2-sha256", password,
                          hashers.PBKDF2PasswordHasher().encode(password, TEXT_SALT, 1000)))
        for name in ("sha256", "sha512"):
            key = hashlib.pbkdf2_hmac(name, raw, TEXT_SALT.encode(), 1000)
            out.append(vector("werkzeug pbkdf2 " + name, "pbkdf2-" + name, password,
                              "pbkdf2:%s:1000$%s$%s" % (name, TEXT_SALT, key.hex())))
        out.append(vector("aspnet identity v3 sha256", "pbkdf2-sha256", password, aspnet(1, "sha256", 1000, raw)))
        out.append(vector("aspnet identity v3 sha512", "pbkdf2-sha512", password, aspnet(2, "sha512", 1000, raw)))
        out.append(vector("passlib pbkdf2 sha256", "pbkdf2-sha256", password,
                          pbkdf2_sha256.using(salt=SALT, rounds=1000).hash(password)))
        out.append(vector("passlib pbkdf2 sha512", "pbkdf2-sha512", password,
                          pbkdf2_sha512.using(salt=SALT, rounds=1000).hash(password)))
        key = hashlib.scrypt(raw, salt=TEXT_SALT.encode(), n=1024, r=8, p=1, dklen=64)
        out.append(vector("werkzeug scrypt", "scrypt", password, "scrypt:1024:8:1$%s$%s" % (TEXT_SALT, key.hex())))
        out.append(vector("django scrypt", "scrypt", password,
                          hashers.ScryptPasswordHasher().encode(password, TEXT_SALT, n=1024, r=8, p=1)))
        out.append(vector("passlib scrypt", "scrypt", password,
                          passlib_scrypt.using(salt=SALT, rounds=10, block_size=8, parallelism=1).hash(password)))
        for kind, name in ((argon2.Type.I, "argon2i"), (argon2.Type.D, "argon2d"), (argon2.Type.ID, "argon2id")):
            for version in (0x10, 0x13):
                text = argon2.hash_secret(raw, SALT, 3, 256, 2, 32, kind, version).decode()
                out.append(vector("%s version %d" % (name, version), name, password, text))
        text = argon2.hash_secret(raw, SALT, 2, 256, 1, 32, argon2.Type.ID, 0x13).decode()
        out.append(vector("django argon2", "argon2id", password, "argon2" + text))
        out.append(vector("django md5", "argon2id(md5)", password, hashers.MD5PasswordHasher().encode(password, TEXT_SALT)))
        sha = hashlib.sha256(TEXT_SALT.encode() + raw).hexdigest()
        out.append(vector("sha256, salt first", "argon2id(sha256)", password, "sha256$%s$%s" % (TEXT_SALT, sha)))
        for scheme, name in (("SSHA256", "sha256"), ("SMD5", "md5")):
            digest = hashlib.new(name, raw + SALT).digest()
            out.append(vector("{%s}" % scheme, "argon2id(%s)" % name, password, "{%s}%s" % (scheme, b64(digest + SALT))))
        for scheme, name in (("SHA256", "sha256"), ("MD5", "md5")):
            out.append(vector("{%s}" % scheme, "argon2id(%s)" % name, password,
                              "{%s}%s" % (scheme, b64(hashlib.new(name, raw).digest()))))
    print(json.dumps(out, indent=1))


main()
