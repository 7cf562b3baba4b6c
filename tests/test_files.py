"""Atomic writes: the old file or the new one, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mdrn_plugin import files
from mdrn_plugin.errors import OutputExists, OutputUnusable
from mdrn_plugin.files import remove_stale_parts, write_atomic, write_bytes


def test_block_that_ends_well_leaves_the_file_only(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_block_that_fails_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(error), write_atomic(tmp_path / "a") as file:
        file.write(b"half")
        raise error
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"old"}


def test_check_sees_the_whole_file_and_can_refuse(tmp_path: Path) -> None:
    seen = []

    def refuse(part: Path) -> None:
        seen.append(part.read_bytes())
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), write_atomic(tmp_path / "a", check=refuse) as file:
        file.write(b"all of it")
    assert seen == [b"all of it"]
    assert os.listdir(tmp_path) == []


def test_no_overwrite_leaves_an_existing_or_appearing_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OutputExists), write_atomic(tmp_path / "a", overwrite=False):
        pass
    with pytest.raises(OutputExists, match="appeared"), write_atomic(tmp_path / "b", overwrite=False) as file:
        file.write(b"ours")
        (tmp_path / "b").write_bytes(b"theirs")
    assert (tmp_path / "b").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_link_is_replaced_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "far").write_bytes(b"precious")
    (tmp_path / "a").symlink_to(tmp_path / "far")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "far").read_bytes() == b"precious"
    assert not (tmp_path / "a").is_symlink()
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists):
        write_bytes(tmp_path / "b", b"new", overwrite=False)


@pytest.mark.parametrize("name", ["a b\n", "ü🙂", "-rf", os.fsdecode(b"\xff\xfe"), "n" * 255])
def test_names_of_all_kinds(tmp_path: Path, name: str) -> None:
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system refuses the name")
    write_bytes(tmp_path / name, b"x")
    assert (tmp_path / name).read_bytes() == b"x"


@pytest.mark.parametrize("missing", ["none/a", "file/a"])
def test_missing_folder_is_unusable(tmp_path: Path, missing: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputUnusable, match="cannot be written"):
        write_bytes(tmp_path / missing, b"x")


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs resource limits")
def test_file_size_limit_fails_cleanly(tmp_path: Path) -> None:
    code = """
        import resource, signal, sys
        from mdrn_plugin.errors import OutputUnusable
        from mdrn_plugin.files import write_bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
        try:
            write_bytes(sys.argv[1], bytes(100000))
        except OutputUnusable as error:
            print("clean", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("clean")
    assert os.listdir(tmp_path) == []


def test_part_of_a_killed_run_is_removed_and_only_that(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from mdrn_plugin.files import write_atomic
        with write_atomic(sys.argv[1]) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")], check=False)
    left = os.listdir(tmp_path)
    assert len(left) == 1 and left[0] != "a"
    (tmp_path / ".mdrn-notes").touch()
    (tmp_path / "x.mdrn-part").touch()
    with write_atomic(tmp_path / "b") as file:
        file.write(b"in progress")
        assert [p.name for p in remove_stale_parts(tmp_path)] == left
    assert sorted(os.listdir(tmp_path)) == [".mdrn-notes", "b", "x.mdrn-part"]
    assert remove_stale_parts(tmp_path / "none") == []


def test_file_system_without_hard_links_still_refuses_to_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(files.os, "link", no_links)
    write_bytes(tmp_path / "a", b"x", overwrite=False)
    with pytest.raises(OutputExists), write_atomic(tmp_path / "b", overwrite=False):
        (tmp_path / "b").touch()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
