"""The command from outside: what it writes, says and returns."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from mdrn_plugin import cli

COMMAND = [sys.executable, "-c", "from mdrn_plugin.cli import main; main()"]


class _Run:
    """mdrn-batch in this process: exit code, stdout, stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._patch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["mdrn-batch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return int(end.value.code or 0), out, err


@pytest.fixture
def batch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> _Run:
    return _Run(capsys, monkeypatch)


def _pixels(seed: int = 0, side: int = 64) -> Any:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    return np.clip(rng.normal(120 + 60 * (x > y), 20), 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(_pixels(0)).save(folder / "a.png")
    tifffile.imwrite(folder / "b.tif", _pixels(1).astype(np.uint16) * 200)
    Image.fromarray(np.stack([_pixels(k) for k in (2, 3, 4)], -1)).save(folder / "c.png")
    return folder


def test_denoise_folder_of_mixed_files(batch: _Run, folder: Path, tmp_path: Path) -> None:
    code, out, err = batch("denoise", folder, "-o", tmp_path / "out")
    assert code == 0
    assert out == ""
    assert "3 done, 0 done before, 0 failed" in err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".mdrn", "a.png", "b.tif", "c.png"]
    clean = np.asarray(Image.open(tmp_path / "out/a.png")).astype(float)
    noisy = np.asarray(Image.open(folder / "a.png")).astype(float)
    assert clean[40:, :20].std() < 0.4 * noisy[40:, :20].std()


def test_denoise_second_run_does_only_what_is_missing(batch: _Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch("denoise", folder, "-o", out)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir() if p.is_file()}
    code, _, err = batch("denoise", folder, "-o", out)
    assert code == 0
    assert "0 done, 3 done before" in err
    (out / "b.tif").unlink()
    code, _, err = batch("denoise", folder, "-o", out)
    assert "1 done, 2 done before" in err
    after = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir() if p.is_file()}
    assert after["a.png"] == before["a.png"]
    assert after["b.tif"][0] == before["b.tif"][0]


def test_denoise_other_settings_do_not_replace_silently(batch: _Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch("denoise", folder / "a.png", "-o", out)
    before = (out / "a.png").read_bytes()
    code, _, err = batch("denoise", folder / "a.png", "-o", out, "--strength", "0.5")
    assert code == 3
    assert "--overwrite" in err
    assert (out / "a.png").read_bytes() == before
    code, _, _ = batch("denoise", folder / "a.png", "-o", out, "--strength", "0.5", "--overwrite")
    assert code == 0
    assert (out / "a.png").read_bytes() != before


def test_denoise_foreign_file_in_the_output_is_kept(batch: _Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_text("precious")
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out")
    assert code == 3
    assert "a.png" in err
    assert (tmp_path / "out/a.png").read_text() == "precious"
    assert (tmp_path / "out/b.tif").is_file()


def test_denoise_one_good_among_bad(batch: _Run, folder: Path, tmp_path: Path) -> None:
    data = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    (folder / "text.tif").write_text("hello")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.png").write_text("<!DOCTYPE html><html></html>")
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", "-q")
    assert code == 3
    for name in ("cut.png", "text.tif", "empty.jpg", "page.png"):
        assert sum(name in line for line in err.splitlines()) == 1, name
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".mdrn", "a.png", "b.tif", "c.png"]


def test_denoise_empty_folder_matches_nothing(batch: _Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = batch("denoise", tmp_path / "empty", "-o", tmp_path / "out")
    assert code == 4
    assert "nothing to do" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (["--quality", "ultra"], "balanced"),
        (["--noise", "much"], "auto"),
        (["--tile", "100"], "multiple of 16"),
        (["--strength", "2"], "0<=x<=1"),
        (["--model", "nobody"], "mdrn-2b-gray"),
        (["--range", "5"], "0,4095"),
        (["--frobnicate"], "frobnicate"),
    ],
)
def test_denoise_wrong_option_is_usage(
    batch: _Run, folder: Path, tmp_path: Path, wish: list[str], message: str
) -> None:
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", *wish)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_denoise_output_is_a_file(batch: _Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out")
    assert code == 5
    assert "output folder" in err
    assert (tmp_path / "out").read_text() == "mine"


def test_denoise_dry_run_shows_the_plan_and_writes_nothing(batch: _Run, folder: Path, tmp_path: Path) -> None:
    code, out, _ = batch("denoise", folder, "-o", tmp_path / "out", "--dry-run")
    assert code == 0
    assert out.count("model mdrn-2b-") == 3
    assert not (tmp_path / "out").exists()


def test_denoise_json_lines(batch: _Run, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_text("no")
    code, out, _ = batch("denoise", folder, "-o", tmp_path / "out", "--json", "-q")
    assert code == 3
    *files, end = [json.loads(line) for line in out.splitlines()]
    assert [f["state"] for f in files] == ["done", "done", "failed", "done"]
    assert end["event"] == "end"
    assert (end["done"], end["failed"]) == (3, 1)
    first = files[0]
    assert first["plan"]["steps"][0]["model"]
    assert 0.05 < first["noise"][0]["sigma"][0] < 0.12
    assert first["verdict"] in ("good", "check", "do not trust")


def test_denoise_list_on_standard_input(
    batch: _Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{folder / 'a.png'}\n{folder / 'b.tif'}\n"))
    code, _, err = batch("denoise", "-", "-o", tmp_path / "out")
    assert code == 0
    assert "2 done" in err


def test_denoise_log_file_has_every_file(batch: _Run, folder: Path, tmp_path: Path) -> None:
    batch("denoise", folder, "-o", tmp_path / "out", "-q", "--log-file", tmp_path / "log.txt")
    text = (tmp_path / "log.txt").read_text()
    assert all(name in text for name in ("a.png", "b.tif", "c.png"))


def test_denoise_range_decides_what_25_means(batch: _Run, folder: Path, tmp_path: Path) -> None:
    _, out, _ = batch("info", folder / "b.tif", "--noise", "25", "--range", "0,51000", "--json")
    found = json.loads(out)
    assert found["noise"][0]["sigma"] == [pytest.approx(25 / 255)]
    assert found["range"]["white"] == 51000
    _, out, _ = batch("info", folder / "b.tif", "--noise", "4000dn", "--range", "0,51000", "--json")
    assert json.loads(out)["noise"][0]["sigma"] == [pytest.approx(4000 / 51000)]


# ---- configuration, names, contradictions ------------------------------------------------------


def test_config_gives_what_the_command_line_leaves_out(batch: _Run, folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "mdrn.toml"
    config.write_text(
        f"inputs = [{str(folder)!r}]\nout = {str(tmp_path / 'out')!r}\nnoise = 20\nstrength = 0.5\n"
        'pattern = "*.png"\nrange = [0, 255]\nsuffix = "-x"\nsame_noise = true\njobs = 2\n'
        "quality = 'fast'\nisolate = false\njson = true\nmax-pixels = 100000\n"
    )
    code, out, err = batch("denoise", "--config", config, "-q", "--suffix", "-clean")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()][:-1]
    assert [Path(f["target"]).name for f in found] == ["a-clean.png", "c-clean.png"]
    assert {f["plan"]["strength"] for f in found} == {0.5}
    assert found[0]["noise"][0]["sigma"] == [pytest.approx(20 / 255)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nois = 20", "'nois' is no option; use"),
        ("noise = [1, 2]", "expected a single value"),
        ("recursive = 1", "expected true or false"),
        ("noise = ", "is not TOML"),
        ("quality = 'ultra'", "balanced"),
        ("inputs = [3]", "list of paths"),
        ("config = 'x.toml'", "is no option"),
    ],
)
def test_config_that_is_wrong_is_usage(
    batch: _Run, folder: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "x.toml").write_text(text)
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", "--config", tmp_path / "x.toml")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_config_missing_is_usage(batch: _Run, folder: Path, tmp_path: Path) -> None:
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", "--config", tmp_path / "none.toml")
    assert code == 2
    assert "none.toml" in err


def test_config_takes_every_option_of_the_command(batch: _Run, tmp_path: Path) -> None:
    """The names of the page are the names of the file."""
    for parameter in cli.denoise.params:
        for option in parameter.opts:
            name = option.removeprefix("--")
            if option.startswith("--") and name not in ("config", "help"):
                (tmp_path / "x.toml").write_text(f"{name} = {{}}")
                code, _, err = batch("denoise", "x", "-o", tmp_path, "--config", tmp_path / "x.toml")
                assert code == 2
                assert "expected" in err, name


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (["--resume", "--overwrite"], "contradict"),
        (["--watch", "--dry-run"], "contradict"),
        (["--suffix", "a/b"], "without slashes"),
        (["--format", "gif"], "webp"),
        (["--jobs", "0"], "1<=x"),
        (["--max-pixels", "0"], "x>=1"),
    ],
)
def test_denoise_wishes_that_cannot_be_are_usage(
    batch: _Run, folder: Path, tmp_path: Path, wish: list[str], message: str
) -> None:
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", *wish)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_denoise_no_input_is_usage(batch: _Run, tmp_path: Path) -> None:
    code, _, err = batch("denoise", "-o", tmp_path / "out")
    assert code == 2
    assert "INPUTS" in err


def test_denoise_format_and_suffix_name_the_outputs(batch: _Run, folder: Path, tmp_path: Path) -> None:
    wish = ("--format", "tiff", "--suffix", "-clean", "--noise", "20", "--strength", "0", "-q")
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", *wish)
    assert code == 0, err
    names = sorted(p.name for p in (tmp_path / "out").glob("*.*") if p.is_file())
    assert names == ["a-clean.tif", "b-clean.tif", "c-clean.tif"]
    assert tifffile.imread(tmp_path / "out/c-clean.tif").shape == (64, 64, 3)


def test_denoise_format_that_makes_two_inputs_one_output_is_refused(
    batch: _Run, folder: Path, tmp_path: Path
) -> None:
    Image.fromarray(_pixels(9)).save(folder / "a.bmp")
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", "--format", "png")
    assert code == 2
    assert "a.bmp" in err
    assert "a.png" in err
    assert not (tmp_path / "out").exists()


def test_denoise_format_that_cannot_hold_a_picture_is_said_before_computing(
    batch: _Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mdrn_plugin import pipeline

    compute, computed = pipeline.denoise_picture, []

    def note(picture: Any, *args: Any, **rest: Any) -> Any:
        computed.append(picture.pixels.dtype)
        return compute(picture, *args, **rest)

    monkeypatch.setattr(pipeline, "denoise_picture", note)
    wish = ("--format", "jpeg", "--noise", "20", "--strength", "0")
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", *wish)
    assert code == 3
    assert "b.tif" in err
    assert "write PNG or TIFF" in err or "16-bit" in err or "8 bit" in err
    assert computed == [np.uint8, np.uint8]


def test_denoise_retry_failed_with_nothing_to_retry_matches_nothing(
    batch: _Run, folder: Path, tmp_path: Path
) -> None:
    wish = ("--noise", "20", "--strength", "0")
    batch("denoise", folder, "-o", tmp_path / "out", *wish)
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", *wish, "--retry-failed")
    assert code == 4
    assert "no file failed" in err


def test_denoise_report_is_written_also_when_files_fail(batch: _Run, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_text("no")
    wish = ("--noise", "20", "--strength", "0", "--report", tmp_path / "sub/report.html", "--verify")
    code, _, _ = batch("denoise", folder, "-o", tmp_path / "out", *wish)
    assert code == 3
    text = (tmp_path / "sub/report.html").read_text()
    assert text.index("bad.png") < text.index("a.png")
    assert text.count("<article") == 3
    batch("denoise", folder, "-o", tmp_path / "out", *wish)
    text = (tmp_path / "sub/report.html").read_text()
    assert "3 done before" in text
    assert "passed through" in text  # from the ledger


def test_denoise_report_that_cannot_be_written_is_said_before_any_work(
    batch: _Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = batch("denoise", folder, "-o", tmp_path / "out", "--report", tmp_path / "file/r.html")
    assert code == 5
    assert "--report" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_json_lines_have_the_documented_fields(batch: _Run, folder: Path, tmp_path: Path) -> None:
    import re

    root = Path(__file__).resolve().parent.parent
    page = (root / "docs/json.md").read_text()
    tables = [set(re.findall(r"`(\w+)`", " ".join(rows))) for rows in _first_columns(page)]
    (folder / "bad.png").write_text("no")
    _, out, _ = batch("denoise", folder, "-o", tmp_path / "out", "--json", "-q")
    *files, end = [json.loads(line) for line in out.splitlines()]
    assert set(files[2]) == tables[0]
    assert set(files[0]) == tables[0] | tables[1]
    assert set(end) == set(re.findall(r'"(\w+)":', page.split("## The end")[1].split("## ")[0]))
    step = set(files[0]["plan"]["steps"][0])
    assert {f["schema"] for f in (*files, end)} == {1}
    for name in (*files[0]["plan"], *step, *files[0]["noise"][0], *files[0]["residual"]):
        assert f"`{name}`" in page, name


def _first_columns(page: str) -> list[list[str]]:
    tables: list[list[str]] = []
    for line in page.splitlines():
        if line.startswith("| field"):
            tables.append([])
        elif line.startswith("| `") and tables:
            tables[-1].append(line.split("|")[1])
    return tables


def test_info_says_what_the_file_is(batch: _Run, folder: Path) -> None:
    code, out, _ = batch("info", folder / "b.tif")
    assert code == 0
    for word in ("64 Y x 64 X", "uint16", "black 0", "noise", "model mdrn-2b-gray"):
        assert word in out


def test_info_unreadable_file_is_one_line(batch: _Run, tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_text("no")
    code, out, err = batch("info", tmp_path / "x.tif")
    assert (code, out) == (3, "")
    assert len(err.splitlines()) == 1
    assert "x.tif" in err


def test_models_lists_the_zoo(batch: _Run) -> None:
    _, text, _ = batch("models")
    _, data, _ = batch("models", "--json")
    names = {d["name"] for d in json.loads(data)}
    assert len(names) >= 2
    assert all(name in text for name in names)


def test_doctor_finds_a_healthy_installation(batch: _Run) -> None:
    code, out, _ = batch("doctor")
    assert code == 0
    for word in ("torch", "weights", "all intact", "megapixels/s"):
        assert word in out


def test_compare_two_files(batch: _Run, folder: Path) -> None:
    code, out, _ = batch("compare", folder / "a.png", folder / "a.png")
    assert code == 0
    assert "inf dB" in out
    code, _, err = batch("compare", folder / "a.png", folder / "c.png")
    assert code == 2
    assert "equal shapes" in err


def test_every_command_has_help(batch: _Run) -> None:
    for name in cli.cli.commands:
        code, out, _ = batch(name, "--help")
        assert code == 0
        assert len(out) > 100


# ---- as a process of its own -------------------------------------------------------------------


def _start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for k in range(30):
        Image.fromarray(_pixels(k, 96)).save(folder / f"{k:02}.png")
    return folder


def _wait_for_outputs(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        if len(list(out.glob("*.png"))) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {count} outputs: {process.communicate()}")


def test_killed_run_is_finished_by_the_next_with_the_same_bytes(
    batch: _Run, many: Path, tmp_path: Path
) -> None:
    wish = ("--threads", 1, "--noise", 20)
    batch("denoise", many, "-o", tmp_path / "whole", *wish)
    out = tmp_path / "out"
    for count in (2, 9):
        process = _start("denoise", many, "-o", out, *wish)
        _wait_for_outputs(out, count, process)
        process.kill()
        process.communicate()
    code, _, err = batch("denoise", many, "-o", out, *wish)
    assert code == 0
    assert int(err.splitlines()[-1].split(" done")[0]) < 30  # some were done before
    whole = {p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.png")}
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == whole


def test_two_runs_on_one_folder_both_end_well(batch: _Run, many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wish = ("denoise", many, "-o", out, "--threads", 1, "--noise", 20)
    runs = [_start(*wish) for _ in range(3)]
    ends = [(run.communicate(timeout=120)[1], run.returncode) for run in runs]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert sorted(p.name for p in out.iterdir()) == [".mdrn", *(f"{k:02}.png" for k in range(30))]
    code, _, err = batch(*wish)
    assert code == 0
    assert "30 done before" in err


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_leaves_whole_files_and_a_true_ledger(
    many: Path, tmp_path: Path, number: int, expected: int
) -> None:
    out = tmp_path / "out"
    process = _start("denoise", many, "-o", out, "--noise", 20, "--threads", 1)
    _wait_for_outputs(out, 2, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == expected
    assert "Traceback" not in err
    done = [json.loads(x) for x in (out / ".mdrn/ledger.jsonl").read_text().splitlines()]
    names = {r["target"] for r in done if r["event"] == "done"}
    assert names == {p.name for p in out.glob("*.png")}
    assert 0 < len(names) < 30
    assert [p.name for p in out.iterdir() if p.name.endswith(".mdrn-part")] == []


def test_a_run_that_ends_by_itself_leaves_signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    from mdrn_plugin import cli

    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(sys, "argv", ["mdrn-batch", "models"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted_twice_leaves_at_once(tmp_path: Path) -> None:
    """In the middle of one large picture, where the first signal alone waits for the tile."""
    Image.fromarray(_pixels(0, 1500)).save(tmp_path / "large.png")
    out = tmp_path / "out"
    process = _start(
        "denoise", tmp_path / "large.png", "-o", out, "--noise", 20, "--threads", 1, "--tile", 1504
    )
    end = time.monotonic() + 60
    while not (out / ".mdrn/ledger.jsonl").exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # it is being thought about
    began = time.monotonic()
    while process.poll() is None:  # Python sees a signal when the tile's arithmetic returns to it
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)  # a finger that stays on the keys
        assert time.monotonic() - began < 30
    _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(out.glob("*.png")) == []


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_reader_of_the_output_may_leave(folder: Path, tmp_path: Path) -> None:
    wish = ["--json", "-q", "--noise", "20", "--strength", "0"]
    process = subprocess.Popen(
        [*COMMAND, "denoise", str(folder), "-o", str(tmp_path / "out"), *wish],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()  # as `| head` does
    assert process.stderr is not None
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert err == b""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("mount"),
    reason="needs to mount a small disk",
)
def test_full_disk_stops_the_run_with_5_and_no_half_file(tmp_path: Path) -> None:
    folder, disk = tmp_path / "in", tmp_path / "disk"
    folder.mkdir()
    disk.mkdir()
    for k in range(12):
        Image.fromarray(_pixels(k, 256)).save(folder / f"{k:02}.png")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)])
    if mounted.returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        wish = ["--noise", "20", "--strength", "0"]
        done = subprocess.run(
            [*COMMAND, "denoise", str(folder), "-o", str(disk / "out"), *wish], capture_output=True, text=True
        )
        assert done.returncode == 5, done.stderr
        assert "free some space" in done.stderr
        assert "Traceback" not in done.stderr
        left = sorted(p.name for p in (disk / "out").iterdir() if p.name != ".mdrn")
        assert 0 < len(left) < 12
        for name in left:
            np.testing.assert_array_equal(
                np.asarray(Image.open(disk / "out" / name)), np.asarray(Image.open(folder / name))
            )
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_odd_names_go_all_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [" a b.png", "new\nline.png", "-dash.png", "😀.png", "x" * 251 + ".png", os.fsdecode(b"\xff.png")]
    for name in names:
        Image.fromarray(_pixels(1, 24)).save(folder / name)
    wish = ["--noise", "20", "--strength", "0", "--json", "--report", str(tmp_path / "r.html")]
    wish += ["--log-file", str(tmp_path / "log")]
    done = subprocess.run(
        [*COMMAND, "denoise", str(folder), "-o", str(tmp_path / "out"), *wish],
        capture_output=True,
        env={**os.environ, "LANG": "C", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*names, ".mdrn"}
    again = subprocess.run(
        [*COMMAND, "denoise", str(folder), "-o", str(tmp_path / "out"), *wish], capture_output=True
    )
    assert b"0 done, 6 done before" in again.stderr


@pytest.mark.skipif(not shutil.which("prlimit"), reason="needs prlimit to limit the size of files")
def test_output_that_cannot_be_written_stops_the_run_with_5(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        ["prlimit", "--fsize=512", *COMMAND, "denoise", str(folder), "-o", str(out), "--noise", "20"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in out.iterdir() if p.name != ".mdrn"] == []


def test_runs_without_home_cache_or_terminal(folder: Path, tmp_path: Path) -> None:
    nowhere = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "LANG": "C", "NO_COLOR": "1"}
    environment = {**os.environ, **nowhere}
    done = subprocess.run(
        [*COMMAND, "denoise", str(folder / "a.png"), "-o", str(tmp_path / "out")],
        capture_output=True,  # as bytes: text would turn carriage returns into line ends
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert b"1 done" in done.stderr
    assert b"\r" not in done.stderr
    assert b"%" not in done.stderr
    assert b"\x1b" not in done.stderr
