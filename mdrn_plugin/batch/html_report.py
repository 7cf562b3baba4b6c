"""The report of a run as one HTML file: nothing is loaded from anywhere, failures are on top.

What belongs to a file goes to a scratch file as it is told, so that a report over thousands of
files takes no memory; the page is put together at the end. Its pictures lie in inert templates
and come to life while they are near the window.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import os
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mdrn_plugin.errors import OutputUnusable
from mdrn_plugin.files import write_atomic

if TYPE_CHECKING:
    from mdrn_plugin.batch.preview import Pair, Preview
    from mdrn_plugin.batch.report import Tally
    from mdrn_plugin.batch.run import Outcome

# More pictures than this make a page that browsers refuse (1,000 are about 40 MB). Those with a
# doubtful verdict have as much room again.
MAX_PICTURES = 1000

_SECTIONS = (
    ("failed", "Failed"),
    ("distrust", "Do not trust"),
    ("check", "Check"),
    ("good", "Good"),
    ("skipped", "Done before"),
)
_SECTION_OF = {"good": "good", "check": "check", "do not trust": "distrust"}


class HtmlReport:
    """Collects outcomes and writes the page.

    Parameters
    ----------
    path : Path
        Where it goes; an earlier report is replaced.

    Raises
    ------
    OutputUnusable
        The folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Beside the report: there is room, and it need not be any for temporary files elsewhere.
            self._scratch: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        except OSError as error:
            raise OutputUnusable(
                f"{path}: the report cannot be written ({error.strerror}); choose another --report"
            ) from error
        self._parts: dict[str, list[tuple[int, int]]] = {name: [] for name, _ in _SECTIONS}
        self._pictures = {"good": 0, "doubtful": 0}
        self._end = 0

    def add(self, outcome: Outcome) -> None:
        """Take in one file."""
        section = _section(outcome)
        preview = outcome.preview
        if preview is not None:
            kind = "good" if section == "good" else "doubtful"
            self._pictures[kind] += 1
            if self._pictures[kind] > MAX_PICTURES:
                preview = None
        text = _row(outcome) if section in ("failed", "skipped") else _card(outcome, section, preview)
        data = text.encode("utf-8", "backslashreplace")
        try:
            self._scratch.seek(self._end)
            self._scratch.write(data)
        except OSError as error:
            raise OutputUnusable(
                f"{self._path}: the report cannot be written ({error.strerror}); free some space"
            ) from error
        self._parts[section].append((self._end, len(data)))
        self._end += len(data)

    def write(self, tally: Tally, seconds: float) -> None:
        """Write the page; may be called again when more was added."""
        with write_atomic(self._path) as file:
            file.write(_head(tally, seconds, {k: len(v) for k, v in self._parts.items()}).encode())
            for name, title in _SECTIONS:
                if not self._parts[name]:
                    continue
                plain = name in ("failed", "skipped")
                file.write(f'<section id="{name}"><h2>{title}</h2>'.encode())
                file.write(b"<ul>" if plain else b'<div class="cards">')
                for at, length in self._parts[name]:
                    self._scratch.seek(at)
                    file.write(self._scratch.read(length))
                file.write((b"</ul>" if plain else b"</div>") + b"</section>\n")
            file.write(_tail().encode())

    def close(self) -> None:
        """Let the scratch file go."""
        self._scratch.close()


def _section(outcome: Outcome) -> str:
    if outcome.state != "done" or outcome.result is None:
        return outcome.state
    return _SECTION_OF[outcome.result.verdict]


def _text(value: object) -> str:
    return html.escape(str(value))


def _row(outcome: Outcome) -> str:
    """Return a line on a file without pictures: failed, or done before."""
    name = _text(os.fspath(outcome.source))
    reason = outcome.reason.removeprefix(f"{outcome.source}: ")
    facts = outcome.facts or {}
    words = [_text(reason)]
    if outcome.state == "skipped" and facts.get("verdict"):
        models = ", ".join(_model(step) for step in facts.get("plan", {}).get("steps", []))
        words.append(f"{_text(facts['verdict'])}; {_text(models)}")
    return f'<li data-name="{name.lower()}"><b>{name}</b> <span>{" · ".join(words)}</span></li>\n'


def _card(outcome: Outcome, section: str, preview: Preview | None) -> str:
    result = outcome.result
    assert result is not None
    name = _text(os.fspath(outcome.source))
    rows: list[tuple[str, str]] = []
    rows.append(("Verdict", "; ".join([result.verdict, *result.reasons])))
    rows.append(("Noise", ", ".join(f"{s.sigma_255:.1f}/255" for s in result.plan.steps)))
    rows.append(("Model", ", ".join(dict.fromkeys(_model(dataclasses.asdict(s)) for s in result.plan.steps))))
    if result.check is not None:
        c = result.check
        rows.append(
            (
                "Residual",
                f"{c.std:.2f} of the noise, neighbours correlate by {max(c.correlation):.2f}, "
                f"brightness moved by {100 * c.drift:.2f} %",
            )
        )
    rows.append(("Time", f"{outcome.seconds:.1f} s"))
    if result.plan.notes:
        rows.append(("Note", "; ".join(result.plan.notes)))
    facts = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in rows)
    return (
        f'<article class="{section}" data-name="{name.lower()}"><h3 title="{name}">{name}</h3>'
        f"<dl>{facts}</dl>{_pictures(preview)}</article>\n"
    )


def _model(step: dict[str, Any]) -> str:
    return str(step.get("model") or "passed through")


def _pictures(preview: Preview | None) -> str:
    if preview is None:
        return "<p>No pictures: the report has as many as a browser can show.</p>"
    whole, crops = preview.whole, preview.crops
    inside = _pair(whole, "whole") + "".join(_pair(crop, "crop") for crop in crops)
    return f'<div class="pictures"><template>{inside}</template></div>'


def _pair(pair: Pair, kind: str) -> str:
    def image(data: bytes, what: str) -> str:
        coded = base64.b64encode(data).decode()
        return (
            f'<img class="{what}" width="{pair.width}" height="{pair.height}" alt="{pair.label}, {what}" '
            f'src="data:image/webp;base64,{coded}">'
        )

    return (
        f'<figure class="{kind}"><div class="compare">{image(pair.before, "before")}'
        f'{image(pair.after, "after")}<i></i><input type="range" min="0" max="100" value="50" '
        f'aria-label="{pair.label}: before and after"></div><figcaption>{pair.label}</figcaption></figure>'
    )


def _head(tally: Tally, seconds: float, counts: dict[str, int]) -> str:
    links = "".join(
        f'<a class="{name}" href="#{name}">{counts[name]} {title.lower()}</a>'
        for name, title in _SECTIONS
        if counts[name]
    )
    allowed = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>Denoised: {tally.done} done, {tally.failed} failed</title><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><header><h1>Denoised</h1>"
        f"<p>{tally.done} done, {tally.skipped} done before, {tally.failed} failed in {_duration(seconds)}"
        "</p>"
        f'<nav>{links}<input type="search" placeholder="Find a file" aria-label="Find a file"></nav></header>'
        '<main><p id="none" hidden>No file of that name.</p>\n'
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _tail() -> str:
    return (
        "</main><noscript><p>The pictures need JavaScript; everything else does not.</p></noscript>"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


_STYLE = """
:root{color-scheme:light dark;--back:#f6f6f4;--card:#fff;--ink:#1c1c1a;--dim:#65655f;--line:#dcdcd6;
--failed:#b3261e;--distrust:#b3261e;--check:#8a5a00;--good:#23713a;--skipped:#65655f}
@media(prefers-color-scheme:dark){:root{--back:#161615;--card:#20201f;--ink:#ecece8;--dim:#a3a39c;--line:#3a3a37;
--failed:#ff8a80;--distrust:#ff8a80;--check:#e5b567;--good:#7fce96;--skipped:#a3a39c}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
header,main{max-width:1320px;margin:auto;padding:0 16px}
header{position:sticky;top:0;z-index:2;background:var(--back);max-width:none;
border-bottom:1px solid var(--line)}
header>*{max-width:1288px;margin:0 auto}
h1{font-size:20px;padding-top:10px}
nav{display:flex;flex-wrap:wrap;gap:6px;padding:8px 0 10px}
nav a{color:inherit;text-decoration:none;padding:3px 10px;border:1px solid var(--line);border-radius:99px;
background:var(--card);border-left:6px solid}
nav a.failed{border-left-color:var(--failed)}nav a.distrust{border-left-color:var(--distrust)}
nav a.check{border-left-color:var(--check)}nav a.good{border-left-color:var(--good)}
nav a.skipped{border-left-color:var(--skipped)}
nav input{font:inherit;padding:3px 10px;border:1px solid var(--line);border-radius:99px;
background:var(--card);color:inherit;flex:1 1 140px;max-width:280px;min-width:0}
section{scroll-margin-top:130px}
h2{font-size:17px;margin:22px 0 8px}
ul{list-style:none;margin:0;padding:0;background:var(--card);border:1px solid var(--line);border-radius:8px}
li{padding:7px 12px;border-top:1px solid var(--line);overflow-wrap:anywhere;content-visibility:auto;
contain-intrinsic-size:auto 38px}
li:first-child{border-top:0}
li span{color:var(--dim);margin-left:6px}
#failed ul{border-left:6px solid var(--failed)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:14px}
article{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;min-width:0;
border-top:4px solid var(--good);content-visibility:auto;contain-intrinsic-size:auto 620px}
article.check{border-top-color:var(--check)}article.distrust{border-top-color:var(--distrust)}
h3{font-size:15px;margin:0 0 6px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;direction:rtl;
text-align:left;unicode-bidi:plaintext}
dl{display:grid;grid-template-columns:auto 1fr;gap:1px 10px;margin:0 0 10px;font-size:13px}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.pictures{display:grid;grid-template-columns:1fr 1fr;gap:8px;min-height:200px;align-items:start}
figure{margin:0;min-width:0}.whole{grid-column:1/-1}
figcaption{font-size:12px;color:var(--dim)}
.compare{--at:50%;position:relative;overflow:hidden;border-radius:4px;background:#8884}
.compare img{display:block;width:100%;height:auto}
.whole .compare img{max-height:420px;object-fit:contain}
.crop img{image-rendering:pixelated}
.compare .after{position:absolute;inset:0;height:100%;clip-path:inset(0 0 0 var(--at))}
.compare i{position:absolute;top:0;bottom:0;left:var(--at);width:2px;margin-left:-1px;background:#fff;
box-shadow:0 0 2px #000;pointer-events:none}
.compare i::after{content:"";position:absolute;top:50%;left:50%;width:18px;height:18px;margin:-9px;
border-radius:50%;background:#fff;box-shadow:0 0 3px #000}
.compare::before,.compare::after{position:absolute;top:5px;z-index:1;font-size:11px;padding:0 5px;
border-radius:3px;background:#000a;color:#fff;pointer-events:none}
.compare::before{content:"before";left:5px}.compare::after{content:"after";right:5px}
.compare input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;
cursor:ew-resize;touch-action:pan-y}
.compare:focus-within{outline:2px solid #4c8dff;outline-offset:1px}
@media(max-width:600px){header,main{padding:0 10px}header{position:static}section{scroll-margin-top:8px}}
"""

_SCRIPT = """
"use strict";
const near = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    const there = target.querySelector("figure");
    if (isIntersecting && !there) {
      target.append(target.querySelector("template").content.cloneNode(true));
    } else if (!isIntersecting && there) {
      target.style.minHeight = target.offsetHeight + "px";
      for (const figure of target.querySelectorAll("figure")) figure.remove();
    }
  }
}, {rootMargin: "800px"});
for (const box of document.querySelectorAll(".pictures")) near.observe(box);
document.addEventListener("input", event => {
  const box = event.target.closest(".compare");
  if (box) { box.style.setProperty("--at", event.target.value + "%"); return; }
  const wanted = event.target.value.trim().toLowerCase();
  let found = 0;
  for (const item of document.querySelectorAll("[data-name]")) {
    item.hidden = !item.dataset.name.includes(wanted);
    found += !item.hidden;
  }
  for (const part of document.querySelectorAll("section")) {
    part.hidden = !part.querySelector("[data-name]:not([hidden])");
  }
  document.getElementById("none").hidden = found > 0;
});
"""
