"""The docs say what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from mdrn_plugin import cli


def test_cli_page_is_up_to_date(root: Path) -> None:
    done = subprocess.run([sys.executable, str(root / "scripts/cli_reference.py"), "--check"])
    assert done.returncode == 0, "run python scripts/cli_reference.py"


def test_every_command_is_in_the_readme(root: Path) -> None:
    readme = (root / "README.md").read_text()
    for name in cli.cli.commands:
        assert re.search(rf"\b{name}\b", readme), name


def test_links_lead_somewhere(root: Path) -> None:
    pages = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_exit_codes_of_the_docs_are_those_of_the_code(root: Path) -> None:
    from mdrn_plugin import errors

    rows = re.findall(r"^\| ([\d, ]+) \|", (root / "docs/json.md").read_text(), re.MULTILINE)
    listed = {int(number) for row in rows for number in row.split(",")}
    assert listed == {getattr(errors, name) for name in dir(errors) if name.startswith("EXIT_")}
