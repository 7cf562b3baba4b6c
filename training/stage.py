"""A stage of learning that lasts a given time: resumable, logged, and the best it saw is what is kept."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from mdrn_plugin.files import write_bytes

from .loop import rate_at
from .precision import autocast

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from .optim import MuonAdam
    from .selfsupervised import SelfOptions

_WARM_UP = 20  # steps
SHARES = {"mean": 0.25, "noise": 0.15, "student": 0.6}
_AVERAGE = 0.995  # what a step leaves of the moving average of the weights, which is what is kept
_CHECKS = 10  # evaluations on the held-back parts per stage
_SAVE_EVERY = 180.0  # s
_STATE = 4  # counts up with what a state holds: an older one is not gone on from

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(slots=True)
class Stage:
    """One stage of learning: resumable, keeps the averaged weights of the best score (lower is better)."""

    name: str
    network: torch.nn.Module
    optimizer: MuonAdam
    rates: tuple[float, float]  # Muon, Adam
    loss: Callable[[int], Tensor]
    score: Callable[[], float]
    inputs: str  # digest of what is learnt from: a state of other pictures is not gone on from
    # Of the share of the stage that is over and the best score: whether to give it up. Asked with each
    # score if the stage lasts a time; with fixed steps never.
    hopeless: Callable[[float, float], bool] | None = None
    # Whether the weights at the end are kept, if they are better than what the stage began with, and
    # not those of the best score.
    last: bool = False
    unused: float = 0.0  # s of its time that it left
    given_up: bool = False

    def run(
        self, folder: Path, options: SelfOptions, log: Log, best: float = math.inf, more: float = 0.0
    ) -> float:
        """Train to the end of the stage; the network then has the best weights seen.

        `more` is time on top of its share, s: what other stages left.
        """
        file = folder / f"{self.name}.safetensors"
        identity = json.dumps([_STATE, dataclasses.asdict(options), self.inputs])
        step, spent, champion, first = 0, 0.0, _copy(self.network), best
        average = _copy(self.network)
        if file.is_file():
            with safe_open(file, "pt") as state:
                meta = json.loads(state.metadata()["progress"])
            if meta["identity"] == identity:
                step, spent, best = meta["step"], meta["spent"], meta["best"]
                self.given_up = meta["given_up"]
                champion, average = self._restore(load_file(file))
        budget = 60 * options.minutes * SHARES[self.name] + more
        fixed = options.steps[list(SHARES).index(self.name)] if options.steps is not None else 0
        total = fixed or _steps_in(budget, spent, step)
        began, saved = time.monotonic() - spent, time.monotonic()
        checks = step * _CHECKS // total
        kind = torch.device(options.device).type
        while step < total and not self.given_up:
            with autocast(kind, options.bf16):
                loss = self.loss(step)
            value = float(loss.detach())
            if math.isfinite(value):
                loss.backward()  # type: ignore[no-untyped-call]
                factor = rate_at(step, total, _WARM_UP)
                self.optimizer.step(self.rates[0] * factor, self.rates[1] * factor)
                _approach(average, self.network, 1 - min(_AVERAGE, (1 + step) / (10 + step)))
            step += 1
            spent = time.monotonic() - began
            total = fixed or _steps_in(budget, spent, step)
            log.step(self.name, step, total)
            if step * _CHECKS // total > checks:
                checks = step * _CHECKS // total
                score = self._score(average)
                taken = {"seconds": round(spent, 1), "cpu_seconds": round(time.process_time(), 1)}
                log.line(self.name, step, total, loss=value, score=score, **taken)
                if score < best or (self.last and step == total and score < first):
                    best, champion = score, {k: v.clone() for k, v in average.items()}
                if self.hopeless is not None and not fixed and step < total:
                    self.given_up = self.hopeless(step / total, best)
            if step == total or self.given_up or time.monotonic() - saved > _SAVE_EVERY:
                progress = {"step": step, "spent": spent, "best": best, "identity": identity}
                progress["given_up"] = self.given_up
                self._save(file, champion, average, progress)
                saved = time.monotonic()
        self.unused = max(0.0, budget - spent) if self.given_up else 0.0
        self.network.load_state_dict(champion)
        return best

    @torch.no_grad()
    def _score(self, average: dict[str, Tensor]) -> float:
        """Return the score of the averaged weights; the network keeps its own."""
        own = _copy(self.network)
        self.network.load_state_dict(average)
        score = self.score()
        self.network.load_state_dict(own)
        return score

    def _save(
        self,
        file: Path,
        champion: dict[str, Tensor],
        average: dict[str, Tensor],
        progress: dict[str, Any],
    ) -> None:
        tensors = {f"weights/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in champion.items()}
        tensors |= {f"average/{k}": v for k, v in average.items()}
        tensors |= {f"optimizer/{k}": v for k, v in self.optimizer.state().items()}
        contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        write_bytes(file, save(contiguous, {"progress": json.dumps(progress)}))

    def _restore(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Take up a state; return its best and its averaged weights."""
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "average": {}, "optimizer": {}}
        for key, value in state.items():
            kind, name = key.split("/", 1)
            groups[kind][name] = value
        self.network.load_state_dict(groups["weights"])
        self.optimizer.load_state(groups["optimizer"])
        return groups["best"], groups["average"]


class Log:
    """``log.jsonl`` in the run's folder, and the caller's progress."""

    def __init__(self, folder: Path, progress: Progress | None) -> None:
        self._file = folder / "log.jsonl"
        self._progress = progress

    def step(self, stage: str, step: int, total: int) -> None:
        """Tell the caller of a step."""
        if self._progress is not None:
            self._progress(stage, step, total)

    def line(self, stage: str, step: int, total: int, **values: float) -> None:
        """Write a line to the log, and to standard error."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        shown = ", ".join(f"{k} {v:.5g}" for k, v in values.items())
        print(f"{stage} {step}/{total}: {shown}", file=sys.stderr, flush=True)


def _steps_in(budget: float, spent: float, step: int) -> int:
    """Return how many steps a time allows for, s, going by those done so far."""
    if spent >= budget:
        return max(1, step)
    return max(step + 1, _WARM_UP + 1, int(step * budget / spent)) if step else 1_000_000


def _copy(network: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


@torch.no_grad()
def _approach(average: dict[str, Tensor], network: torch.nn.Module, share: float) -> None:
    """Move averaged weights a share of the way to those of the network."""
    for name, value in network.state_dict().items():
        average[name].lerp_(value, share)
