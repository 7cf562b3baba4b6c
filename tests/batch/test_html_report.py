"""The report: one file, nothing from outside, what failed on top, usable however many files there are."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser
import numpy as np
import pytest
from PIL import Image

from mdrn_plugin.batch import html_report, preview
from mdrn_plugin.batch.html_report import HtmlReport
from mdrn_plugin.batch.report import Tally
from mdrn_plugin.batch.run import Outcome
from mdrn_plugin.options import Options
from mdrn_plugin.picture import Metadata, Picture, decide_range

if TYPE_CHECKING:
    from mdrn_plugin.result import Result


def _picture(shape: tuple[int, ...] = (90, 120), axes: str = "YX", dtype: Any = np.uint8) -> Picture:
    rng = np.random.default_rng(1)
    pixels = np.clip(rng.normal(100, 20, shape), 0, 250)
    pixels[..., : shape[-1] // 2] += 100 * (axes[-1] == "X")
    pixels = np.clip(pixels, 0, 255).astype(dtype)
    return Picture(pixels, axes, decide_range(pixels))


@pytest.fixture(scope="module")
def result() -> Result:
    from mdrn_plugin.pipeline import denoise_picture

    return denoise_picture(_picture(), Options(noise="20", threads=1))


def _outcome(result: Result, name: str, verdict: str = "good", reasons: tuple[str, ...] = ()) -> Outcome:
    slim = dataclasses.replace(result, picture=None, verdict=verdict, reasons=reasons)  # type: ignore[arg-type]
    pair = preview.make(_picture(), result.picture)
    return Outcome(Path(name), Path("out") / name, "done", seconds=1.5, result=slim, preview=pair)


def _page(tmp_path: Path, outcomes: list[Outcome]) -> Path:
    path = tmp_path / "report.html"
    report = HtmlReport(path)
    for outcome in outcomes:
        report.add(outcome)
    report.write(Tally.of(outcomes), 100)
    report.close()
    return path


def test_report_has_every_file_failures_on_top(tmp_path: Path, result: Result) -> None:
    outcomes = [
        _outcome(result, "good.tif"),
        _outcome(result, "lost.tif", "do not trust", ("what was removed has structure",)),
        Outcome(Path("bad.png"), Path("out/bad.png"), "failed", "bad.png: is empty (0 bytes); get another"),
        _outcome(result, "hm.tif", "check", ("brightness shifted",)),
        Outcome(
            Path("old.tif"),
            Path("out/old.tif"),
            "skipped",
            "done before",
            facts={"verdict": "good", "plan": {"steps": [{"model": "mdrn-2b-gray-20-35"}]}},
        ),
    ]
    text = _page(tmp_path, outcomes).read_text()
    places = [text.index(f"{name}</b>") for name in ("bad.png", "old.tif")]
    cards = [text.index(f'title="{name}"') for name in ("lost.tif", "hm.tif", "good.tif")]
    assert [places[0], *cards, places[1]] == sorted([*places, *cards])
    model = next(s.model for s in result.plan.steps)
    for words in (
        "is empty (0 bytes)",
        "has structure",
        "brightness shifted",
        str(model),
        "mdrn-2b-gray-20-35",
        "1.5 s",
        "of the noise",
        f"{result.plan.steps[0].sigma_255:.1f}/255",
        "3 done, 1 done before, 1 failed in 2 min",
    ):
        assert words in text, words
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_report_loads_nothing_and_names_are_only_text(tmp_path: Path, result: Result) -> None:
    evil = '<img src=x onerror=alert(1)>"&\udcff.png'
    outcomes = [
        _outcome(result, evil),
        Outcome(Path(evil), None, "failed", f"{evil}: </script><script>alert(2)</script>"),
    ]
    text = _page(tmp_path, outcomes).read_text("utf-8")
    assert "<img src=x" not in text
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(s.startswith(("data:", "#")) for s in sources)
    assert "url(" not in text
    assert "default-src 'none'" in text


def test_pictures_of_the_report_are_bounded(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html_report, "MAX_PICTURES", 2)
    outcomes = [_outcome(result, f"{k}.tif") for k in range(4)]
    outcomes += [_outcome(result, "doubt.tif", "check", ("why",))]
    text = _page(tmp_path, outcomes).read_text()
    assert text.count("<template>") == 3
    assert text.count("<article") == 5


def test_preview_of_a_large_picture_is_small() -> None:
    large = _picture((2000, 3001))
    made = preview.make(large, large)
    assert max(made.whole.width, made.whole.height) == preview.WHOLE_PX
    assert len(made.crops) == 2
    total = sum(len(p.before) + len(p.after) for p in (made.whole, *made.crops))
    assert total < 60_000  # noise of 20: 1,000 files stay below 60 MB


@pytest.mark.parametrize(
    ("shape", "axes", "dtype"),
    [
        ((1, 1), "YX", np.uint8),
        ((1, 900), "YX", np.uint16),
        ((900, 1), "YX", np.float32),
        ((5, 40, 50), "ZYX", np.uint16),
        ((40, 50, 4), "YXS", np.uint8),
        ((40, 50), "YX", np.bool_),
        ((40, 50), "YX", np.int32),
    ],
)
def test_preview_of_every_kind_of_picture(shape: tuple[int, ...], axes: str, dtype: Any) -> None:
    picture = _picture(shape, axes, dtype)
    if dtype is np.float32:
        picture.pixels[0, 0] = np.nan
    made = preview.make(picture, picture)
    for pair in (made.whole, *made.crops):
        for data in (pair.before, pair.after):
            assert Image.open(io.BytesIO(data)).size == (pair.width, pair.height)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_preview_is_turned_as_viewers_turn_the_file(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.full((60, 80), 40, np.uint8)
    pixels[:20, :30] = 220
    exif = Image.Exif()
    exif[274] = orientation
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    picture = Picture(pixels, "YX", decide_range(pixels), metadata=Metadata(format="jpeg", exif=data))
    image = Image.fromarray(pixels)
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    whole = preview.make(picture, picture).whole
    shown = np.asarray(Image.open(io.BytesIO(whole.before)).convert("L")).astype(int)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 12


needs_chromium = pytest.mark.skipif(
    browser.find() is None, reason="no Chromium to open the report in: install the package chromium"
)


@needs_chromium
def test_report_works_in_a_browser(tmp_path: Path, result: Result) -> None:
    outcomes = [_outcome(result, f"long/path/of/a/folder/{k:03}.tif") for k in range(60)]
    outcomes.insert(5, Outcome(Path("bad.png"), None, "failed", "bad.png: is empty; get another"))
    path = _page(tmp_path, outcomes)
    shown = "[...document.querySelectorAll('figure img')].every(i => i.complete && i.naturalWidth > 0)"
    with browser.chromium(tmp_path / "profile") as page:
        for width, height, phone in ((1280, 900, False), (390, 844, True)):
            page.open(path, width, height, phone=phone)
            page.wait(f"document.querySelector('figure') && {shown}")
            # Nothing sticks out to the side.
            assert page.value("document.documentElement.scrollWidth") <= width
            # Only what is near is alive.
            assert 0 < page.value("document.querySelectorAll('figure').length") < 3 * 60 / 2
            box = page.value(
                "(() => { const c = document.querySelector('.compare'); c.scrollIntoView({block: 'center'});"
                "const r = c.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
            )
            left, top, wide, high = box
            assert wide > 200
            middle = top + high / 2
            page.drag((left + wide / 2, middle), (left + wide * 0.2, middle))
            at = page.value(
                "(() => { const c = document.querySelector('.compare');"
                "const after = getComputedStyle(c.querySelector('.after'));"
                "return [c.style.getPropertyValue('--at'), after.clipPath,"
                "c.querySelector('i').getBoundingClientRect().left]; })()"
            )
            assert 10 < float(at[0].rstrip("%")) < 30
            assert "inset" in at[1]
            assert at[2] == pytest.approx(left + wide * float(at[0].rstrip("%")) / 100, abs=3)
            if folder := os.environ.get("MDRN_SCREENSHOTS"):
                page.screenshot(Path(folder) / f"report-{width}.png")
            page.value("window.scrollTo(0, document.body.scrollHeight)")
            page.wait(f"document.querySelectorAll('article')[59].querySelector('figure') && {shown}")
            page.wait("!document.querySelectorAll('article')[0].querySelector('figure')")
        search = "const f = document.querySelector('[type=search]'); f.value = '007';"
        page.value(search + "f.dispatchEvent(new Event('input', {bubbles: true}))")
        assert page.value("document.querySelectorAll('[data-name]:not([hidden])').length") == 1
        assert page.value("document.querySelector('#failed').hidden")
        assert page.complaints == []
        assert {url for url in page.requests if not url.startswith("data:")} == {path.as_uri()}


@needs_chromium
@pytest.mark.slow
def test_report_over_a_thousand_files_is_usable(tmp_path: Path, result: Result) -> None:
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal(120, 25, (480, 640)), 0, 255).astype(np.uint8)
    noisy = Picture(pixels, "YX", decide_range(pixels))
    clean = dataclasses.replace(noisy, pixels=(pixels // 8 + 105).astype(np.uint8))
    slim = _outcome(result, "x")
    report, tally = HtmlReport(tmp_path / "report.html"), Tally()
    for k in range(1000):
        one = dataclasses.replace(slim, source=Path(f"{k:04}.tif"), preview=preview.make(noisy, clean))
        report.add(one)
        tally.add(one)
    report.write(tally, 5000)
    report.close()
    size = (tmp_path / "report.html").stat().st_size
    assert size < 80e6
    with browser.chromium(tmp_path / "profile") as page:
        began = time.monotonic()
        page.open(tmp_path / "report.html", 1280, 900)
        page.wait("document.querySelector('figure img')?.naturalWidth > 0")
        opened = time.monotonic() - began
        page.value("window.scrollTo(0, document.body.scrollHeight / 2)")
        page.wait("[...document.querySelectorAll('figure img')].every(i => i.naturalWidth > 0)")
        alive = page.value("document.querySelectorAll('figure').length")
        heap = page.value("performance.memory.usedJSHeapSize")
        print(
            f"{size / 1e6:.0f} MB, opened in {opened:.1f} s, {alive} figures alive, heap {heap / 1e6:.0f} MB"
        )
        assert opened < 20
        assert alive < 200
        assert page.complaints == []
