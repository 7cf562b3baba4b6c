"""What is to be done is decided, and refused, before any work."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mdrn_plugin.batch.jobs import collect, folds_case, prepare_output
from mdrn_plugin.errors import BadOption, OutputUnusable

SUFFIXES = frozenset({".tif", ".png"})


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def _names(tmp_path: Path, *inputs: str, **options: object) -> dict[str, str]:
    out = tmp_path / "out"
    found = collect(inputs, out, suffixes=SUFFIXES, **options)  # type: ignore[arg-type]
    return {str(j.source.relative_to(tmp_path)): str(j.target.relative_to(out)) for j in found.jobs}


def test_collect_folder_takes_pictures_of_this_level_only(tmp_path: Path) -> None:
    _touch(
        tmp_path / "in/b.tif", tmp_path / "in/a.PNG", tmp_path / "in/notes.txt", tmp_path / "in/.hidden.tif"
    )
    _touch(tmp_path / "in/sub/c.tif")
    assert _names(tmp_path, str(tmp_path / "in")) == {"in/a.PNG": "a.PNG", "in/b.tif": "b.tif"}


def test_collect_recursive_mirrors_the_tree(tmp_path: Path) -> None:
    _touch(tmp_path / "in/a.tif", tmp_path / "in/sub/a.tif", tmp_path / "in/sub/deep/a.tif")
    found = _names(tmp_path, str(tmp_path / "in"), recursive=True)
    assert set(found.values()) == {"a.tif", "sub/a.tif", "sub/deep/a.tif"}


def test_collect_pattern_and_glob(tmp_path: Path) -> None:
    _touch(tmp_path / "in/a1.tif", tmp_path / "in/b1.tif", tmp_path / "in/a2.png")
    assert set(_names(tmp_path, str(tmp_path / "in"), pattern="a*")) == {"in/a1.tif", "in/a2.png"}
    assert set(_names(tmp_path, str(tmp_path / "in/*.tif"))) == {"in/a1.tif", "in/b1.tif"}


def test_collect_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    _touch(tmp_path / "picture.dat")
    assert _names(tmp_path, str(tmp_path / "picture.dat")) == {"picture.dat": "picture.dat"}


@pytest.mark.parametrize(
    ("name", "suffix", "format", "target"),
    [
        ("a.tif", "-clean", None, "a-clean.tif"),
        ("a.ome.tif", "-clean", None, "a-clean.ome.tif"),
        ("a.ome.tif", "", "png", "a.png"),
        ("a.TIFF", "", "tiff", "a.TIFF"),
        ("a.b.png", "_1", "jpeg", "a.b_1.jpg"),
        ("plain", "-x", None, "plain-x"),
    ],
)
def test_collect_suffix_and_format_name_the_output(
    tmp_path: Path, name: str, suffix: str, format: str | None, target: str
) -> None:
    _touch(tmp_path / name)
    assert _names(tmp_path, str(tmp_path / name), suffix=suffix, format=format) == {name: target}


def test_collect_name_that_gets_too_long_is_a_failure(tmp_path: Path) -> None:
    name = "n" * 251 + ".tif"
    _touch(tmp_path / name)
    found = collect([str(tmp_path / name)], tmp_path / "out", suffixes=SUFFIXES, suffix="-clean")
    assert not found.jobs
    assert "too long" in found.failures[0].reason


@pytest.mark.parametrize("suffix", ["a/b", "../x", "a\\b"])
def test_collect_suffix_that_leads_elsewhere_is_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(BadOption, match="slashes"):
        collect([str(tmp_path)], tmp_path / "out", suffixes=SUFFIXES, suffix=suffix)


def test_collect_missing_input_is_a_failure_that_names_it(tmp_path: Path) -> None:
    found = collect([str(tmp_path / "gone.tif")], tmp_path / "out", suffixes=SUFFIXES)
    assert not found.jobs
    assert "gone.tif" in found.failures[0].reason


def test_collect_output_inside_the_input_is_not_read_again(tmp_path: Path) -> None:
    out = tmp_path / "in/out"
    _touch(tmp_path / "in/a.tif", out / "a.tif")
    found = collect([str(tmp_path / "in")], out, suffixes=SUFFIXES, recursive=True)
    assert [j.source for j in found.jobs] == [tmp_path / "in/a.tif"]


def test_collect_same_file_twice_is_done_once(tmp_path: Path) -> None:
    _touch(tmp_path / "in/a.tif")
    assert len(_names(tmp_path, str(tmp_path / "in"), str(tmp_path / "in/a.tif"))) == 1


def test_collect_two_inputs_one_output_is_refused_naming_both(tmp_path: Path) -> None:
    _touch(tmp_path / "x/a.tif", tmp_path / "y/a.tif")
    with pytest.raises(BadOption, match=r"x/a\.tif.*y/a\.tif"):
        collect([str(tmp_path / "x"), str(tmp_path / "y")], tmp_path / "out", suffixes=SUFFIXES)


def test_collect_names_that_a_case_folding_disk_merges_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path / "in/A.TIF", tmp_path / "in/a.tif")
    monkeypatch.setattr("mdrn_plugin.batch.jobs.folds_case", lambda folder: True)
    with pytest.raises(BadOption, match="both would be written"):
        collect([str(tmp_path / "in")], tmp_path / "out", suffixes=SUFFIXES)


@pytest.mark.parametrize("out", ["in", "."])
def test_collect_output_equal_to_input_is_refused(
    tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path / "in/a.tif")
    monkeypatch.chdir(tmp_path / "in")
    folder = tmp_path / out if out == "in" else Path(".")
    with pytest.raises(BadOption, match=r"replace the input|output folder itself"):
        collect([str(tmp_path / "in/a.tif")], folder, suffixes=SUFFIXES)
    with pytest.raises(BadOption, match="output folder itself"):
        collect([str(tmp_path / "in")], folder, suffixes=SUFFIXES)


def test_collect_links_files_are_followed_folders_are_not(tmp_path: Path) -> None:
    _touch(tmp_path / "else/a.tif")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file.tif").symlink_to(tmp_path / "else/a.tif")
    (tmp_path / "in/folder").symlink_to(tmp_path / "else")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/dangling.tif").symlink_to(tmp_path / "nowhere.tif")
    found = _names(tmp_path, str(tmp_path / "in"), recursive=True)
    assert set(found) == {"in/file.tif", "in/dangling.tif"}


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_collect_odd_names(tmp_path: Path) -> None:
    names = [
        " a b.tif",
        "new\nline.tif",
        "-dash.tif",
        "😀.tif",
        "x" * 251 + ".tif",
        os.fsdecode(b"\xff\xfe.tif"),
    ]
    _touch(*(tmp_path / "in" / n for n in names))
    found = collect([str(tmp_path / "in")], tmp_path / "out", suffixes=SUFFIXES)
    assert {j.target.name for j in found.jobs} == set(names)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything: see below")
def test_collect_unreadable_folder_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    _touch(tmp_path / "in/a.tif", tmp_path / "in/closed/b.tif")
    (tmp_path / "in/closed").chmod(0)
    try:
        found = collect([str(tmp_path / "in")], tmp_path / "out", suffixes=SUFFIXES, recursive=True)
    finally:
        (tmp_path / "in/closed").chmod(0o700)
    assert len(found.jobs) == 1
    assert "closed" in found.failures[0].reason


def test_folds_case_leaves_nothing_behind(tmp_path: Path) -> None:
    folds_case(tmp_path / "not/there/yet")
    assert list(tmp_path.iterdir()) == []


def test_prepare_output_that_is_a_file_is_unusable(tmp_path: Path) -> None:
    _touch(tmp_path / "out")
    with pytest.raises(OutputUnusable, match="cannot be used as output folder"):
        prepare_output(tmp_path / "out")


def test_prepare_output_of_a_tree_with_a_file_in_the_way_is_unusable(tmp_path: Path) -> None:
    _touch(tmp_path / "in/sub/a.tif", tmp_path / "out/sub")
    found = collect([str(tmp_path / "in")], tmp_path / "out", suffixes=SUFFIXES, recursive=True)
    with pytest.raises(OutputUnusable, match="in the way"):
        prepare_output(tmp_path / "out", found.jobs)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to be somebody else")
def test_permissions_of_somebody_else() -> None:
    """As an unprivileged user: closed folders and files are reported, read-only outputs are refused."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        os.chmod(name, 0o755)
        _see_as_somebody_else(Path(name))


def _see_as_somebody_else(base: Path) -> None:
    _touch(base / "in/a.tif", base / "in/closed/b.tif", base / "in/secret.tif")
    (base / "in/closed").chmod(0)
    (base / "in/secret.tif").chmod(0)
    (base / "out").mkdir(mode=0o555)
    (base / "out/sub").mkdir(mode=0o555)
    code = f"""
import os, sys
from pathlib import Path
import numpy, mdrn_plugin.formats
from mdrn_plugin.batch.jobs import Job, collect, prepare_output
from mdrn_plugin.errors import CannotRead, OutputUnusable
from mdrn_plugin import formats
from mdrn_plugin.files import write_bytes
from mdrn_plugin.batch.ledger import Ledger
os.setgroups([]); os.setgid(65534); os.setuid(65534)
base = Path({str(base)!r})
found = collect([str(base / "in")], base / "out", suffixes=frozenset({{".tif"}}), recursive=True)
assert {{j.source.name for j in found.jobs}} == {{"a.tif", "secret.tif"}}, found
assert "closed: cannot be listed (Permission denied)" in found.failures[0].reason
for hidden in ("in/closed/b.tif", "in/closed/sub"):
    found = collect([str(base / hidden)], base / "out", suffixes=frozenset({{".tif"}}))
    assert "cannot be reached (Permission denied)" in found.failures[0].reason, found
for what, error in (
    (lambda: formats.read(base / "in/secret.tif"), CannotRead),
    (lambda: prepare_output(base / "out"), OutputUnusable),
    (lambda: prepare_output(base / "out/new"), OutputUnusable),
    (lambda: write_bytes(base / "out/a.tif", b"x"), OutputUnusable),
    (lambda: Ledger(base / "out"), OutputUnusable),
):
    try:
        what()
    except error as caught:
        assert ";" in str(caught), caught
    else:
        raise AssertionError(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((base / "out").iterdir()) == [base / "out/sub"]
