"""A model of the user's own, from noisy pictures alone (D-BSN, arXiv 2008.13711).

Three stages, each a share of the time given:

1. *mean*: the blind-spot network learns to predict each pixel from its surroundings.
2. *noise*: the noise level and the variance of that prediction are learnt with it by the constrained
   likelihood; Bayes' rule then gives a denoised picture for every noisy one.
3. *student*: an MDRN, begun from the shipped model that the plan would choose, learns from pairs of
   recorrupted pictures: two made of each noisy one, whose noise is independent (Recorrupted-to-Recorrupted,
   Pang et al., CVPR 2021). Where the Bayes results are better than what it begins as, or there are clean
   pictures, it learns from the paper's two kinds of pairs as well: noisy pictures with their Bayes
   results, and clean pictures with the learnt noise.

A blind-spot network that is far from having anything to teach is given up, and the student has its time.

It all happens on what the network sees: the plan's stabilised, scaled values, where the noise is white
and of one level. What is kept is decided by Stein's unbiased risk estimate (SURE) on parts held back: it
estimates the error against a clean picture that nobody has, so that a student worse than the shipped
model is never kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from mdrn_plugin.errors import BadOption
from mdrn_plugin.files import write_bytes
from mdrn_plugin.networks.dbsn import (
    DBSN,
    constrained_loss,
    negative_log_likelihood,
)
from mdrn_plugin.networks.mdrn import STRIDE

from .bayes import bayes, calibrate, sure
from .data import dihedral
from .distil import network_of
from .optim import MuonAdam
from .precision import autocast
from .stage import SHARES, Log, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from .stage import Progress

    _Plane = NDArray[np.float32]

_PHASES = 6  # px; the blind-spot network splits patches of multiples of it without filling up
_LARGE = 21 * _PHASES  # px, side of the patches it learns from
_DENOISED = 12_000_000  # px of Bayes results that the student learns from at most: about a minute
_RECORRUPTED = 96  # px, side of the patches of recorrupted pictures
_PREVIEW = 512  # px a side at most
# Of the pixels in order of their denoised values: where the quarter with the least noise has so much of what
# was measured, or the noise is not of one level. Photographs have 0.98 to 1.07, a fine texture 2.1
# (differences hold what it is made of, too), W2S's frames, of few photons, 0.51 to 0.68.
_GROUPS, _QUARTER, _ONE_LEVEL = 16, 3, 0.8
_DIFFERENCE = torch.tensor([[1.0, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6  # white noise stays as strong
_ALPHA = 0.5  # noise added to the input, times its own
# Bayes results so many times worse than the shipped model, by the share of the first stage that is over, are
# not expected to become better than it in what is left: from a fifth and from half of it on. Of one
# photograph they went from 3.1 to 1.3 times, by the errors of the predictions on the parts held back.
_HOPELESS = ((0.15, 2.0), (0.5, 1.5))
_PREVIEW_EVERY = 120.0  # s
_LEAST_HELD = 64  # px, but no more than an eighth of a picture's height
_HELD = (8, 256)  # parts held back that are looked at, and their side, px


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
        student, and the Bayes results (None where the blind-spot network was given up).
    kept : bool
        Whether the student is better than the model that it began as; else it *is* that model.
    taught : bool
        Whether the student learnt from the Bayes results and the clean pictures too, and not from the
        noisy pictures alone.
    """

    weights: dict[str, Tensor]
    sigma_255: float
    sure_before: float
    sure_after: float
    sure_teacher: float | None
    kept: bool
    taught: bool


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
        No plane is large enough, none of the clean pictures is, or the noise is not of one level.
    """
    references = [torch.from_numpy(np.ascontiguousarray(p, np.float32)) for p in clean]
    references = [p for p in references if min(p.shape[1:]) >= options.patch]
    if len(clean) and not references:
        raise BadOption(
            f"no clean picture of at least {options.patch}x{options.patch} pixels to learn from; give larger "
            "ones, or none"
        )
    device = torch.device(options.device)
    inputs = _digest(sigma, init, planes, clean)
    data = _Data([torch.from_numpy(np.ascontiguousarray(p, np.float32)) for p in planes], options)
    student = network_of(init)
    student.load_state_dict(init)
    student.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    held = [*data.held(device)]
    _require_one_level(held, student, sigma)
    folder.mkdir(parents=True, exist_ok=True)
    log = Log(folder, progress)
    shown = time.monotonic()
    _show(folder, data.planes, student, device)
    risk = sure(held, student, sigma)

    def hopeless(done: float, error: float) -> bool:
        """Whether Bayes results from predictions that far from noisy pixels are too bad; see `_HOPELESS`."""
        spread = max(error - sigma**2, 0.0)
        bayes_risk = spread * sigma**2 / (spread + sigma**2)
        return any(done >= share and bayes_risk > times * max(risk, 0) for share, times in _HOPELESS)

    dbsn, unused = _blind_spot(
        data, sigma, "gaussian", folder, options, inputs, log, None if references else hopeless
    )
    level, teachers = sigma, math.inf
    denoised: list[Tensor] = []
    if dbsn is not None:
        blind_spot, trust = dbsn, calibrate(dbsn, held)
        # What is left where the prediction is surest holds all of the noise: the level cannot be above it.
        level = min(sigma, math.sqrt(float(trust.residual[0])))
        teachers = sure(held, lambda x: bayes(blind_spot, x[0], level, trust, bf16=False)[None], level)

    def student_score() -> float:
        nonlocal shown
        if time.monotonic() - shown > _PREVIEW_EVERY:
            shown = time.monotonic()
            _show(folder, data.planes, student, device)
        return sure(held, student, level)

    before = student_score()
    if dbsn is not None and (teachers < before or references):
        data.keep(_DENOISED)
        denoised = [bayes(dbsn, x.to(device), level, trust, options.bf16).cpu() for x in data.planes]

    def student_loss(step: int) -> Tensor:
        noisy, target = (t.to(device) for t in _recorrupted(data, level, options, step))
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        loss: Tensor = (student(noisy) - target).square().mean()
        if denoised:
            pairs = _pairs(data, denoised, references or denoised, level, options, step)
            noisy, target, weight = (t.to(device) for t in pairs)
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            loss = loss + (weight * (student(noisy) - target).square()).mean()
        return loss / level

    third = Stage(
        "student",
        student,
        MuonAdam(student.named_parameters()),
        (0.005, 5e-4),
        student_loss,
        student_score,
        inputs,
        # Of few pictures most is learnt from, and what was learnt last knows it best, though the parts held
        # back may have been at their best before.
        last=data.few,
    )
    after = third.run(folder, options, log, before, unused)
    _show(folder, data.planes, student, device)

    return Learnt(
        {k: v.detach().cpu() for k, v in student.state_dict().items()},
        255 * level,
        _decibels(before),
        _decibels(after),
        None if dbsn is None else _decibels(teachers),
        after < before,
        bool(denoised),
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
    dbsn, _ = _blind_spot(data, sigma, noise, folder, options, inputs, Log(folder, None), None)
    assert dbsn is not None
    return dbsn


def _blind_spot(
    data: _Data,
    sigma: float,
    noise: str,
    folder: Path,
    options: SelfOptions,
    inputs: str,
    log: Log,
    hopeless: Callable[[float, float], bool] | None,
) -> tuple[DBSN | None, float]:
    """Return the network, None if it was given up, and how much of its time it left, s."""
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
    first = Stage(
        "mean", dbsn, MuonAdam(backbone, outer), (0.01, 1e-3), mean_loss, mean_score, inputs, hopeless
    )
    first.run(folder, options, log)
    if first.given_up:
        return None, first.unused + 60 * options.minutes * SHARES["noise"]

    def noise_loss(step: int) -> Tensor:
        noisy = data.large(step).to(device, memory_format=torch.channels_last)
        return constrained_loss(noisy, dbsn(noisy)).mean()

    def noise_score() -> float:
        values = [negative_log_likelihood(x, dbsn(x)).mean() for x in data.held(device)]
        return float(torch.stack(values).mean())

    second = Stage("noise", dbsn, MuonAdam(named, outer), (0.004, 1e-3), noise_loss, noise_score, inputs)
    second.run(folder, options, log)
    return dbsn, 0.0


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
        self.few = len(usable) < 8
        if not self.few:
            self._held = usable[::8]
            self.planes = [p for k, p in enumerate(usable) if k % 8]
        else:  # few pictures: of each the lowest sixteenth or _LEAST_HELD is held back if enough is left
            heights = [p.shape[1] for p in usable]
            rows = [max(n // 16, min(n // 8, _LEAST_HELD)) // STRIDE * STRIDE for n in heights]
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

    def recorrupt(self, step: int, options: SelfOptions) -> Tensor:
        """Return a step's random patches to recorrupt (N, C, side, side).

        Of as many pixels as its pairs have, and each comes twice (`_recorrupted`): the targets are noisy,
        and Muon's steps as large whatever the gradients' noise.
        """
        side = min(_RECORRUPTED, *(n for p in self.planes for n in p.shape[1:])) // STRIDE * STRIDE
        count = max(1, round(options.batch * options.patch**2 / side**2))
        return torch.stack([self._cut(self.planes, (self._seed, 2, step, k), side) for k in range(count)])

    def held(self, device: torch.device) -> Iterator[Tensor]:
        """Yield parts held back (1, C, H, W), cut to a size and the network's stride; few may be wider."""
        most, side = _HELD
        for plane in self._held[:most]:
            height = min(plane.shape[1], side) // STRIDE * STRIDE
            share = most * side**2 // min(most, len(self._held))
            width = min(plane.shape[2], share // height) // STRIDE * STRIDE
            yield plane[None, :, :height, :width].to(device, memory_format=torch.channels_last)


@torch.no_grad()
def _require_one_level(noisy: Sequence[Tensor], network: torch.nn.Module, sigma: float) -> None:
    """Raise BadOption if noise is weaker at some values of the picture than was measured.

    All that follows holds for white noise of one level. The least that is found would be taken for all, the
    rest left in the picture, and Stein's risk, which believes that level, would call it an improvement.

    The noise is read off second differences (Immerkaer 1996), which detail can only make stronger. What the
    network takes would not tell: in a texture that it does not know it leaves noise of one level, too.
    """
    values = torch.cat([network(y).flatten() for y in noisy])
    noise = torch.cat([_differences(y).flatten() for y in noisy])[values.argsort()]
    levels = torch.stack([g.square().mean().sqrt() for g in noise.chunk(_GROUPS)]).sort().values
    least = float(levels[min(_QUARTER, len(levels) - 1)]) / sigma
    if least < _ONE_LEVEL:
        raise BadOption(
            f"the noise of these pictures is not of one level: a quarter of them has {least:.0%} of what was "
            "measured or less (few photons, or values cut off at black), and a model that learns from such "
            "noise would leave it in the picture; denoise them with the shipped models"
        )


def _differences(noisy: Tensor) -> Tensor:
    """Return second differences along both axes (N, C, H, W): of white noise, values of its own level."""
    around = functional.pad(noisy, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[:, None]
    return functional.conv2d(around, _DIFFERENCE.to(noisy)[None, None]).reshape(noisy.shape)


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


def _recorrupted(data: _Data, level: float, options: SelfOptions, step: int) -> tuple[Tensor, Tensor]:
    """Return two pictures of each patch whose noise is independent, if that of the patch is Gaussian.

    y + a z and y - z / a with z of the level of y's noise n: n + a z and n - z / a are uncorrelated, so
    the squared distance of a network's output to the second differs from that to the clean picture by
    a constant. Each patch is there with z and with -z: most of what z adds to the gradients is odd in it.
    """
    noisy = data.recorrupt(step, options)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    added = level * torch.randn(noisy.shape, generator=generator)
    added, noisy = torch.cat([added, -added]), torch.cat([noisy, noisy])
    return noisy + _ALPHA * added, noisy - added / _ALPHA


def _digest(sigma: float, init: dict[str, Tensor], planes: Sequence[_Plane], clean: Sequence[_Plane]) -> str:
    digest = hashlib.sha256(repr(sigma).encode())
    for name in sorted(init):
        digest.update(init[name].numpy().tobytes())
    for kind in (planes, clean):
        for plane in kind:
            digest.update(f"{plane.shape}".encode())
            digest.update(np.ascontiguousarray(plane, np.float32).data)
    return digest.hexdigest()


def _decibels(risk: float) -> float:
    return -10 * math.log10(max(risk, 1e-12))


@torch.no_grad()
def _show(folder: Path, planes: Sequence[Tensor], network: torch.nn.Module, device: torch.device) -> None:
    """Write what the network makes of the first planes: ``preview-0.png`` and so on."""
    for k, plane in enumerate(planes[:3]):
        height, width = (min(n, _PREVIEW) // STRIDE * STRIDE for n in plane.shape[1:])
        part = plane[:, :height, :width]
        shown = part[None].to(device).contiguous(memory_format=torch.channels_last)
        with autocast(device.type):
            _preview(folder / f"preview-{k}.png", part, network(shown)[0].float().cpu())


def _preview(path: Path, noisy_CHW: Tensor, denoised_CHW: Tensor) -> None:
    """Write noisy and denoised beside each other, if Pillow is there."""
    try:
        from PIL import Image
    except ImportError:
        return
    import io

    pair = torch.cat([noisy_CHW, denoised_CHW], 2)
    low, high = torch.quantile(denoised_CHW.flatten(), torch.tensor([0.001, 0.999]))
    scaled = ((pair - low) / (high - low).clamp_min(1e-6)).clamp(0, 1) * 255
    pixels = scaled.permute(1, 2, 0).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "png")
    write_bytes(path, buffer.getvalue())
