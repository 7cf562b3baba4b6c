"""From a user's noisy pictures to a model by name among their own; how it is learnt: `selfsupervised`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save

from mdrn_plugin.errors import BadOption
from mdrn_plugin.files import write_bytes
from mdrn_plugin.networks.mdrn import STRIDE, exact_halo

from .distil import network_of
from .selfsupervised import SelfOptions, learn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdrn_plugin.picture import Picture

    from .selfsupervised import Learnt
    from .stage import Progress

    _Plane = NDArray[np.float32]

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def train_on(
    sources: Sequence[Any],
    name: str,
    *,
    minutes: float = 30.0,
    clean: Sequence[Any] = (),
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **how: Any,
) -> Learnt:
    """Learn a model from noisy pictures and put it among the user's own.

    Parameters
    ----------
    sources : sequence of path or Picture
        Noisy pictures of one kind: same instrument, same settings.
    name : str
        Of the new model; ``--model NAME`` then uses it.
    minutes : float
        For all of it.
    clean : sequence of path or Picture, optional
        Clean pictures of the same kind, if there are any.
    folder : path, optional
        Of the model; default `zoo.own_folder`. State and previews are in ``NAME.run`` in it.
    progress : callable, optional
        As of `learn`.
    **how
        Further fields of `SelfOptions`.

    Returns
    -------
    Learnt

    Raises
    ------
    BadOption
        A bad name, no usable picture, pictures that differ in kind, or noise that is correlated
        from pixel to pixel: a blind-spot network would take it for signal.
    """
    from mdrn_plugin.zoo import own_folder, shipped

    if not _NAME.fullmatch(name) or name.startswith("mdrn-"):
        raise BadOption(
            f"name {name!r}: expected up to 64 small letters, digits, '.', '_' or '-', not beginning "
            "with 'mdrn-'; choose another --name"
        )
    options = SelfOptions(name=name, minutes=minutes, **how)
    planes, sigma, model, references = _seen_by_networks(sources, clean)
    target = Path(folder) if folder is not None else own_folder()
    init = dict(shipped().load_plain(model).state_dict())
    learnt = learn(planes, sigma, init, target / f"{name}.run", options, clean=references, progress=progress)
    _enter(target, name, learnt, options, planes, model)
    return learnt


def _seen_by_networks(
    sources: Sequence[Any], clean: Sequence[Any]
) -> tuple[list[_Plane], float, str, list[_Plane]]:
    """Return the noisy planes at one level, that level, the plan's model, and the clean planes."""
    from mdrn_plugin.engine.planes import network_planes
    from mdrn_plugin.options import Options
    from mdrn_plugin.pipeline import make_plan, measure

    found: list[tuple[_Plane, float, str]] = []
    plan = None
    for source in sources:
        picture, where = _picture(source)
        plan = make_plan(picture, measure(picture, Options()), Options())
        if any(step.spectra for step in plan.steps):
            raise BadOption(
                f"{where}: its noise is correlated from pixel to pixel, and a blind-spot network would "
                "take it for signal; give pictures as the camera made them, without JPEG or resampling"
            )
        for step, plane in network_planes(picture, plan):
            if step.model is not None:
                found.append((plane, step.sigma_255 / 255, step.model))
    if not found or plan is None:
        raise BadOption("no noisy picture to learn from: there is none, or all of them look clean already")
    if len({plane.shape[0] for plane, _, _ in found}) > 1:
        raise BadOption("gray and colour pictures together; learn from one kind at a time")
    common = float(np.median([sigma for _, sigma, _ in found]))
    models = [model for _, _, model in found]
    scaled = [plane * np.float32(common / sigma) for plane, sigma, _ in found]
    references = [plane for source in clean for _, plane in network_planes(_picture(source)[0], plan)]
    if any(plane.shape[0] != scaled[0].shape[0] for plane in references):
        raise BadOption("the clean pictures are of another kind (gray, colour) than the noisy ones")
    return scaled, common, max(set(models), key=models.count), references


def _picture(source: Any) -> tuple[Picture, str]:
    import mdrn_plugin
    from mdrn_plugin.picture import Picture

    if isinstance(source, Picture):
        return source, "a picture"
    return mdrn_plugin.read(source), os.fspath(source)


def _enter(
    folder: Path,
    name: str,
    learnt: Learnt,
    options: SelfOptions,
    planes: Sequence[_Plane],
    model: str,
) -> None:
    """Write the weights and enter them into the manifest of the user's own models."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "manifest.json"
    manifest: dict[str, Any] = {"format": 1, "models": []}
    if source.is_file():
        manifest = json.loads(source.read_text(encoding="utf-8"))
    data = save({k: v.half().contiguous() for k, v in learnt.weights.items()})
    blocks = network_of(learnt.weights).n_blocks
    entry = {
        "name": name,
        "file": f"{name}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "architecture": "mdrn",
        "settings": {"colours": planes[0].shape[0], "blocks": blocks},
        "tier": "own",
        "band_255": [round(0.7 * learnt.sigma_255, 2), round(1.3 * learnt.sigma_255, 2)],
        "trained_255": [round(0.9 * learnt.sigma_255, 2), round(1.1 * learnt.sigma_255, 2)],
        "stride": STRIDE,
        "halo": exact_halo(blocks),
        "default_halo": min(48, exact_halo(blocks)),
        "teacher": "D-BSN" if learnt.taught else None,
        "distillation": "bayes" if learnt.taught else None,
        "training": {
            "init": model,
            "pictures": len(planes),
            "minutes": options.minutes,
            "seed": options.seed,
            "sure": {
                "before": learnt.sure_before,
                "after": learnt.sure_after,
                "teacher": learnt.sure_teacher,
            },
        },
        "psnr": {},
    }
    models = {m["name"]: m for m in manifest["models"]} | {name: entry}
    manifest["models"] = [models[key] for key in sorted(models)]
    write_bytes(folder / f"{name}.safetensors", data)
    write_bytes(source, (json.dumps(manifest, indent=2) + "\n").encode())
