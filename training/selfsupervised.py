"""A model of the user's own, from noisy pictures alone (D-BSN, arXiv 2008.13711).

Three stages, each a share of the time given:

1. *mean*: the blind-spot network learns to predict each pixel from its surroundings.
2. *noise*: the noise level and the variance of that prediction are learnt with it by the constrained
   likelihood; Bayes' rule then gives a denoised picture for every noisy one.
3. *student*: an MDRN, begun from the shipped model that the plan would choose, learns from two kinds of
   pairs: noisy pictures with their Bayes results, and clean pictures with the learnt noise.

It all happens on what the network sees: the plan's stabilised, scaled values, where the noise is white
and of one level. What is kept is decided by Stein's unbiased risk estimate (SURE) on parts held back: it
estimates the error against a clean picture that nobody has, so that a student worse than the shipped
model is never kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from mdrn_plugin.errors import BadOption
from mdrn_plugin.files import write_bytes
from mdrn_plugin.networks.dbsn import (
    DBSN,
    MDC,
    BlindSpot,
    constrained_loss,
    negative_log_likelihood,
    posterior,
)
from mdrn_plugin.networks.mdrn import STRIDE

from .data import dihedral
from .distil import network_of
from .loop import rate_at
from .optim import MuonAdam
from .precision import autocast

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    _Plane = NDArray[np.float32]

_WARM_UP = 20  # steps
_SHARES = {"mean": 0.5, "noise": 0.3, "student": 0.2}
_AVERAGE = 0.995  # what a step leaves of the moving average of the weights, which is what is kept
_PHASES = 6  # px; the blind-spot network splits patches of multiples of it without filling up
_LARGE = 21 * _PHASES  # px, side of the patches it learns from
_CHECKS = 10  # evaluations on the held-back parts per stage
_SAVE_EVERY = 180.0  # s
_STATE = 2  # counts up with what a state holds: an older one is not gone on from
_DENOISED = 12_000_000  # px of Bayes results that the student learns from at most: about a minute
_GROUPS = 32  # of pixels by how sure the network is of them
_SURE_STEP = 1e-3  # of the Monte Carlo divergence, white = 1

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SelfOptions:
    """How a model is learnt.

    Attributes
    ----------
    name : str
        Of the new model: small letters, digits, ``.``, ``_``, ``-``.
    minutes : float
        For all stages together: the learning rate falls with the time that has passed, so a machine
        that others slow down ends in time too. `steps` fixes numbers of steps instead, and what is
        learnt is then a function of pictures, options and seed alone.
    channels, blocks : int
        Of the blind-spot network. 96 and 8 are the paper's, far too slow without a GPU.
    """

    name: str
    minutes: float = 30.0
    steps: tuple[int, int, int] | None = None
    channels: int = 32
    blocks: int = 3
    batch: int = 8
    patch: int = 64  # px; the blind-spot network has larger ones, but as many pixels in a step
    device: str = "cpu"
    bf16: bool = True
    seed: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Learnt:
    """What came out.

    Attributes
    ----------
    weights : dict of Tensor
        The student, float32.
    sigma_255 : float
        Noise level on the scale that the network sees: as measured before, or what is left where
        predictions are surest if that is less.
    sure_before, sure_after, sure_teacher : float
        PSNR in dB, white = 1, estimated by SURE on the parts held back: the shipped model, the
        student, and the Bayes result that it learnt from.
    kept : bool
        Whether the student is better than the model that it began as; else it *is* that model.
    """

    weights: dict[str, Tensor]
    sigma_255: float
    sure_before: float
    sure_after: float
    sure_teacher: float
    kept: bool


def learn(
    planes: Sequence[_Plane],
    sigma: float,
    init: dict[str, Tensor],
    folder: Path,
    options: SelfOptions,
    *,
    clean: Sequence[_Plane] = (),
    progress: Progress | None = None,
) -> Learnt:
    """Learn a model from noisy planes.

    Parameters
    ----------
    planes : sequence of ndarray
        Float32, (channels, height, width), as the network sees them: white = 1, noise white and of
        one level.
    sigma : float
        That level as estimated, white = 1: where the noise network begins.
    init : dict of Tensor
        Weights of the MDRN that the student begins as.
    folder : Path
        State, log and previews; a second call with the same options goes on from there.
    options : SelfOptions
        How.
    clean : sequence of ndarray, optional
        Clean pictures like the noisy ones, same form; without them the Bayes results serve.
    progress : callable, optional
        Called after every step with (stage, step, steps); what it raises ends the run, which goes on
        later from its last state.

    Raises
    ------
    BadOption
        No plane is large enough.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    inputs = _digest(sigma, init, planes, clean)
    data = _Data([torch.from_numpy(np.ascontiguousarray(p, np.float32)) for p in planes], options)
    log = _Log(folder, progress)
    dbsn = _blind_spot(data, sigma, "gaussian", folder, options, inputs, log)

    trust = calibrate(dbsn, [*data.held(device)])
    # What is left where the prediction is surest holds all of the noise: the level cannot be above it.
    level = min(sigma, math.sqrt(float(trust.residual[0])))
    data.keep(_DENOISED)
    denoised = [bayes(dbsn, x.to(device), level, trust, options.bf16).cpu() for x in data.planes]
    for k in range(min(3, len(denoised))):
        _preview(folder / f"preview-{k}.png", data.planes[k], denoised[k])

    student = network_of(init)
    student.load_state_dict(init)
    student.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    references = [torch.from_numpy(np.ascontiguousarray(p, np.float32)) for p in clean]
    targets = [p for p in references if min(p.shape[1:]) >= options.patch] or denoised

    def student_loss(step: int) -> Tensor:
        pairs = _pairs(data, denoised, targets, level, options, step)
        noisy, target, weight = (t.to(device) for t in pairs)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        out: Tensor = (weight * (student(noisy) - target).square()).mean() / level
        return out

    def student_score() -> float:
        return sure([*data.held(device)], student, level)

    before = student_score()
    third = _Stage(
        "student",
        student,
        MuonAdam(student.named_parameters()),
        (0.005, 3e-4),
        student_loss,
        student_score,
        inputs,
    )
    after = third.run(folder, options, log, best=before)

    def teacher(noisy: Tensor) -> Tensor:
        return bayes(dbsn, noisy[0], level, trust, bf16=False)[None]

    return Learnt(
        {k: v.detach().cpu() for k, v in student.state_dict().items()},
        255 * level,
        _decibels(before),
        _decibels(after),
        _decibels(sure([*data.held(device)], teacher, level)),
        after < before,
    )


def learn_blind_spot(
    planes: Sequence[_Plane], sigma: float, noise: str, folder: Path, options: SelfOptions
) -> DBSN:
    """Learn the first two stages alone: a blind-spot network and the variances, for any law of noise.

    Parameters
    ----------
    planes : sequence of ndarray
        Float32, (channels, height, width), white = 1.
    sigma : float
        Standard deviation at which the noise network begins, white = 1.
    noise : str
        See `DBSN`.
    folder : Path
        State and log; a second call with the same arguments goes on from there.
    options : SelfOptions
        How; the two stages have their shares of the time.

    Raises
    ------
    BadOption
        No plane is large enough.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = _Data([torch.from_numpy(np.ascontiguousarray(p, np.float32)) for p in planes], options)
    inputs = noise + _digest(sigma, {}, planes, ())
    return _blind_spot(data, sigma, noise, folder, options, inputs, _Log(folder, None))


def _blind_spot(
    data: _Data,
    sigma: float,
    noise: str,
    folder: Path,
    options: SelfOptions,
    inputs: str,
    log: _Log,
) -> DBSN:
    device = torch.device(options.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        dbsn = DBSN(data.planes[0].shape[0], options.channels, options.blocks, noise).to(device)
    dbsn.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dbsn.start_noise_at(sigma)
    outer = ("head", "tail", "mean_net", "noise_net")
    named = [(n.removeprefix("backbone."), p) for n, p in dbsn.named_parameters()]

    def mean_loss(step: int) -> Tensor:
        noisy = data.large(step).to(device, memory_format=torch.channels_last)
        out: Tensor = (dbsn.backbone(noisy)[0] - noisy).square().mean()
        return out

    def mean_score() -> float:
        errors = [(dbsn.backbone(x)[0] - x).square().mean() for x in data.held(device)]
        return float(torch.stack(errors).mean())

    backbone = [(n, p) for n, p in named if n.split(".")[0] not in ("mean_net", "noise_net")]
    first = _Stage("mean", dbsn, MuonAdam(backbone, outer), (0.01, 1e-3), mean_loss, mean_score, inputs)
    first.run(folder, options, log)

    def noise_loss(step: int) -> Tensor:
        noisy = data.large(step).to(device, memory_format=torch.channels_last)
        return constrained_loss(noisy, dbsn(noisy)).mean()

    def noise_score() -> float:
        values = [negative_log_likelihood(x, dbsn(x)).mean() for x in data.held(device)]
        return float(torch.stack(values).mean())

    second = _Stage("noise", dbsn, MuonAdam(named, outer), (0.004, 1e-3), noise_loss, noise_score, inputs)
    second.run(folder, options, log)
    return dbsn


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Trust:
    """How far predictions were off, measured on noisy pictures.

    Attributes
    ----------
    spread : Tensor (K,)
        Variance of the prediction as the network says it, increasing.
    residual : Tensor (K,)
        Mean squared difference of prediction and noisy pixel where it says so, not decreasing.
    """

    spread: Tensor
    residual: Tensor


@torch.no_grad()
def calibrate(network: DBSN, noisy: Sequence[Tensor]) -> Trust:
    """Measure how far the predictions are off, by how sure the network is of them.

    The constrained loss keeps the variance of the prediction small: for a pixel whose residual has
    the variance v it is least at sqrt(v s) - s with s the variance of the noise, not at v - s, and it
    takes a part of the error of the prediction for noise. Both leave too much of the prediction in
    the Bayes result. What the residual really has can be measured without a clean picture.

    Parameters
    ----------
    network : DBSN
        Of noise that is the same everywhere.
    noisy : sequence of Tensor
        (1, C, H, W) each, white = 1.
    """
    spreads, squares = [], []
    for y in noisy:
        prediction = network(y)
        spread = prediction.mean_covariance.diagonal(dim1=-2, dim2=-1).permute(0, 3, 1, 2)
        spreads.append(spread.flatten())
        squares.append((y - prediction.mean).square().flatten())
    spread, square = torch.cat(spreads), torch.cat(squares)
    order = torch.argsort(spread)
    groups = min(_GROUPS, max(1, len(order) // 1000))
    means = [(spread[part].mean(), square[part].mean()) for part in order.tensor_split(groups)]
    residual = torch.stack([m for _, m in means]).cummax(0).values
    return Trust(torch.stack([m for m, _ in means]), residual)


def bayes(
    network: DBSN, noisy_CHW: Tensor, level: float, trust: Trust | None = None, bf16: bool = True
) -> Tensor:
    """Return the Bayes result for a whole picture, in tiles whose margin is all that a pixel sees.

    `level` is the standard deviation of the noise, white = 1, taken once for all pictures: the
    network's own average over a tile would change from tile to tile. With `trust` the variances of
    predictions are as measured, without it as the network says.
    """
    from mdrn_plugin.engine.tiles import cut

    colours, height, width = noisy_CHW.shape
    blocks = sum(isinstance(m, MDC) for m in network.backbone.branches[0].children())
    out = torch.empty_like(noisy_CHW)
    noise = torch.eye(colours, device=noisy_CHW.device) * level**2
    for tile in cut(height, width, 160, BlindSpot.radius(blocks), 1):
        part = noisy_CHW[None, :, tile.read_top : tile.read_bottom, tile.read_left : tile.read_right]
        part = part.contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), autocast(part.device.type, bf16):
            prediction = network(part)
        if trust is not None:
            spread = prediction.mean_covariance.diagonal(dim1=-2, dim2=-1)
            measured = (_interpolate(spread, trust) - level**2).clamp_min(0)
            prediction = dataclasses.replace(prediction, mean_covariance=torch.diag_embed(measured))
        result = posterior(
            part, dataclasses.replace(prediction, noise_covariance=noise.expand(1, 1, 1, -1, -1))
        )
        top, left = tile.top - tile.read_top, tile.left - tile.read_left
        rows, columns = tile.bottom - tile.top, tile.right - tile.left
        out[:, tile.top : tile.bottom, tile.left : tile.right] = result[
            0, :, top : top + rows, left : left + columns
        ]
    return out


def _interpolate(spread: Tensor, trust: Trust) -> Tensor:
    """Return the residual variance at each spread; beyond the ends, that of the ends."""
    if len(trust.spread) == 1:
        return torch.full_like(spread, float(trust.residual[0]))
    place = torch.searchsorted(trust.spread, spread.contiguous()).clamp(1, len(trust.spread) - 1)
    low, high = trust.spread[place - 1], trust.spread[place]
    share = ((spread - low) / (high - low).clamp_min(1e-20)).clamp(0, 1)
    return torch.lerp(trust.residual[place - 1], trust.residual[place], share)


@torch.no_grad()
def sure(noisy: Sequence[Tensor], denoise: Callable[[Tensor], Tensor], sigma: float) -> float:
    """Return Stein's unbiased estimate of the mean squared error against the unknown clean pictures.

    mean (f(y) - y)^2 - sigma^2 + 2 sigma^2 div f(y) / n, the divergence by one random direction (Monte
    Carlo SURE, Ramani, Blu and Unser 2008). Holds for white Gaussian noise.

    Parameters
    ----------
    noisy : sequence of Tensor
        (1, C, H, W) each, white = 1.
    denoise : callable
        From such a tensor to its denoised form.
    sigma : float
        Standard deviation of the noise, white = 1.
    """
    generator = torch.Generator().manual_seed(0)
    risks = []
    for y in noisy:
        direction = torch.randint(0, 2, y.shape, generator=generator).mul_(2).sub_(1).to(y)
        out = denoise(y)
        divergence = (direction * (denoise(y + _SURE_STEP * direction) - out)).mean() / _SURE_STEP
        risks.append((out - y).square().mean() - sigma**2 + 2 * sigma**2 * divergence)
    return float(torch.stack(risks).mean())


class _Data:
    """Noisy planes: random patches of most, the rest held back."""

    def __init__(self, planes: list[Tensor], options: SelfOptions) -> None:
        patch = options.patch
        self._seed = options.seed
        usable = [p for p in planes if min(p.shape[1:]) >= patch]
        if not usable:
            raise BadOption(
                f"no picture of at least {patch}x{patch} pixels to learn from; give larger pictures"
            )
        self._patch = patch
        if len(usable) >= 8:
            self._held = usable[::8]
            self.planes = [p for k, p in enumerate(usable) if k % 8]
        else:  # few pictures: the lowest eighth of each is held back if what is left is large enough
            rows = [p.shape[1] // 8 // STRIDE * STRIDE for p in usable]
            keep = [r if p.shape[1] - r >= 2 * patch else 0 for p, r in zip(usable, rows, strict=True)]
            self._held = [p[:, p.shape[1] - r :] for p, r in zip(usable, keep, strict=True) if r] or usable[
                :1
            ]
            self.planes = [p[:, : p.shape[1] - r] for p, r in zip(usable, keep, strict=True)]
        # In patches of 64 px a network of radius 20 sees all surroundings of a seventh of the pixels only.
        self._large = min(_LARGE, *(n for p in self.planes for n in p.shape[1:])) // _PHASES * _PHASES
        self._large_count = max(1, round(options.batch * patch**2 / self._large**2))
        self.keep(sum(p[0].numel() for p in self.planes))

    def keep(self, pixels: int) -> None:
        """Learn from now on from at most so many pixels, of planes far apart; one is always kept."""
        share = min(1.0, pixels / sum(p[0].numel() for p in self.planes))
        count = max(1, int(share * len(self.planes)))
        self.planes = [self.planes[k * len(self.planes) // count] for k in range(count)]
        sizes = np.array([p[0].numel() for p in self.planes], float)
        self._probability = sizes / sizes.sum()

    def batch(self, step: int, size: int, of: list[Tensor] | None = None, stream: int = 0) -> Tensor:
        """Return random patches (N, C, patch, patch), a function of seed and step."""
        seeds = [(self._seed, stream, step, k) for k in range(size)]
        return torch.stack([self._cut(of or self.planes, seed, self._patch) for seed in seeds])

    def large(self, step: int) -> Tensor:
        """Return a step's random patches for the blind-spot network (N, C, side, side), likewise."""
        seeds = [(self._seed, 0, step, k) for k in range(self._large_count)]
        return torch.stack([self._cut(self.planes, seed, self._large) for seed in seeds])

    def pairs(self, other: list[Tensor], step: int, size: int) -> tuple[Tensor, Tensor]:
        """Return patches of the planes and of `other` at the same places."""
        return self.batch(step, size), self.batch(step, size, other)

    def _cut(self, of: list[Tensor], seed: tuple[int, ...], side: int) -> Tensor:
        rng = np.random.default_rng(seed)
        same = len(of) == len(self.planes)
        plane = of[int(rng.choice(len(of), p=self._probability) if same else rng.integers(len(of)))]
        top = int(rng.integers(plane.shape[1] - side + 1))
        left = int(rng.integers(plane.shape[2] - side + 1))
        part = plane[:, top : top + side, left : left + side]
        return dihedral(part, int(rng.integers(8)))

    def held(self, device: torch.device, side: int = 256) -> Iterator[Tensor]:
        """Yield up to eight held-back pictures (1, C, H, W), cut to `side` and the network's stride."""
        for plane in self._held[:8]:
            height, width = (min(n, side) // STRIDE * STRIDE for n in plane.shape[1:])
            yield plane[None, :, :height, :width].to(device, memory_format=torch.channels_last)


def _pairs(
    data: _Data,
    denoised: list[Tensor],
    targets: list[Tensor],
    level: float,
    options: SelfOptions,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return noisy patches, what they should become, and the weight of each pair.

    As the paper has it: one in eight is a real noisy picture with its Bayes result, of weight 0.1;
    the others are clean ones with the learnt noise, 0.9 to 1.1 times as strong.
    """
    real = max(1, options.batch // 8)
    noisy, result = data.pairs(denoised, step, real)
    clean = data.batch(step, options.batch - real, targets, stream=1)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    strength = 0.9 + 0.2 * torch.rand(1, generator=generator)
    made = clean + level * strength * torch.randn(clean.shape, generator=generator)
    weight = torch.tensor([0.1] * real + [1.0] * (options.batch - real))[:, None, None, None]
    return torch.cat([noisy, made]), torch.cat([result, clean]), weight


@dataclasses.dataclass(slots=True)
class _Stage:
    """One stage of learning: resumable, keeps the averaged weights of the best score (lower is better)."""

    name: str
    network: torch.nn.Module
    optimizer: MuonAdam
    rates: tuple[float, float]  # Muon, Adam
    loss: Callable[[int], Tensor]
    score: Callable[[], float]
    inputs: str  # digest of what is learnt from: a state of other pictures is not gone on from

    def run(self, folder: Path, options: SelfOptions, log: _Log, best: float = math.inf) -> float:
        """Train to the end of the stage; the network then has the best weights seen."""
        file = folder / f"{self.name}.safetensors"
        identity = json.dumps([_STATE, dataclasses.asdict(options), self.inputs])
        step, spent, champion = 0, 0.0, _copy(self.network)
        average = _copy(self.network)
        if file.is_file():
            with safe_open(file, "pt") as state:
                meta = json.loads(state.metadata()["progress"])
            if meta["identity"] == identity:
                step, spent, best = meta["step"], meta["spent"], meta["best"]
                champion, average = self._restore(load_file(file))
        budget = 60 * options.minutes * _SHARES[self.name]
        fixed = options.steps[list(_SHARES).index(self.name)] if options.steps is not None else 0
        total = fixed or _steps_in(budget, spent, step)
        began, saved = time.monotonic() - spent, time.monotonic()
        checks = step * _CHECKS // total
        kind = torch.device(options.device).type
        while step < total:
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
                if score < best:
                    best, champion = score, {k: v.clone() for k, v in average.items()}
            if step == total or time.monotonic() - saved > _SAVE_EVERY:
                progress = {"step": step, "spent": spent, "best": best, "identity": identity}
                self._save(file, champion, average, progress)
                saved = time.monotonic()
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


class _Log:
    """``log.jsonl`` in the run's folder, and the caller's progress."""

    def __init__(self, folder: Path, progress: Progress | None) -> None:
        self._file = folder / "log.jsonl"
        self._progress = progress

    def step(self, stage: str, step: int, total: int) -> None:
        if self._progress is not None:
            self._progress(stage, step, total)

    def line(self, stage: str, step: int, total: int, **values: float) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        shown = ", ".join(f"{k} {v:.5g}" for k, v in values.items())
        print(f"{stage} {step}/{total}: {shown}", file=sys.stderr, flush=True)


def _digest(sigma: float, init: dict[str, Tensor], planes: Sequence[_Plane], clean: Sequence[_Plane]) -> str:
    digest = hashlib.sha256(repr(sigma).encode())
    for name in sorted(init):
        digest.update(init[name].numpy().tobytes())
    for kind in (planes, clean):
        for plane in kind:
            digest.update(f"{plane.shape}".encode())
            digest.update(np.ascontiguousarray(plane, np.float32).data)
    return digest.hexdigest()


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


def _decibels(risk: float) -> float:
    return -10 * math.log10(max(risk, 1e-12))


def _preview(path: Path, noisy_CHW: Tensor, denoised_CHW: Tensor) -> None:
    """Write noisy and denoised beside each other, at most 512 pixels each, if Pillow is there."""
    try:
        from PIL import Image
    except ImportError:
        return
    import io

    pair = torch.cat([noisy_CHW[:, :512, :512], denoised_CHW[:, :512, :512]], 2)
    low, high = torch.quantile(denoised_CHW[:, :512, :512].flatten(), torch.tensor([0.001, 0.999]))
    scaled = ((pair - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) * 255
    pixels = scaled.permute(1, 2, 0).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "png")
    write_bytes(path, buffer.getvalue())
