#!/bin/sh
# The tests from a bare machine: gets make if it may (root, or sudo without a password), the rest is `make test`.
set -eu
cd "$(dirname "$0")/.."
if ! command -v make >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then as_root=""; else as_root="sudo -n"; fi
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends make >/dev/null
fi
exec make test "$@"
