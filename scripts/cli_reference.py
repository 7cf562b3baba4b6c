"""Write docs/cli.md from the help texts of `mdrn-batch`.

python scripts/cli_reference.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mdrn_plugin.cli import cli

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"


def reference() -> str:
    """Return the page."""
    parts = ["# mdrn-batch\n\nMade by `python scripts/cli_reference.py` from the help texts; do not edit.\n"]
    for name in (None, *sorted(cli.commands)):
        command = cli if name is None else cli.commands[name]
        title = "mdrn-batch" if name is None else f"mdrn-batch {name}"
        # The width is fixed, or the page would depend on the terminal.
        context = click.Context(command, info_name=title, max_content_width=100, terminal_width=100)
        parts.append(f"## {title}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page, or with --check say whether it is as it should be."""
    if "--check" in sys.argv:
        return 0 if TARGET.read_text(encoding="utf-8") == reference() else 1
    TARGET.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
