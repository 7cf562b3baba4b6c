"""What a run did, in lines for people and lines for machines."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mdrn_plugin.batch.run import Outcome

SCHEMA = 1


def line(outcome: Outcome) -> str:
    """Return one line on one file."""
    if outcome.state == "failed":
        return f"failed   {outcome.reason}"
    if outcome.state == "skipped":
        return f"skipped  {outcome.source}: {outcome.reason}"
    result = outcome.result
    assert result is not None
    # On the scale of the network: a dim 16-bit picture would read 0.0 of 255 otherwise.
    levels = ", ".join(f"{step.sigma_255:.1f}" for step in result.plan.steps)
    text = f"done     {outcome.source}: noise {levels}/255, {outcome.seconds:.1f} s"
    if result.verdict != "good":
        text += f"; {result.verdict}: {result.reasons[0]}"
    if result.plan.notes:
        text += f"; note: {result.plan.notes[0]}"
    return text


def record(outcome: Outcome) -> str:
    """Return one JSON line on one file; schema `SCHEMA`, described in docs/json.md."""
    result = outcome.result
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "event": "file",
        "source": os.fspath(outcome.source),
        "target": os.fspath(outcome.target) if outcome.target else None,
        "state": outcome.state,
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 3),
    }
    if result is not None:
        data |= {
            "noise": [dataclasses.asdict(p) for p in result.profiles],
            "plan": result.plan.as_dict(),
            "residual": dataclasses.asdict(result.check) if result.check else None,
            "verdict": result.verdict,
            "reasons": list(result.reasons),
        }
    return json.dumps(data)


def summary(outcomes: Iterable[Outcome], seconds: float) -> str:
    """Return what a person wants to know at the end, in at most five lines."""
    outcomes = list(outcomes)
    count = Counter(o.state for o in outcomes)
    lines = [
        f"{count['done']} done, {count['skipped']} done before, {count['failed']} failed in {seconds:.1f} s"
    ]
    doubtful = [o for o in outcomes if o.result and o.result.verdict == "do not trust"]
    if doubtful:
        lines.append(f"{len(doubtful)} to look at: the result may not be right, such as {doubtful[0].target}")
    failed = [o for o in outcomes if o.state == "failed"]
    if failed:
        lines.append(f"first failure: {failed[0].reason}")
    return "\n".join(lines)


def totals(outcomes: Iterable[Outcome], seconds: float) -> str:
    """Return the closing JSON line of a run."""
    count = Counter(o.state for o in outcomes)
    return json.dumps(
        {
            "schema": SCHEMA,
            "event": "end",
            "done": count["done"],
            "skipped": count["skipped"],
            "failed": count["failed"],
            "seconds": round(seconds, 3),
        }
    )
