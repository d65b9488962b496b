#!/usr/bin/env bash
# The root key provider `aws-kms` against moto (a stand-in for AWS from PyPI) and one of our own. Wants python3 with venv, and a
# network for PyPI and the crates of the feature. Not in CI: it compiles 35 more packages. `--debug` builds without optimisation.
set -euo pipefail
cd "$(dirname "$0")/.."

profile='--profile ci'
[ "${1:-}" = --debug ] && profile=
place=$(mktemp -d)
trap 'kill "${moto:-}" 2>/dev/null || true; rm -rf "$place"' EXIT
python3 -m venv "$place/python"
"$place/python/bin/pip" install --quiet 'moto[server]>=5,<6'
port=$("$place/python/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$place/python/bin/moto_server" --host 127.0.0.1 --port "$port" >"$place/moto.log" 2>&1 &
moto=$!

# Moto takes any; the stand-in wants requests to be signed.
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_EC2_METADATA_DISABLED=true
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
export PII_VAULT_KMS="http://127.0.0.1:$port"
"$place/python/bin/python" - <<'PYTHON'
import os, time, boto3
kms = boto3.client("kms", endpoint_url=os.environ["PII_VAULT_KMS"], region_name="eu-central-1")
for attempt in range(100):
    try:
        key = kms.create_key(Description="root keys of pii-vault")["KeyMetadata"]["KeyId"]
        break
    except Exception:
        if attempt == 99:
            raise
        time.sleep(0.2)
kms.create_alias(AliasName="alias/pii-vault", TargetKeyId=key)
PYTHON

cargo test $profile --locked --features aws-kms --test it aws_kms
