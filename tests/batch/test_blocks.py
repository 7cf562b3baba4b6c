"""Volumes: whoever does the blocks, in whatever order, however often interrupted, the bytes are the same."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdrn_plugin import formats
from mdrn_plugin.batch import blocks, volume_plan
from mdrn_plugin.batch.volume_plan import VolumePlan, grid_for
from mdrn_plugin.errors import BadOption, Cancelled, CannotRead, NotSupported, OutputExists
from mdrn_plugin.formats import zarr_write
from mdrn_plugin.formats.zarr_write import Level
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Picture, ValueRange

zarr = pytest.importorskip("zarr")
from tiny_zoo import make_models  # noqa: E402
from zarr_samples import make_store, noisy, tree  # noqa: E402

COMMAND = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()"]
OPTIONS = Options(model="tiny", threads=1, tile=64, precision="fp32", noise="20")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("zoo") / "models")


@pytest.fixture(autouse=True)
def zoo(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDRN_MODELS", str(models))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two planes of 130 x 100 in shards of 64: 12 blocks, and two levels."""
    folder = tmp_path_factory.mktemp("in")
    shape = {"chunks": (1, 32, 32), "shards": (1, 64, 64)}
    return make_store(folder / "v.zarr", noisy((2, 130, 100), np.uint8), "zyx", levels=2, **shape)


@pytest.fixture(scope="module")
def expected(source: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of it, from beginning to end."""
    os.environ["MDRN_MODELS"] = str(models)
    out = tmp_path_factory.mktemp("single")
    volume = blocks.open_volume(_plan(source, out))
    blocks.run(volume)
    blocks.merge(volume)
    return tree(out / "v.zarr")


def _plan(source: Path, out: Path, options: Options = OPTIONS) -> Path:
    out.mkdir(exist_ok=True)
    return blocks.prepare(source, out / source.with_suffix(".zarr").name, out, options, settings="x")


# --- the grid -----------------------------------------------------------------------------------------


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 3),
    st.sampled_from([16, 48]),
    st.sampled_from([32, 64, 128]),
)
def test_blocks_are_whole_shards_and_cover_each_value_once(
    rows: int, columns: int, planes: int, high: int, wide: int, deep: int, multiple: int, side: int
) -> None:
    level = Level((planes, rows, columns), (deep, high, wide), (deep, high, wide))
    grid = grid_for(level, "ZYX", multiple, side)
    seen = np.zeros(level.shape, np.uint8)
    for number in range(len(grid)):
        region = grid.region(number)
        seen[region] += 1
        for place, shard, length in zip(region, level.shards, level.shape, strict=True):
            assert place.start % shard == 0
            assert place.stop % shard == 0 or place.stop == length
        assert region[1].start % multiple == region[2].start % multiple == 0
    assert (seen == 1).all()


def test_block_beyond_the_grid_is_our_bug() -> None:
    grid = grid_for(Level((64, 64), (32, 32), (32, 32)), "YX", 16, 32)
    for number in (-1, len(grid)):
        with pytest.raises(AssertionError):
            grid.region(number)


@given(st.integers(0, 40), st.integers(1, 9))
def test_shards_of_the_work_are_all_of_it_once(count: int, shards: int) -> None:
    parts = [blocks.shard_of(list(range(count)), (i, shards)) for i in range(1, shards + 1)]
    assert [n for part in parts for n in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_no_block_touches_a_file_of_another(source: Path, tmp_path: Path) -> None:
    volume = blocks.open_volume(_plan(source, tmp_path))
    for level in range(volume.levels):
        files = [f for n in range(len(volume.plan.grid(level))) for f in volume._files(level, n)]
        assert len(set(files)) == len(files)


@pytest.mark.parametrize("chunks", [(1, 100, 100), (1, 7, 1000), (2, 33, 100), (1, 1023, 1023)])
def test_odd_chunks_still_give_blocks_on_the_grid_of_the_network(
    chunks: tuple[int, ...], tmp_path: Path
) -> None:
    store = make_store(tmp_path / "v.zarr", noisy((2, 210, 100), np.uint8), "zyx", "0.4", chunks=chunks)
    volume = blocks.open_volume(_plan(store, tmp_path / "out"))
    grid = volume.plan.grid()
    for number in range(len(grid)):
        assert all(place.start % 16 == 0 for place in grid.region(number)[1:])
    blocks.run(volume)
    assert blocks.merge(volume).picture.shape == (2, 210, 100)


# --- the same bytes -----------------------------------------------------------------------------------


def test_blocks_together_are_the_picture_denoised_as_a_whole(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    from mdrn_plugin.pipeline import carry_out, make_plan, measure

    options = dataclasses.replace(OPTIONS, exact=True)
    volume = blocks.open_volume(_plan(source, tmp_path, options))
    blocks.run(volume)
    made = np.asarray(blocks.merge(volume).picture.pixels)
    picture = dataclasses.replace(formats.read(source), range=volume.plan.range)
    profiles = measure(picture, options)
    whole = carry_out(picture, profiles, make_plan(picture, profiles, options)).picture.pixels
    # The rounding of the last bit may fall to either side.
    assert np.abs(made.astype(int) - whole.astype(int)).max() <= 1
    assert np.mean(made != whole) < 1e-3
    assert expected  # the other options give other bytes, elsewhere


def test_blocks_of_strong_noise_see_it_at_more_scales_as_the_whole_does(source: Path, tmp_path: Path) -> None:
    from mdrn_plugin.pipeline import carry_out, make_plan, measure

    options = Options(noise="50", exact=True, threads=1, tile=64)
    file = _plan(source, tmp_path, options)
    volume = blocks.open_volume(file)
    picture = dataclasses.replace(formats.read(source), range=volume.plan.range)
    profiles = measure(picture, options)
    plan = make_plan(picture, profiles, options)
    assert plan.steps[0].coarse
    assert [step.coarse for step in volume.plan.plan.steps] == [step.coarse for step in plan.steps]
    blocks.run(volume)
    made = np.asarray(blocks.merge(volume).picture.pixels)
    whole = carry_out(picture, profiles, plan).picture.pixels
    assert np.abs(made.astype(int) - whole.astype(int)).max() <= 1
    text = Path(file).read_text()
    Path(file).write_text(text.replace(plan.steps[0].coarse[0].sha256, "0" * 64))
    with pytest.raises(BadOption, match=f"weights of {plan.steps[0].coarse[0].model} are not those"):
        blocks.open_volume(file)


def test_four_shards_in_any_order_give_the_bytes_of_one_run(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    file = _plan(source, tmp_path)
    for i in (3, 1, 4, 2):
        blocks.run(blocks.open_volume(file), shard=(i, 4))
    blocks.merge(blocks.open_volume(file))
    assert tree(tmp_path / "v.zarr") == expected


def test_block_done_twice_is_the_same(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    volume = blocks.open_volume(_plan(source, tmp_path))
    blocks.run(volume)
    for number in (5, 0, 5):
        volume.do(0, number)
    blocks.merge(volume)
    assert tree(tmp_path / "v.zarr") == expected


def test_stopped_run_goes_on_where_it_was(source: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    file = _plan(source, tmp_path)
    volume = blocks.open_volume(file)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 12

    with pytest.raises(Cancelled):
        blocks.run(volume, stop=stop)
    left = len(volume.missing(0))
    assert 0 < left < 12
    assert _plan(source, tmp_path) == file
    assert blocks.run(blocks.open_volume(file)) == left
    blocks.merge(volume)
    assert tree(tmp_path / "v.zarr") == expected


def test_damaged_traces_of_a_crash_are_done_again(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    file = _plan(source, tmp_path)
    volume = blocks.open_volume(file)
    blocks.run(volume)
    volume._files(0, 3)[0].unlink()
    cut = volume._files(0, 7)[0]
    cut.write_bytes(cut.read_bytes()[:100])
    (cut.parent / "7.0f0f.partial").write_bytes(b"half")
    journal = next(volume.folder.glob("done-*.jsonl"))
    journal.write_bytes(journal.read_bytes()[:-9])  # torn in its last line
    assert volume.missing(0) == [3, 7, 11]
    with pytest.raises(NotSupported, match=r"3 of 12 blocks are not done, the first is 3"):
        blocks.merge(volume)
    blocks.run(volume)
    blocks.merge(volume)
    assert tree(tmp_path / "v.zarr") == expected


def test_killed_between_name_and_note_is_finished(source: Path, tmp_path: Path) -> None:
    file = _plan(source, tmp_path)
    volume = blocks.open_volume(file)
    blocks.run(volume)
    blocks.merge(volume)  # and not a step further
    before = tree(tmp_path / "v.zarr")
    assert _plan(source, tmp_path) == file
    again = blocks.open_volume(file)
    assert blocks.run(again) == 0
    assert blocks.finish(again)["target"] == str(tmp_path / "v.zarr")
    assert tree(tmp_path / "v.zarr") == before


@pytest.mark.slow
def test_four_processes_give_the_bytes_of_one(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    file = _plan(source, tmp_path)
    runs = [subprocess.Popen([*COMMAND, "run", str(file), "-q", "--shard", f"{i}/4"]) for i in (1, 2, 3, 4)]
    assert [run.wait() for run in runs] == [0, 0, 0, 0]
    assert len(list(file.parent.glob("done-*"))) == 4
    blocks.merge(blocks.open_volume(file))
    assert tree(tmp_path / "v.zarr") == expected


@pytest.mark.slow
def test_killed_process_is_resumed_to_the_same_bytes(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    file = _plan(source, tmp_path)
    for lines in (3, 9):
        process = subprocess.Popen([*COMMAND, "run", str(file), "-q"])
        _wait_for_lines(file.parent, lines)
        process.send_signal(signal.SIGKILL)
        process.wait()
    volume = blocks.open_volume(file)
    assert 0 < len(volume.missing(0)) < 12
    blocks.run(volume)
    blocks.merge(volume)
    assert tree(tmp_path / "v.zarr") == expected


@pytest.mark.slow
def test_killed_denoise_of_a_volume_goes_on_to_the_same_bytes(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    small = "from mdrn_plugin.batch import blocks; blocks.open_if_large.__defaults__ = (10_000,); "
    wishes = ["--model", "tiny", "--threads", "1", "--tile", "64", "--precision", "fp32", "--noise", "20"]
    command = [
        sys.executable,
        "-c",
        small + COMMAND[-1],
        "denoise",
        str(source),
        "-o",
        str(tmp_path),
        *wishes,
    ]
    process = subprocess.Popen([*command, "-q"])
    work = tmp_path / ".mdrn" / "volumes" / "v.zarr"
    _wait_for_lines(work, 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "v.zarr").exists()
    assert subprocess.run([*command, "-q"]).returncode == 0
    assert tree(tmp_path / "v.zarr") == expected
    assert sorted(p.name for p in (tmp_path / ".mdrn").iterdir()) == ["ledger.jsonl"]


def _wait_for_lines(folder: Path, count: int) -> Path:
    for _ in range(6000):
        journals = list(folder.glob("done-*"))
        if sum(len(j.read_bytes().splitlines()) for j in journals) >= count:
            return max(journals, key=lambda j: j.stat().st_mtime_ns)
        time.sleep(0.01)
    raise TimeoutError


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_cluster_of_any_size_gives_the_same_bytes(
    workers: int, source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    from mdrn_plugin.batch.cluster import levels_on, run_on

    volume = blocks.open_volume(_plan(source, tmp_path))
    assert run_on(f"local:{workers}", volume) == 12
    blocks.merge(volume, levels=levels_on(f"local:{workers}", volume))
    assert tree(tmp_path / "v.zarr") == expected


@pytest.mark.slow
def test_cluster_that_loses_a_worker_gives_the_same_bytes(
    source: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    from mdrn_plugin.batch.cluster import run_on

    volume = blocks.open_volume(_plan(source, tmp_path))
    killed = []

    def kill() -> None:
        journal = _wait_for_lines(volume.folder, 2)
        pid = int(journal.name.split("-")[-2])
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    run_on("local:2", volume)
    killer.join()
    assert killed
    blocks.merge(volume)
    assert tree(tmp_path / "v.zarr") == expected


def test_cluster_names_are_checked(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    from mdrn_plugin.batch.cluster import run_on

    volume = blocks.open_volume(_plan(source, tmp_path))
    for cluster in ("local:0", "local:many", "http://x", "tcp"):
        with pytest.raises(BadOption, match="expected"):
            run_on(cluster, volume)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(NotSupported, match=r"pip install 'mdrn-plugin\[cluster\]'"):
        run_on("local:2", volume)


# --- the plan -----------------------------------------------------------------------------------------


def test_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    pixels = noisy((2, 2, 70, 80))
    store = make_store(tmp_path / "v.zarr", pixels, "czyx")
    told = Options(model="tiny", noise="2.5,900dn", threads=1)  # curves in the plan
    volume = blocks.open_volume(_plan(store, tmp_path / "out", told))
    assert volume.plan.plan.steps[0].curves
    assert VolumePlan.from_json(volume.plan.as_json()) == volume.plan


def test_plan_of_other_settings_replaces_the_old(source: Path, tmp_path: Path) -> None:
    first = blocks.open_volume(_plan(source, tmp_path))
    first.do(0, 0)
    other = dataclasses.replace(OPTIONS, strength=0.5)
    file = blocks.prepare(source, tmp_path / "v.zarr", tmp_path, other, settings="y")
    second = blocks.open_volume(file)
    assert second.plan.plan.strength == 0.5
    assert len(second.missing(0)) == 12


def test_plan_that_does_not_fit_any_more_is_said(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _plan(source, tmp_path)
    text = file.read_text()
    file.write_text(text[:-40])
    with pytest.raises(CannotRead, match="is no plan"):
        blocks.open_volume(file)
    file.write_text(text.replace('"version": "', '"version": "9.', 1))
    with pytest.raises(BadOption, match=r"version 9\."):
        blocks.open_volume(file)
    sha = json.loads(text)["plan"]["steps"][0]["sha256"]
    file.write_text(text.replace(sha, "0" * 64))
    with pytest.raises(BadOption, match="weights of tiny"):
        blocks.open_volume(file)
    file.write_text(text)
    with pytest.raises(CannotRead, match="cannot be read"):
        blocks.open_volume(tmp_path / "no.json")
    monkeypatch.setattr(blocks, "_source_key", lambda _: "other")
    with pytest.raises(CannotRead, match="changed since"):
        blocks.open_volume(file)


@pytest.mark.parametrize("shard", [(0, 4), (5, 4), (1, 0)])
def test_shard_that_does_not_exist_is_said(shard: tuple[int, int]) -> None:
    with pytest.raises(BadOption, match="expected 1/"):
        blocks.shard_of([1, 2, 3], shard)


def test_header_that_claims_the_impossible_is_refused_at_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "v.zarr", noisy((2, 64, 64), np.uint8), "zyx")
    file = store / "0" / "zarr.json"
    node = json.loads(file.read_text())
    for shape in ([2**40, 64, 64], [2, 2**40, 2**40]):
        node["shape"] = shape
        file.write_text(json.dumps(node))
        with pytest.raises(NotSupported, match="--max-pixels"):
            _plan(store, tmp_path / "out")
        assert [o.state for o in _batch(store, tmp_path / "out2")] == ["failed"]
    node["shape"] = [1, 2**16, 2**16]
    file.write_text(json.dumps(node))
    assert blocks.open_if_large(store, Path("a.zarr")) is not None
    with pytest.raises(NotSupported, match="at most 1000 in"):
        blocks.open_if_large(store, Path("a.zarr"), max_pixels=1000)


def test_sample_leaves_out_what_is_empty() -> None:
    pixels = np.zeros((40, 64, 64), np.uint8)
    pixels[13] = noisy((64, 64), np.uint8)
    picture = Picture(pixels, "ZYX", ValueRange(0, 255, ""))
    windows = volume_plan.choose_windows(picture)
    assert windows != () and len(windows) <= 8
    filled = Picture(noisy((40, 64, 64), np.uint8), "ZYX", ValueRange(0, 255, ""))
    chosen = volume_plan.choose_windows(filled)
    assert len(chosen) == 8
    assert {w[0][0] for w in chosen} >= {0, 39}
    sample = volume_plan.sample_of(filled, chosen)
    assert (sample.axes, sample.shape) == ("ZYX", (8, 64, 64))


def test_range_of_floats_is_that_of_the_sample_of_integers_that_of_the_type(tmp_path: Path) -> None:
    floats = (noisy((3, 64, 64), np.float32) * 500).astype(np.float32)
    volume = blocks.open_volume(_plan(make_store(tmp_path / "f.zarr", floats, "zyx"), tmp_path / "out"))
    assert 400 < volume.plan.range.white <= 500
    store = make_store(tmp_path / "i.zarr", noisy((3, 64, 64)), "zyx")
    assert blocks.open_volume(_plan(store, tmp_path / "out")).plan.range.white == 65535


# --- other sources, and the batch ---------------------------------------------------------------------


@pytest.mark.parametrize("tiled", [False, True])
def test_ome_tiff_becomes_ome_zarr(tiled: bool, tmp_path: Path) -> None:
    import tifffile

    how: dict[str, Any] = {"tile": (64, 64), "compression": "zlib"} if tiled else {"bigtiff": True}
    said = {"axes": "CZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", noisy((2, 2, 90, 70), np.uint8), ome=True, metadata=said, **how)
    out = tmp_path / "out"
    out.mkdir()
    file = blocks.prepare(tmp_path / "a.ome.tif", out / "a.zarr", out, OPTIONS, settings="x")
    volume = blocks.open_volume(file)
    blocks.run(volume)
    result = blocks.merge(volume)
    assert result.picture.axes == "CZYX"
    back = formats.read(out / "a.zarr")
    np.testing.assert_array_equal(np.asarray(result.picture.pixels), back.pixels)
    assert back.metadata.scale[-2:] == (0.5, 0.5)  # type: ignore[attr-defined]


def test_colour_tiff_becomes_channels(tmp_path: Path) -> None:
    import tifffile

    rgb = np.stack([noisy((90, 70), np.uint8, k) for k in range(3)], -1)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    out = tmp_path / "out"
    out.mkdir()
    volume = blocks.open_volume(
        blocks.prepare(tmp_path / "a.tif", out / "a.zarr", out, OPTIONS, settings="x")
    )
    blocks.run(volume)
    result = blocks.merge(volume)
    assert result.picture.shape == (90, 70, 3)
    assert formats.read(out / "a.zarr").shape == (3, 90, 70)


def test_output_that_exists_is_not_replaced_unasked(source: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "v.zarr", noisy((4, 4), np.uint8), "yx")
    before = tree(tmp_path / "v.zarr")
    volume = blocks.open_volume(_plan(source, tmp_path))
    blocks.run(volume)
    with pytest.raises(OutputExists):
        blocks.merge(volume)
    assert tree(tmp_path / "v.zarr") == before
    blocks.merge(volume, overwrite=True)
    assert formats.read(tmp_path / "v.zarr").shape == (2, 130, 100)


def _batch(source: Path, out: Path, **more: Any) -> Any:
    from mdrn_plugin.batch import jobs, run

    found = jobs.collect([str(source)], out, suffixes=frozenset(formats.READABLE_SUFFIXES))
    jobs.prepare_output(out, found.jobs)
    outcomes: list[run.Outcome] = []
    run.run(found, out, run.Settings(OPTIONS, **more), told=outcomes.append)
    return outcomes


def test_batch_does_a_large_store_by_blocks_and_skips_it_the_next_time(
    source: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks.open_if_large, "__defaults__", (10_000,))
    first = _batch(source, tmp_path)
    assert [o.state for o in first] == ["done"]
    assert tree(tmp_path / "v.zarr") == expected
    assert sorted(p.name for p in (tmp_path / ".mdrn").iterdir()) == ["ledger.jsonl"]
    assert [o.state for o in _batch(source, tmp_path)] == ["skipped"]
    assert [o.state for o in _batch(source, tmp_path, verify=True)] == ["skipped"]


def test_batch_does_a_small_store_as_a_picture(source: Path, tmp_path: Path) -> None:
    assert [o.state for o in _batch(source, tmp_path)] == ["done"]
    assert formats.read(tmp_path / "v.zarr").shape == (2, 130, 100)
    assert [o.state for o in _batch(source, tmp_path)] == ["skipped"]


def test_batch_says_that_chunks_are_missing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "in" / "v.zarr", noisy((130, 130), np.uint8), "yx")
    (store / "0" / "c" / "1" / "1").unlink()
    from mdrn_plugin.batch.report import line

    outcomes = _batch(tmp_path / "in", tmp_path / "out")
    assert "1 of 9 chunks are not there: read as the fill value 7" in line(outcomes[0])


def test_batch_takes_a_store_in_a_folder_for_one_picture(source: Path, tmp_path: Path) -> None:
    from mdrn_plugin.batch import jobs

    folder = tmp_path / "in"
    make_store(folder / "plain", noisy((20, 20), np.uint8), "yx")
    make_store(folder / "b.zarr", noisy((20, 20), np.uint8), "yx", "0.4")
    found = jobs.collect([str(folder)], tmp_path / "out", suffixes=frozenset((".zarr",)), recursive=True)
    assert [j.target.name for j in found.jobs] == ["b.zarr", "plain.zarr"]
    with pytest.raises(BadOption, match="lies in it"):
        jobs.collect([str(folder / "b.zarr")], folder / "b.zarr" / "out", suffixes=frozenset((".zarr",)))


@pytest.mark.parametrize("level", [0, 1])
def test_store_that_lost_a_file_does_not_take_its_name(source: Path, tmp_path: Path, level: int) -> None:
    volume = blocks.open_volume(_plan(source, tmp_path))
    blocks.run(volume)
    blocks.merge(volume)
    target = tmp_path / "v.zarr"
    zarr_write.verify(target, (2, 130, 100), "ZYX")
    next(p for p in (target / str(level) / "c").rglob("*") if p.is_file()).unlink()
    with pytest.raises(ValueError, match="1 of its files"):
        zarr_write.verify(target, (2, 130, 100), "ZYX")
