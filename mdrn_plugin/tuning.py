"""What ``mdrn-batch doctor --tune`` measured on this computer: which backend is the fastest.

Kept in the user's folder for caches (``MDRN_CACHE`` names another), by computer, versions, models and
threads: with any of them changed it holds no longer. Nothing is ever measured unasked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from mdrn_plugin.files import write_atomic

# A runtime has to be so much faster with every model: less is within what timings scatter.
_GAIN = 0.95
_FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """How long one model took; seconds by backend."""

    model: str
    seconds: dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured, and what follows from it."""

    backend: str
    timings: tuple[Timing, ...]

    def explain(self) -> str:
        """Return the choice and its reason in one line."""
        times = ("/".join(f"{s:.2f}" for s in t.seconds.values()) + f" s {t.model}" for t in self.timings)
        names = "/".join(self.timings[0].seconds) if self.timings else ""
        return f"{self.backend}, by measurement ({names}: {', '.join(times)})"


def choose(timings: tuple[Timing, ...]) -> str:
    """Return the backend that was clearly faster than torch with every model; torch if there is none."""
    runtimes = [name for name in timings[0].seconds if name != "torch"] if timings else []
    for name in runtimes:
        if all(t.seconds[name] <= _GAIN * t.seconds["torch"] for t in timings):
            return name
    return "torch"


def file() -> Path:
    """Return where the measurement is kept."""
    if named := os.environ.get("MDRN_CACHE"):
        return Path(named) / "tuning.json"
    import platformdirs

    return Path(platformdirs.user_cache_dir("mdrn", appauthor=False)) / "tuning.json"


def load(threads: int) -> Tuning | None:
    """Return what was measured here with so many threads; None if that was never done or holds no longer."""
    try:
        record = _records()[_key(threads)]
        timings = tuple(Timing(t["model"], dict(t["seconds"])) for t in record["timings"])
        return Tuning(choose(timings), timings)
    except (TypeError, KeyError):
        return None


def save(tuning: Tuning, threads: int) -> None:
    """Keep a measurement; `OutputUnusable` if the folder cannot be written."""
    records = {**_records(), _key(threads): {"timings": [dataclasses.asdict(t) for t in tuning.timings]}}
    target = file()
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_atomic(target) as output:
        output.write(json.dumps({"format": _FORMAT, "records": records}, indent=1).encode())


def clear() -> bool:
    """Forget all measurements; false if there were none."""
    try:
        file().unlink()
    except FileNotFoundError:
        return False
    return True


def _records() -> dict[str, dict[str, Any]]:
    # A damaged cache is no cache.
    try:
        found = json.loads(file().read_text(encoding="utf-8"))
        return dict(found["records"]) if found["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _key(threads: int) -> str:
    """Return what a measurement holds for."""
    from mdrn_plugin import __version__
    from mdrn_plugin.zoo import shipped

    versions = [__version__]
    for name in ("torch", "onnx", "onnxruntime"):
        try:
            versions.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            versions.append("")
    models = sorted(d.sha256 for d in shipped().descriptors)
    facts = [platform.machine(), _processor(), os.cpu_count(), threads, versions, models]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(names, "")
    except OSError:  # not Linux
        return platform.processor()
