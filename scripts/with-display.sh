#!/bin/sh
# Runs a command, on Linux without a screen under a virtual one if xvfb is there.
if [ -z "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] && command -v xvfb-run >/dev/null 2>&1; then
    exec xvfb-run -a -s "-screen 0 1600x1200x24" "$@"
fi
exec "$@"
