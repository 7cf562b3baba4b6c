"""The hash-pinned list of a deployment agrees with what is declared and tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


@pytest.fixture(scope="module")
def locked(root: Path) -> dict[str, tuple[str, list[str]]]:
    """Name: version and hashes."""
    text = (root / "requirements.lock").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.strip().startswith("#"):
            pin = re.match(
                r"([\w.-]+)==([\w.+!]+)( ;[^#]*?)?((\s+--hash=sha256:[0-9a-f]{64})+)$", line.strip()
            )
            assert pin, f"not pinned with hashes: {line}"
            found[_name(pin[1])] = (pin[2], re.findall("sha256:([0-9a-f]{64})", pin[4]))
    return found


def test_lock_has_every_dependency_and_its_hashes(
    root: Path, locked: dict[str, tuple[str, list[str]]]
) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for dependency in project["dependencies"]:
        name = _name(re.match(r"[\w.-]+", dependency)[0])  # type: ignore[index]
        assert name in locked
        assert locked[name][1]


def test_lock_has_the_versions_that_were_tested(root: Path, locked: dict[str, tuple[str, list[str]]]) -> None:
    tested = {
        _name(line.partition("==")[0]): line.partition("==")[2].partition("+")[0]
        for line in (root / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    both = locked.keys() & tested.keys()
    assert len(both) >= 10
    assert {name: locked[name][0] for name in both} == {name: tested[name] for name in both}


def test_lock_names_no_index(root: Path) -> None:
    assert "index-url" not in (root / "requirements.lock").read_text()
    assert "://" not in (root / "requirements.lock").read_text()
