"""The training loop: resumable at any step, and then equal to a run that was never broken.

Everything random is a function of (seed, step), so the state is the weights, their moving
average, the optimizer's buffers and the step. It goes to ``RUN/state.safetensors`` every few
minutes and when the run ends; ``RUN/log.jsonl`` has the curve.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from mdrn_plugin.errors import BadOption, CannotRead
from mdrn_plugin.files import lock_byte, write_bytes
from mdrn_plugin.networks.mdrn import CHANNELS
from mdrn_plugin.networks.registry import Network, build

from . import kernel, outputs, perception, refining
from .data import CropRules, Crops, Pack, whole_pictures
from .degrade import Pair, degrade, margin
from .distil import Distiller
from .losses import get_loss
from .optim import MuonAdam
from .parallel import Ranks
from .precision import autocast
from .recipe import describe, load_recipe, without_defaults

if TYPE_CHECKING:
    from types import FrameType

    from .recipe import Recipe

# Steps at the start that are timed to turn --minutes into a number of steps. They lie inside the
# warm-up, whose rate does not depend on that number. The state saved then must lie at a log line.
_PROBE = (10, 30)

_LOG_EVERY = 10  # steps; a log line is the mean loss of this many

# A line this far above the median of the lines before is a divergence: Muon at 0.02 on the wide
# range went from 0.07 to 0.32 to 8.8 within 200 steps; healthy lines stay within 1.6 times.
_SPIKE = 3.0


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is carried out; none of it changes what it computes, `total steps` aside."""

    folder: Path  # of the run
    steps: int | None = None  # overrides the recipe
    minutes: float | None = None  # sets the steps from the speed measured at the start
    resume: bool = True
    device: str = "cpu"
    checkpoint_minutes: float = 3.0
    stop_after_step: int | None = None  # for tests: end as if killed
    ranks: Ranks = dataclasses.field(default_factory=Ranks)  # the processes that train together


@dataclasses.dataclass(slots=True)
class Progress:
    """The part of a run's state that is not tensors."""

    step: int = 0
    total: int = 0
    rate_factor: float = 1.0  # halved by the NaN guard
    seconds: float = 0.0
    recipe: str = ""  # JSON; old states hold the defaults as well
    data: str = ""

    def belongs_to(self, recipe: Recipe, pack: Pack) -> bool:
        """Whether the state is of a run of this recipe on this data."""
        return without_defaults(json.loads(self.recipe)) == describe(recipe) and self.data == pack.digest


# The last layers of blocks with a skip: they start at zero, so that the block does nothing yet.
_ZERO = ("merge", "last", "end", "gamma", "beta")

# Layers that Muon is not for: they see pixels, or are no matrices (3x3 each channel for itself).
_ADAM = ("head", "tail", "depth", "look")


def state_of(folder: Path) -> Progress | None:
    """Return how far the run in `folder` has come, None if it has not saved anything yet."""
    file = folder / "state.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, "pt") as state:
        return Progress(**json.loads(state.metadata()["progress"]))


class Stopped(Exception):
    """SIGINT or SIGTERM: the state has been saved."""


def settings(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of the recipe's network, without those at their defaults."""
    values: dict[str, Any] = {"colours": recipe.colours}
    values |= {"widths": list(recipe.widths)} if recipe.widths else {}
    if recipe.architecture == "fan":
        return values
    if recipe.architecture == refining.ARCHITECTURE:
        values |= {"wide": True} if recipe.wide else {}
        return values | {"channels": recipe.channels, "layers": recipe.blocks}
    values["blocks"] = recipe.blocks
    if recipe.architecture == "mwrcanet":
        values |= {} if recipe.block == "attention" else {"block": recipe.block}
        return {**values, "noise_map": recipe.degrade == "raw"}
    values |= {"channels": recipe.channels} if recipe.channels != CHANNELS else {}
    return values | ({"unshuffle": recipe.unshuffle} if recipe.unshuffle > 1 else {})


def build_network(recipe: Recipe) -> Network:
    """Return the recipe's network, freshly initialised from its seed.

    He-normal, except that the last 1x1 of every block and the tail start at zero: the network
    begins as the identity (measured: 29.92 against 29.83 dB after 500 steps).
    """
    torch.manual_seed(recipe.seed)
    network = build(recipe.architecture, settings(recipe))
    for name, p in network.named_parameters():
        if p.ndim < 2 or name.startswith("tail.") or name.split(".")[-2] in _ZERO:
            torch.nn.init.zeros_(p)
        else:
            torch.nn.init.kaiming_normal_(p, nonlinearity="relu")
    return network


def convert_colours(state: dict[str, Tensor], colours: int, unshuffle: int = 1) -> dict[str, Tensor]:
    """Turn gray weights into colour weights or the reverse, or leave them.

    The converted network computes on gray pictures what the other computes on them shown as colour
    pictures of equal channels, and the reverse on their mean.
    """
    head, tail, bias = (state[name] for name in ("head.weight", "tail.weight", "tail.bias"))
    places = unshuffle**2  # channels of each colour, which stand together
    given, rest = divmod(head.shape[1], places)
    if given == colours and not rest:
        return state
    if rest or {given, colours} != {1, 3}:
        raise BadOption(
            f"init: its first layer takes {head.shape[1]} channels, neither gray nor colour in blocks of "
            f"{unshuffle} x {unshuffle} px; choose another init"
        )
    if given == 1:
        head = head.repeat(1, colours, 1, 1) / colours
        tail, bias = tail.repeat(colours, 1, 1, 1), bias.repeat(colours)
    else:
        head = head.reshape(-1, given, places, *head.shape[2:]).sum(1)
        tail = tail.reshape(given, places, *tail.shape[1:]).mean(0)
        bias = bias.reshape(given, places).mean(0)
    return {**state, "head.weight": head, "tail.weight": tail, "tail.bias": bias}


def grow_blocks(state: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn weights with fewer MSABs per group into those of a deeper network, or leave them.

    The added blocks keep their fresh values, whose last convolution is zero: they do nothing yet,
    and the deeper network starts as exactly the function that the shallower one computes (the
    idea of Net2Net, Chen 2016).
    """
    deeper = set(fresh) - set(state)
    if not set(state) <= set(fresh) or any(".blocks." not in name for name in deeper):
        raise BadOption("init: a model can start one with as many or more blocks; choose another init")
    return {**fresh, **state}


def rate_at(step: int, total: int, warm_up: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to zero."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


def psnr(x: Tensor, y: Tensor) -> float:
    """Return the peak signal to noise ratio in dB, white = 1."""
    return -10 * math.log10(max(1e-12, float((x.double() - y.double()).square().mean())))


def train(
    recipe: Recipe,
    pack: Pack,
    options: RunOptions,
    init: dict[str, Tensor] | None = None,
    teacher: dict[str, Tensor] | None = None,
    teachers: Sequence[Network] = (),
) -> Path:
    """Run a recipe to its end.

    Parameters
    ----------
    recipe : Recipe
        What to train.
    pack : Pack
        Clean pictures; the folder ``recipe.validation`` in it is never trained on.
    options : RunOptions
        Where and how long.
    init : dict of Tensor, optional
        Weights to start from, float32.
    teacher : dict of Tensor, optional
        Weights of the recipe's teacher, float32.
    teachers : sequence of Network
        The recipe's `teachers`, whose outputs are the targets.

    Returns
    -------
    Path
        ``RUN/NAME.safetensors``, half precision, beside it ``RUN/entry.json``.

    Raises
    ------
    Stopped
        A signal asked for the end; the state is saved and ``resume`` goes on from it.
    """
    with _alone_in(options.folder, options.ranks):
        return _Trainer(recipe, pack, options, init, teacher, teachers).run()


@contextlib.contextmanager
def _alone_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the run's lock: two trainings in one folder would spoil each other's state."""
    folder.mkdir(parents=True, exist_ok=True)
    if not ranks.leads:
        yield
        return
    with (folder / ".lock").open("ab") as file:
        if not lock_byte(file.fileno(), 0, take=True):
            raise BadOption(
                f"{folder}: another training is at work there; wait for it, or choose another --out"
            )
        yield


class _Trainer:
    def __init__(
        self,
        recipe: Recipe,
        pack: Pack,
        options: RunOptions,
        init: dict[str, Tensor] | None,
        teacher: dict[str, Tensor] | None,
        teachers: Sequence[Network],
    ) -> None:
        self.recipe, self.pack, self.options = recipe, pack, options
        self.ranks = options.ranks
        self.share = self.ranks.share(recipe.batch)
        self.folder = options.folder
        self.device = torch.device(options.device)
        kept, used = pack.select(recipe.validation)
        if not kept:  # no such folder: keep every 25th picture
            kept, used = used[::25], [i for k, i in enumerate(used) if k % 25]
        side = recipe.patch + margin(recipe.degrade)
        rules = CropRules(
            side,
            picture_colours(recipe),
            recipe.rescale,
            shuffle_colours=recipe.shuffle_colours,
            smooth=recipe.smooth,
            fluorescence=recipe.fluorescence,
            textures=recipe.textures,
        )
        self.crops = Crops(pack, used or kept, rules, recipe.seed)
        self.kept = kept[: recipe.validate_pictures]
        self.network = build_network(recipe)
        if init is not None:
            if recipe.architecture == "mdrn":
                init = convert_colours(init, recipe.colours, recipe.unshuffle)
            self.network.load_state_dict(grow_blocks(init, self.network.state_dict()))
        self.network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # What computes its features and outputs; the weights are those of `network`.
        self.model: Any = self.network
        if kernel.fits(self.network, self.device):
            self.model = kernel.Compiled(self.network)  # type: ignore[arg-type]
        elif self.device.type == "cpu" and recipe.architecture == "mdrn" and kernel.why_not():
            _say(f"{recipe.name}: trained by torch alone, which is slower: compiled steps {kernel.why_not()}")
        self.ema = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimizer = MuonAdam(self.network.named_parameters(), _ADAM)
        self.loss = get_loss(recipe.loss)
        self.distiller = None
        self.perception = None
        self.targets = None
        self.corrected = None
        if recipe.architecture == refining.ARCHITECTURE:
            self.corrected = refining.Corrected(recipe, teachers, self.device)
        if recipe.distillation in outputs.KINDS:
            self.targets = outputs.OutputTargets(recipe, teachers, self.device)
        elif recipe.distillation and teacher is None:
            raise BadOption(f"{recipe.name}: distillation needs a teacher; name it in the recipe")
        if recipe.distillation == perception.KIND and teacher is not None:
            theirs = load_recipe(recipe.teacher)
            network = build(theirs.architecture, settings(theirs))
            network.load_state_dict(teacher)
            self.perception = perception.FeatureLoss(recipe, network, self.device)
        elif teacher is not None and recipe.distillation:
            self.distiller = Distiller(recipe, teacher, self.device)
        self.progress = Progress(recipe=json.dumps(describe(recipe)), data=pack.digest)
        self.log: list[dict[str, Any]] = []
        self.stop = False

    # ---- state ---------------------------------------------------------------------------

    @property
    def state_file(self) -> Path:
        return self.folder / "state.safetensors"

    def save(self) -> None:
        if not self.ranks.leads:
            return
        tensors = {f"weights/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in self.ema.items()}
        tensors |= {f"optimizer/{k}": v for k, v in self.optimizer.state().items()}
        contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        meta = {"progress": json.dumps(dataclasses.asdict(self.progress))}
        write_bytes(self.folder / "log.jsonl", _lines(self.log))
        write_bytes(self.state_file, save(contiguous, meta))

    def restore(self) -> None:
        progress = state_of(self.folder)
        assert progress is not None
        if not progress.belongs_to(self.recipe, self.pack):
            raise BadOption(
                f"{self.folder}: was started with another recipe or other data; "
                "choose another --out, or start over with --no-resume"
            )
        state = load_file(self.state_file)
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "ema": {}, "optimizer": {}}
        for key, value in state.items():
            kind, name = key.split("/", 1)
            groups[kind][name] = value
        self.network.load_state_dict(groups["weights"])
        for name, average in self.ema.items():
            average.copy_(groups["ema"][name])
        self.optimizer.load_state(groups["optimizer"])
        self.progress = progress
        try:
            lines = [json.loads(t) for t in (self.folder / "log.jsonl").read_text().splitlines()]
        except (OSError, json.JSONDecodeError) as error:
            raise CannotRead(f"{self.folder}/log.jsonl: damaged ({error}); use --no-resume") from error
        self.log = [line for line in lines if line["step"] <= progress.step]

    # ---- the run -------------------------------------------------------------------------

    def run(self) -> Path:
        if self.options.resume and self.state_file.is_file():
            self.restore()
            _say(f"{self.recipe.name}: resumed at step {self.progress.step} of {self.progress.total}")
        elif self.options.minutes is None:
            self.progress.total = self.options.steps or self.recipe.steps
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._steps()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._finish()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stop = True

    def _steps(self) -> None:
        recipe = self.recipe
        saved = probe = time.monotonic()
        losses: list[float] = []
        while self.progress.total == 0 or self.progress.step < self.progress.total:
            began = time.monotonic()
            if self.progress.total == 0 and self.progress.step == _PROBE[0]:
                probe = began
            if self.progress.total == 0 and self.progress.step == _PROBE[1]:
                self._choose_total(self.ranks.same(began - probe) / (_PROBE[1] - _PROBE[0]))
            loss = self.ranks.mean(self._one_step())
            if not math.isfinite(loss):
                self._step_back()
                losses.clear()
                continue
            losses.append(loss)
            self.progress.step += 1
            self.progress.seconds += time.monotonic() - began
            if self.progress.step % _LOG_EVERY == 0:
                mean = sum(losses) / len(losses)
                losses.clear()
                if self._is_spike(mean):
                    self._step_back()
                    continue
                self._note(loss=mean)
            if self.progress.step % recipe.validate_every == 0 or self.progress.step == self.progress.total:
                self._validate()
            if self.progress.step == self.options.stop_after_step:
                os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            # Only at log lines: the mean in each line is then of the same steps in every run.
            if self.progress.step % _LOG_EVERY or not self.progress.total:
                continue
            stop = self.ranks.any(self.stop)
            if stop or time.monotonic() - saved > 60 * self.options.checkpoint_minutes:
                self.save()
                saved = time.monotonic()
            if stop:
                step = self.progress.step
                raise Stopped(f"{recipe.name}: stopped at step {step}; --resume goes on from there")

    def _one_step(self) -> float:
        recipe, step = self.recipe, self.progress.step
        if self.corrected is not None:
            with autocast(self.device.type):
                loss = self.corrected.loss(self.model, self.loss, step, self._pair)
            return self._learn(loss)
        pair = self._pair(step)
        clean, noisy, sigma = pair.clean, pair.noisy, pair.sigma
        with autocast(self.device.type):
            if self.distiller is None:
                out = self.model(noisy) if pair.std is None else self.model(noisy, pair.std)
                if self.targets is None:
                    loss = self.loss(out, clean, sigma)
                else:
                    loss = self.targets.loss(self.loss, out, pair, step)
                if self.perception is not None and pair.std is not None:
                    loss = loss + recipe.kdl_weight * self.perception.loss(out, clean, pair.std)
            else:
                features = self.model.nodes(noisy)
                out = noisy - self.model.noise_of(features).to(noisy.dtype)
                loss = self.loss(out, clean, sigma)
                kdl = self.distiller.loss(features, self.distiller.features(clean, noisy, sigma))
                loss = loss + recipe.kdl_weight * kdl
        return self._learn(loss)

    def _pair(self, number: int) -> Pair:
        """Return a batch of clean and noisy pictures, this process's share of it."""
        recipe = self.recipe
        return degrade(
            recipe.degrade,
            self.crops.batch(number, recipe.batch, self.share),
            recipe.sigma_255,
            recipe.seed,
            number,
            recipe.batch,
            self.share,
            packed=recipe.architecture == "fan",
        ).to(self.device)

    def _learn(self, loss: Tensor) -> float:
        """Take one step down the loss; return it, or NaN before anything is touched."""
        recipe, step = self.recipe, self.progress.step
        value = float(loss.detach())
        if not math.isfinite(self.ranks.mean(value)):
            return math.nan  # before the gradients are touched: they would stay NaN
        loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.average_gradients(self.network.parameters())
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
        factor = rate_at(step, self.progress.total or 10**9, recipe.warm_up) * self.progress.rate_factor
        self.optimizer.step(recipe.muon_rate * factor, recipe.adam_rate * factor)
        keep = min(recipe.ema, (1 + step) / (10 + step))
        for name, value_now in self.network.state_dict().items():
            self.ema[name].lerp_(value_now, 1 - keep)
        return value

    def _choose_total(self, seconds_per_step: float) -> None:
        assert self.options.minutes is not None
        self.progress.total = choose_steps(self.options.minutes, seconds_per_step, self.recipe.warm_up)
        self._note(steps=self.progress.total, seconds_per_step=round(seconds_per_step, 4))
        self.save()

    def _is_spike(self, loss: float) -> bool:
        """Whether the mean loss of the last steps is far above that of the 200 before."""
        recent = sorted(line["loss"] for line in self.log[-25:] if "loss" in line)
        return len(recent) >= 10 and loss > _SPIKE * recent[len(recent) // 2]

    def _step_back(self) -> None:
        """Go back to the last good state and halve the rate: the loss is not finite or shot up."""
        self.ranks.wait()  # until rank 0 has written the state that all go back to
        factor = self.progress.rate_factor / 2
        if factor < 1e-3:
            raise CannotRead(f"{self.recipe.name}: the loss diverges even at a tiny rate; check the data")
        if not self.state_file.is_file():
            raise CannotRead(
                f"{self.recipe.name}: the loss diverged before the first checkpoint; "
                "lower the rates in the recipe"
            )
        self.restore()
        self.progress.rate_factor = factor
        self._note(rate_factor=factor)

    def _note(self, **values: float) -> None:
        if not self.ranks.leads:
            values = {k: v for k, v in values.items() if k == "loss"}  # for `_is_spike`
        line = {"step": self.progress.step, "seconds": round(self.progress.seconds, 1), **values}
        self.log.append(line)
        shown = {k: round(v, 5) for k, v in values.items()}
        if not self.ranks.leads:
            return
        if "loss" not in values or self.progress.step % (10 * _LOG_EVERY) == 0:
            _say(f"{self.recipe.name} {self.progress.step}/{self.progress.total} {shown}")

    def _validate(self) -> None:
        if not self.ranks.leads:
            return
        scores = validate(
            self.recipe,
            self.ema,
            whole_pictures(self.pack, self.kept, picture_colours(self.recipe), self.network.stride),
            self.device,
            self.corrected,
        )
        self._note(**{f"psnr_{sigma:g}": value for sigma, value in scores.items()})

    def _finish(self) -> Path:
        path = self.folder / f"{self.recipe.name}.safetensors"
        if not self.ranks.leads:
            return path
        self.save()
        half = {k: v.half().cpu().contiguous() for k, v in self.ema.items()}
        data = save(half)
        write_bytes(path, data)
        entry = manifest_entry(self.recipe, self.progress.total, data, self.pack, self.log)
        write_bytes(self.folder / "entry.json", json.dumps(entry, indent=2).encode())
        from .curve import draw_curve

        draw_curve(self.log, self.folder / "curve.png", self.recipe.name)
        _say(f"{self.recipe.name}: done, {path}")
        return path


def picture_colours(recipe: Recipe) -> int:
    """Return the colours of the pictures that the recipe's pairs are made of: a camera needs three."""
    return recipe.colours if recipe.degrade in ("awgn", "photons", "microscope") else 3


def cut_to_stride(x_NCHW: Tensor, stride: int) -> Tensor:
    """Cut rows and columns at the end, so that a network can take the picture."""
    height, width = (n // stride * stride for n in x_NCHW.shape[-2:])
    return x_NCHW[..., :height, :width]


def choose_steps(minutes: float, seconds_per_step: float, warm_up: int) -> int:
    """Turn a time into a number of steps, with two significant digits.

    Rounded so that two runs on the same machine, whose speed differs by a few percent, get the
    same schedule more often than not; the number is in the log and `--steps` fixes it.
    """
    steps = 60 * minutes / seconds_per_step
    digits = 10 ** max(0, math.floor(math.log10(max(1.0, steps))) - 1)
    return max(warm_up + _LOG_EVERY, int(steps // digits * digits) // _LOG_EVERY * _LOG_EVERY)


@torch.no_grad()
def validate(
    recipe: Recipe,
    weights: dict[str, Tensor],
    pictures: list[Tensor],
    device: torch.device,
    corrected: refining.Corrected | None = None,
) -> dict[float, float]:
    """Return the mean PSNR at each of the recipe's validation levels, noise from fixed seeds."""
    network = build(recipe.architecture, settings(recipe))
    network.load_state_dict(weights)
    network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    scores = {}
    for sigma in recipe.validate_sigma_255:
        total = 0.0
        for k, clean in enumerate(pictures):
            levels = (sigma, sigma)
            seeds = (10**6 + k, int(sigma * 100))
            pair = degrade(
                recipe.degrade, clean[None], levels, *seeds, packed=recipe.architecture == "fan"
            ).to(device)
            shown = [cut_to_stride(x, network.stride) for x in (pair.noisy, pair.std) if x is not None]
            with autocast(device.type):
                out = corrected(network, shown[0], pair.sigma) if corrected else network(*shown)
            total += psnr(out.float(), cut_to_stride(pair.clean, network.stride))
        scores[sigma] = round(total / max(1, len(pictures)), 4)
    return scores


def manifest_entry(
    recipe: Recipe, steps: int, data: bytes, pack: Pack, log: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the manifest entry of freshly trained weights; the benchmark adds its PSNR."""
    scores = [line for line in log if any(k.startswith("psnr_") for k in line)]
    last = {k: v for k, v in scores[-1].items() if k.startswith("psnr_")} if scores else {}
    return {
        "name": recipe.name,
        "file": f"{recipe.name}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "architecture": recipe.architecture,
        "settings": settings(recipe),
        "band_255": list(recipe.band_255),
        "trained_255": list(recipe.sigma_255),
        "teacher": recipe.teacher or " and ".join(recipe.teachers) or None,
        "distillation": recipe.distillation or None,
        "training": {
            "recipe": f"{recipe.name}.toml",
            "init": recipe.init or None,
            "steps": steps,
            "seed": recipe.seed,
            **_distillation_weight(recipe),
            "pictures": len(pack.entries),
            "data_digest": pack.digest,
            "validation": {k.removeprefix("psnr_"): v for k, v in last.items()},
        },
        "psnr": {},
    }


def _distillation_weight(recipe: Recipe) -> dict[str, float]:
    if recipe.distillation in outputs.KINDS:
        return {"clean_weight": recipe.clean_weight}
    return {"kdl_weight": recipe.kdl_weight} if recipe.distillation else {}


def _lines(log: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in log).encode()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
