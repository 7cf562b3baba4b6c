"""What a run did, in lines for people and lines for machines."""

from __future__ import annotations

import dataclasses
import json
import os
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


@dataclasses.dataclass(slots=True)
class Tally:
    """How many files ended how; all that is kept of them, however many there are."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    doubtful: int = 0  # done, but the verdict is "do not trust"
    bug: bool = False  # a failure was a fault of this program
    first_failure: str = ""
    first_doubtful: str = ""

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Tally:
        """Count outcomes."""
        tally = cls()
        for outcome in outcomes:
            tally.add(outcome)
        return tally

    @property
    def count(self) -> int:
        """All files."""
        return self.done + self.skipped + self.failed

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        setattr(self, outcome.state, getattr(self, outcome.state) + 1)
        self.bug = self.bug or outcome.bug
        if outcome.state == "failed":
            self.first_failure = self.first_failure or outcome.reason
        if outcome.result is not None and outcome.result.verdict == "do not trust":
            self.doubtful += 1
            self.first_doubtful = self.first_doubtful or str(outcome.target)


def summary(outcomes: Tally | Iterable[Outcome], seconds: float) -> str:
    """Return what a person wants to know at the end, in at most five lines."""
    tally = outcomes if isinstance(outcomes, Tally) else Tally.of(outcomes)
    lines = [f"{tally.done} done, {tally.skipped} done before, {tally.failed} failed in {seconds:.1f} s"]
    if tally.doubtful:
        lines.append(
            f"{tally.doubtful} to look at: the result may not be right, such as {tally.first_doubtful}"
        )
    if tally.failed:
        lines.append(f"first failure: {tally.first_failure}")
    return "\n".join(lines)


def totals(tally: Tally, seconds: float) -> str:
    """Return the closing JSON line of a run."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "event": "end",
            "done": tally.done,
            "skipped": tally.skipped,
            "failed": tally.failed,
            "seconds": round(seconds, 3),
        }
    )
