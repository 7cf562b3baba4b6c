#!/bin/sh
# The tests from a bare machine: gets make and a C compiler (for the kernel) if it may (root, or sudo without a
# password), the rest is `make test`.
set -eu
cd "$(dirname "$0")/.."
missing=""
command -v make >/dev/null 2>&1 || missing="make"
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then as_root=""; else as_root="sudo -n"; fi
    $as_root apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
exec make test "$@"
