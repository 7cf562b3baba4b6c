"""Large TIFF files that stay in their file: what comes out is what comes out of them read whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tiny_zoo import make_models

from mdrn_plugin import cli, formats, picture
from mdrn_plugin.engine import run as engine_run
from mdrn_plugin.formats import segments, streamed
from mdrn_plugin.noise import blocks

COMMAND = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()"]
PLAIN = ("--model", "tiny", "--threads", "1")
WISH = (*PLAIN, "--tile", "96")
WHOLE, STREAMED = str(10**15), "0"  # MDRN_STREAM_BYTES

Save = Callable[[Path], Any]


def _noisy(*shape: int, dtype: str = "uint16", colours: bool = False) -> Any:
    rng = np.random.default_rng(3)
    across = 20000 + 8000 * np.sin(np.arange(shape[-2 if colours else -1]) / 20)
    values = (across[:, None] if colours else across) + rng.normal(0, 3000, shape)
    return (values / {"uint8": 256, "uint16": 1, "float32": 65535}[dtype]).astype(dtype)


def _pyramid(path: Path) -> None:
    pixels = _noisy(250, 330)
    tiled: dict[str, Any] = {"tile": (64, 64), "compression": "zlib"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        file.write(pixels, subifds=2, metadata={"axes": "YX"}, **tiled)
        file.write(pixels[::2, ::2], subfiletype=1, **tiled)
        file.write(pixels[::4, ::4], subfiletype=1, **tiled)


KINDS: dict[str, Save] = {
    "plain.tif": lambda p: tifffile.imwrite(p, _noisy(250, 330), resolution=(300, 300)),
    "big-endian BigTIFF.tif": lambda p: tifffile.imwrite(p, _noisy(250, 330), bigtiff=True, byteorder=">"),
    "deflated strips.tif": lambda p: tifffile.imwrite(
        p, _noisy(250, 330), compression="zlib", predictor=True, rowsperstrip=11
    ),
    "tiles.tif": lambda p: tifffile.imwrite(p, _noisy(250, 330), tile=(64, 48), compression="lzw"),
    "floats.tif": lambda p: tifffile.imwrite(
        p, _noisy(250, 330, dtype="float32"), compression="zstd", predictor=True, rowsperstrip=16
    ),
    "RGB sample by sample.tif": lambda p: tifffile.imwrite(
        p, _noisy(150, 130, 3, dtype="uint8", colours=True), photometric="rgb", description="hello"
    ),
    "opacity.tif": lambda p: tifffile.imwrite(
        p,
        _noisy(150, 130, 4, dtype="uint8", colours=True),
        photometric="rgb",
        extrasamples=["unassalpha"],
        compression="zlib",
        rowsperstrip=20,
    ),
    "ImageJ stack.tif": lambda p: tifffile.imwrite(
        p, _noisy(4, 120, 140), imagej=True, metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"}
    ),
    "stack.ome.tif": lambda p: tifffile.imwrite(
        p,
        _noisy(3, 2, 120, 140),
        ome=True,
        metadata={"axes": "TCYX", "PhysicalSizeX": 0.5},
        compression="zlib",
        tile=(64, 64),
    ),
    "pyramid.ome.tif": _pyramid,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("zoo") / "models")


class _Run:
    """mdrn-batch in this process, with what is small here cut as what is large is."""

    def __init__(self, models: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys, self._patch = capsys, patch
        self.streamed: list[str] = []  # names of the files that were
        patch.setenv("MDRN_MODELS", str(models))
        patch.setattr(picture, "_PIECE_VALUES", 7000)
        patch.setattr(streamed, "_KEPT_BYTES", 50_000)
        patch.setattr(segments, "_BAND_BYTES", 10_000)
        patch.setattr(segments, "_SHRUNK_ROWS", 9)
        patch.setattr(blocks, "_HELD_BYTES", 10_000)
        patch.setattr(blocks, "_WINDOW_PX", 64)
        real = formats.open_streamed

        def open_streamed(path: Any, **wishes: Any) -> Any:
            found = real(path, **wishes)
            self.streamed += [Path(path).name] if found is not None else []
            return found

        patch.setattr(formats, "open_streamed", open_streamed)

    def __call__(self, stream_bytes: str, *arguments: object) -> tuple[int, str, str]:
        self.streamed = []
        self._patch.setenv("MDRN_STREAM_BYTES", stream_bytes)
        self._patch.setattr(sys, "argv", ["mdrn-batch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return int(end.value.code or 0), out, err


@pytest.fixture
def batch(models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> _Run:
    return _Run(models, capsys, monkeypatch)


def _both(
    batch: _Run, source: Path, folder: Path, *wishes: object, wish: tuple[str, ...] = WISH
) -> tuple[Path, dict[str, Any]]:
    """Denoise a file whole and streamed; return the streamed output, after comparing all, and its record."""
    records = []
    for name, stream_bytes in (("whole", WHOLE), ("streamed", STREAMED)):
        code, out, err = batch(stream_bytes, "denoise", source, "-o", folder / name, *wish, "--json", *wishes)
        assert code == 0, err
        record = json.loads(out.splitlines()[0])
        assert record.pop("seconds") >= 0
        assert record.pop("target", "").endswith(source.name)
        records.append(record)
        assert (source.name in batch.streamed) == (name == "streamed")
    assert records[0] == records[1]
    whole, found = (folder / name / source.name for name in ("whole", "streamed"))
    assert found.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in found.parent.iterdir()) == sorted([".mdrn", source.name])
    return found, records[1]


@pytest.mark.parametrize("name", KINDS)
def test_streamed_file_has_the_bytes_of_a_whole_one(batch: _Run, tmp_path: Path, name: str) -> None:
    KINDS[name](tmp_path / name)
    found, _ = _both(batch, tmp_path / name, tmp_path)
    with tifffile.TiffFile(tmp_path / name) as before, tifffile.TiffFile(found) as after:
        assert (after.is_bigtiff, after.byteorder) == (before.is_bigtiff, before.byteorder)
        assert len(after.pages) == len(before.pages)
        for old, new in zip(before.pages, after.pages, strict=True):
            assert (new.compression, new.predictor) == (old.compression, old.predictor)
            assert (new.is_tiled, new.tile, new.rowsperstrip) == (old.is_tiled, old.tile, old.rowsperstrip)
        assert [level.shape for level in after.series[0].levels] == [
            level.shape for level in before.series[0].levels
        ]
        assert np.any(after.asarray() != before.asarray())
        if after.is_ome:
            kept, changed = str(before.ome_metadata), str(after.ome_metadata)
            assert kept[kept.index("<Pixels") : kept.index("</Pixels>")] in changed
        if after.is_imagej:
            assert before.imagej_metadata is not None
            assert after.imagej_metadata is not None
            assert before.imagej_metadata.items() <= after.imagej_metadata.items() | {
                ("ImageJ", before.imagej_metadata["ImageJ"])
            }


@pytest.mark.parametrize(
    ("name", "wishes"),
    [
        ("ImageJ stack.tif", ("--along", "Z")),
        ("deflated strips.tif", ("--noise-model", "correlated")),
        ("plain.tif", ("--noise-model", "poisson-gaussian", "--noise", "300,1e6dn")),
        ("stack.ome.tif", ("--noise", "0", "--verify")),
        ("opacity.tif", ("--verify", "--strength", "0.5")),
        ("tiles.tif", ("--same-noise", "--range", "100,60000")),
        ("floats.tif", ("--isolate", "--verify")),
    ],
)
def test_streamed_file_has_the_bytes_of_a_whole_one_with_options(
    batch: _Run, tmp_path: Path, name: str, wishes: tuple[str, ...]
) -> None:
    KINDS[name](tmp_path / name)
    _both(batch, tmp_path / name, tmp_path, *wishes)


def test_streamed_plane_that_is_looked_at_through_windows_has_the_same_bytes(
    batch: _Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_WHOLE_PX", 50_000)
    KINDS["tiles.tif"](tmp_path / "a.tif")
    _both(batch, tmp_path / "a.tif", tmp_path)


def test_streamed_plane_is_begun_anew_with_smaller_tiles_when_memory_runs_out(
    batch: _Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine_run._run_tile

    def run_tile(source: Any, target: Any, tile: Any, network: Any, job: Any, between: Any) -> None:
        if job.tile == 1024 and tile.top > 0:  # some tiles are done by then
            raise MemoryError
        real(source, target, tile, network, job, between)

    monkeypatch.setattr(engine_run, "_run_tile", run_tile)
    tifffile.imwrite(tmp_path / "a.tif", _noisy(1200, 300), compression="zlib", rowsperstrip=64)
    _, record = _both(batch, tmp_path / "a.tif", tmp_path, wish=PLAIN)
    assert "memory ran out" in json.dumps(record)


def test_streamed_file_is_planned_described_and_reported_as_a_whole_one(batch: _Run, tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    KINDS["deflated strips.tif"](source)
    for command in (
        ("denoise", source, "-o", tmp_path / "out", "--dry-run", *WISH),
        ("info", source, *WISH),
    ):
        code, told, _ = batch(STREAMED, *command)
        assert code == 0
        assert batch.streamed == ["a.tif"]
        assert told == batch(WHOLE, *command)[1]
    assert not (tmp_path / "out").exists()
    pages = []
    for stream_bytes in (WHOLE, STREAMED):
        page = tmp_path / "report.html"
        batch(stream_bytes, "denoise", source, "-o", tmp_path / stream_bytes, *WISH, "--report", page)
        pages.append([part for part in page.read_text().split('"') if part.startswith("data:image")])
    assert len(pages[0]) >= 4
    assert pages[0] == pages[1]


def test_streamed_file_that_is_damaged_costs_that_file_only(batch: _Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        KINDS["deflated strips.tif"](folder / name)
    with tifffile.TiffFile(folder / "a.tif") as file:
        offset = file.pages[0].dataoffsets[17]  # type: ignore[union-attr]
    data = bytearray((folder / "a.tif").read_bytes())
    data[offset : offset + 500] = bytes(500)
    (folder / "a.tif").write_bytes(data)
    code, _, err = batch(STREAMED, "denoise", folder, "-o", out, *WISH)
    assert code == 3
    assert "a.tif: page 0 is damaged" in err
    assert sorted(p.name for p in out.iterdir()) == [".mdrn", "b.tif"]


def test_whole_file_to_another_format_is_not_streamed(batch: _Run, tmp_path: Path) -> None:
    KINDS["plain.tif"](tmp_path / "a.tif")
    code, _, _ = batch(
        STREAMED, "denoise", tmp_path / "a.tif", "-o", tmp_path / "out", *WISH, "--format", "png"
    )
    assert code == 0
    assert batch.streamed == []


def test_stream_bytes_that_are_no_number_are_an_error_of_usage(batch: _Run, tmp_path: Path) -> None:
    KINDS["plain.tif"](tmp_path / "a.tif")
    code, _, err = batch("much", "info", tmp_path / "a.tif", *WISH)
    assert code == 2
    assert "MDRN_STREAM_BYTES=much" in err


def test_killed_streamed_run_leaves_no_half_file_and_is_finished_by_the_next(
    models: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(folder / name, _noisy(600, 900), compression="zlib", rowsperstrip=50)

    def start(to: Path, stream_bytes: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "MDRN_MODELS": str(models), "MDRN_STREAM_BYTES": stream_bytes}
        return subprocess.Popen([*COMMAND, "denoise", folder, "-o", to, *WISH, "-q"], env=environment)

    assert start(tmp_path / "whole", WHOLE).wait(120) == 0
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.tif")}
    killed = 0
    for wait in (0.0, 0.2, 0.4, 0.8):  # from where the ledger is there: while it reads, computes, writes
        process = start(out, STREAMED)
        while process.poll() is None and not list(out.glob(".mdrn/ledger.jsonl")):
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        killed += process.wait() != 0
        for path in out.glob("*.tif"):
            assert path.read_bytes() == whole[path.name]
    assert killed
    assert start(out, STREAMED).wait(120) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == whole


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("mount"),
    reason="needs to mount a small disk",
)
def test_streamed_file_on_a_full_disk_ends_with_5_before_any_work(models: Path, tmp_path: Path) -> None:
    source, disk = tmp_path / "a.tif", tmp_path / "disk"
    disk.mkdir()
    tifffile.imwrite(source, _noisy(600, 900), compression="zlib", rowsperstrip=50)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)])
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        environment = {**os.environ, "MDRN_MODELS": str(models), "MDRN_STREAM_BYTES": STREAMED}
        done = subprocess.run(
            [*COMMAND, "denoise", str(source), "-o", str(disk / "out"), *WISH],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 5, done.stderr
        assert "a.tif: cannot be written (No space left on device); free some space" in done.stderr
        assert "Traceback" not in done.stderr
        assert [p.name for p in (disk / "out").iterdir()] == [".mdrn"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in other units elsewhere")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_memory_of_a_streamed_plane_is_not_that_of_its_pixels(
    models: Path, tmp_path: Path, compression: str | None
) -> None:
    def peak_mb(side: int) -> float:
        source = tmp_path / f"{side}.tif"
        rows = _noisy(250, side)
        strips = (np.roll(rows, top, 1) for top in range(0, side, 250))
        tifffile.imwrite(
            source,
            strips if compression is None else (zlib.compress(strip.tobytes(), 1) for strip in strips),
            shape=(side, side),
            dtype=np.uint16,
            rowsperstrip=250,
            compression=compression,
        )
        command = [*COMMAND, "denoise", str(source), "-o", str(tmp_path / f"out{side}"), "-q"]
        environment = {**os.environ, "MDRN_MODELS": str(models)}
        process = subprocess.Popen([*command, "--model", "tiny", "--threads", "1"], env=environment)
        peak = 0  # asked of the process: that of `wait4` begins with what this one holds
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak = max([peak, *(int(t.split()[1]) for t in status.splitlines() if t.startswith("VmHWM"))])
            except OSError:
                pass
            time.sleep(0.05)
        assert process.returncode == 0
        return peak * 1024 / 1e6

    small, large = peak_mb(4000), peak_mb(20000)
    print(f"{small:.0f} MB for 16 megapixels, {large:.0f} MB for 400")
    assert large - small < 400  # measured: 50 and 270 (strips are decoded); read whole: 1,590
