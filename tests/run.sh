#!/usr/bin/env bash
# The test command: installs what the tests need, runs everything, ends with a line of counts.
#
#   bash tests/run.sh            all tests at the counts that CI uses
#   PII_VAULT_TEST_FULL=1 bash tests/run.sh   the full counts of the long tests
#
# Honours CARGO_TARGET_DIR. A missing tool or server is an error, never a skipped test.
set -euo pipefail
cd "$(dirname "$0")/.."

need() { # need COMMAND PACKAGE: a Debian package that brings the command
  command -v "$1" >/dev/null 2>&1 && return
  echo "installing $2" >&2
  if [ "$(id -u)" = 0 ]; then as_root=""; else as_root="sudo"; fi
  $as_root apt-get -qq update
  $as_root apt-get -qq install -y --no-install-recommends "$2" >/dev/null
  command -v "$1" >/dev/null
}
need cc gcc
need python3 python3
need strace strace
need softhsm2-util softhsm2
need systemd-analyze systemd
need promtool prometheus

# The examples in Python use grpcio, the test of the systemd unit libseccomp; they live in an environment beside the build.
target="${CARGO_TARGET_DIR:-target}"
mkdir -p "$target"
export PII_VAULT_TEST_PYTHON="$(cd "$target" && pwd)/python/bin/python"
if ! "$PII_VAULT_TEST_PYTHON" -c 'import grpc, grpc_tools, pyseccomp' 2>/dev/null; then
  python3 -m venv "$target/python"
  "$target/python/bin/pip" -q install --disable-pip-version-check 'grpcio==1.85.1' 'grpcio-tools==1.85.1' 'pyseccomp==0.1.2'
fi

# The same cases of property tests each time where every commit is tested, new ones with the full counts.
[ -n "${PII_VAULT_TEST_FULL+x}" ] || export PROPTEST_RNG_SEED=7

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
status=0
cargo test --profile ci --locked --no-fail-fast -- --test-threads 4 2>&1 | tee "$log" || status=$?
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$log"
exit "$status"
