#!/bin/sh
# Debian and Ubuntu only: what `make test` needs beside Python - venv, a virtual display, the libraries that Qt loads.
# Installs what is missing if it may (root, or sudo without a password), else says what to install. Never fails: without
# a display the viewer tests are skipped and say so.
set -u
command -v dpkg-query >/dev/null 2>&1 || exit 0

missing=""
python3 -c 'import ensurepip' 2>/dev/null || missing="python3-venv"
for package in xvfb xauth libgl1 libegl1 libopengl0 libglib2.0-0 libfontconfig1 libdbus-1-3 libxkbcommon-x11-0 \
    libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 \
    libxcb-xinerama0 libxcb-xkb1; do
    # Ubuntu 24.04 and Debian 13 renamed libglib2.0-0 to libglib2.0-0t64.
    case "$(dpkg-query -W -f '${Status} ' "$package" "${package}t64" 2>/dev/null)" in
        *"ok installed"*) ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then as_root=""
elif sudo -n true 2>/dev/null; then as_root="sudo -n"
else
    echo "system packages missing; for the viewer tests run: sudo apt-get install$missing" >&2
    exit 0
fi
echo "installing system packages:$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086  # a list of names
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
    echo "could not install:$missing (the viewer tests may be skipped)" >&2
exit 0
