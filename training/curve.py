"""The learning curve of a run as a PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from mdrn_plugin.files import write_bytes


def draw_curve(log: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw loss and validation PSNR over steps.

    Returns
    -------
    bool
        False if matplotlib is not installed (``pip install mdrn-plugin[train]``); the log has
        all the numbers.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    losses = [(line["step"], line["loss"]) for line in log if "loss" in line]
    if losses:
        steps, values = zip(*losses, strict=True)
        left.plot(steps, values, color="0.8", linewidth=0.8)
        left.plot(steps, _smooth(list(values)), color="C0", linewidth=1.5)
        left.set_yscale("log")
    left.set(xlabel="step", ylabel="loss", title=title)
    levels = sorted({k for line in log for k in line if k.startswith("psnr_")}, key=lambda k: float(k[5:]))
    for key in levels:
        points = [(line["step"], line[key]) for line in log if key in line]
        right.plot(*zip(*points, strict=True), marker=".", label=f"σ {key[5:]}: {points[-1][1]:.2f} dB")
    right.set(xlabel="step", ylabel="validation PSNR, dB")
    if levels:
        right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue())
    return True


def _smooth(values: list[float], keep: float = 0.95) -> list[float]:
    out, average = [], values[0]
    for value in values:
        average = keep * average + (1 - keep) * value
        out.append(average)
    return out
