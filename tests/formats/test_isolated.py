"""A decoder that crashes, hangs or devours memory costs one file, never the run."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from format_samples import SAMPLES, write_sample

from mdrn_plugin import formats
from mdrn_plugin.errors import CannotRead, NotSupported
from mdrn_plugin.formats import isolated
from mdrn_plugin.formats.isolated import Decoder

# Put in front of what the helper runs: reading does harm, by the name of the file.
HARM = """
import ctypes, mmap, os, signal, time
from mdrn_plugin import formats
sound = formats.read
def read(path, **settings):
    name = os.path.basename(path)
    if name.startswith("crash"):
        ctypes.string_at(0)
    if name.startswith("exit"):
        os._exit(7)
    if name.startswith("hang"):
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock
    if name.startswith("talk"):
        os.write(1, b"libfoo: warning" * 100)
    if name.startswith("memory"):
        try:  # address space only, which no system refuses by itself
            mmap.mmap(-1, 3 * 2**30)
        except OSError:
            raise MemoryError from None
    return sound(path, **settings)
formats.read = read
from mdrn_plugin.formats import isolated
isolated.serve()
"""
needs_posix = pytest.mark.skipif(os.name == "nt", reason="limits and signals of POSIX")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture
def harmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    monkeypatch.setattr(isolated, "_SERVE", f"exec({HARM!r})")
    decoder = Decoder(seconds=1.5, memory=2 * 2**30)
    yield decoder
    decoder.close()


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_isolated_reading_equals_reading(tmp_path: Path, decoder: Decoder, name: str) -> None:
    path = write_sample(tmp_path, name)
    here, there = formats.read(path), decoder.read(path)
    np.testing.assert_array_equal(here.pixels, there.pixels)
    assert there.pixels.dtype == here.pixels.dtype
    assert there.pixels.flags.writeable
    assert (there.axes, there.range, there.alpha) == (here.axes, here.range, here.alpha)
    assert there.metadata == here.metadata


def test_isolated_errors_are_those_of_reading(tmp_path: Path, decoder: Decoder) -> None:
    (tmp_path / "x.png").write_text("<html></html>")
    with pytest.raises(CannotRead, match=r"x\.png: expected a picture, got a web page"):
        decoder.read(tmp_path / "x.png")
    with pytest.raises(CannotRead, match="cannot be opened"):
        decoder.read(tmp_path / "none.png")
    limited = Decoder(max_pixels=10)
    with pytest.raises(NotSupported, match="max-pixels"):
        limited.read(write_sample(tmp_path, "gray.png"))
    limited.close()
    assert decoder.lost == 0


@needs_posix
@pytest.mark.parametrize(
    ("name", "reason"),
    [("crash", "crashed .signal 11"), ("exit", "ended with code 7"), ("hang", "did not end within 2 s")],
)
def test_isolated_harm_is_one_failed_file(tmp_path: Path, harmed: Decoder, name: str, reason: str) -> None:
    good = write_sample(tmp_path, "gray.png")
    bad = good.with_name(f"{name}.png")
    bad.write_bytes(good.read_bytes())
    assert harmed.read(good).shape == (37, 53)
    began = time.monotonic()
    with pytest.raises(CannotRead, match=reason) as caught:
        harmed.read(bad)
    assert time.monotonic() - began < 10
    assert bad.name in str(caught.value)
    assert "; get an intact copy" in str(caught.value)
    assert harmed.read(good).shape == (37, 53)
    assert harmed.lost == 1


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space on Linux only")
def test_isolated_memory_is_limited(tmp_path: Path, harmed: Decoder) -> None:
    good = write_sample(tmp_path, "gray.png")
    bad = good.with_name("memory.png")
    bad.write_bytes(good.read_bytes())
    with pytest.raises(CannotRead, match="memory"):
        harmed.read(bad)
    assert harmed.read(good).shape == (37, 53)


@needs_posix
def test_isolated_chatter_of_a_library_does_not_get_between(tmp_path: Path, harmed: Decoder) -> None:
    path = write_sample(tmp_path, "gray.png").rename(tmp_path / "talk.png")
    assert harmed.read(path).shape == (37, 53)


@needs_posix
def test_isolated_interrupt_of_the_terminal_does_not_end_the_helper(tmp_path: Path, decoder: Decoder) -> None:
    path = write_sample(tmp_path, "gray.png")
    decoder.read(path)
    assert decoder._process is not None
    helper = decoder._process.pid
    os.kill(helper, signal.SIGINT)
    os.kill(helper, signal.SIGTERM)
    decoder.read(path)
    assert decoder._process.pid == helper


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux only")
@pytest.mark.parametrize("name", ["idle", "hang"])
def test_isolated_helper_ends_when_its_parent_is_killed(tmp_path: Path, name: str) -> None:
    write_sample(tmp_path, "gray.png").rename(tmp_path / f"{name}.png")
    code = (
        "import sys, threading, time; from mdrn_plugin.formats import isolated; "
        f"isolated._SERVE = 'exec(' + repr({HARM!r}) + ')'; d = isolated.Decoder(seconds=60); d.start(); "
        f"threading.Thread(target=d.read, args=({str(tmp_path / name) + '.png'!r},)).start(); "
        "time.sleep(1); print(d._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    helper = int(parent.stdout.readline())
    assert Path(f"/proc/{helper}").exists()
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 10
    while _is_alive(helper):
        assert time.monotonic() < end, "the helper outlives its parent"
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/owned",)


def test_isolated_answer_may_name_our_records_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    ran: list[str] = []
    monkeypatch.setattr(os, "system", ran.append)
    for evil in (pickle.dumps(_Evil()), pickle.dumps(subprocess.Popen), pickle.dumps(formats.read)):
        with pytest.raises((CannotRead, pickle.UnpicklingError)):
            isolated._Reader(io.BytesIO(evil)).load()
    assert ran == []
