"""What `mdrn-batch doctor` looks at."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mdrn_plugin.errors import MdrnError, NotSupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mdrn_plugin.tuning import Timing, Tuning
    from mdrn_plugin.zoo import Descriptor

_VERSIONS = (
    "mdrn-plugin",
    "torch",
    "numpy",
    "tifffile",
    "imagecodecs",
    "imageio",
    "pillow",
    "rawpy",
    "click",
)
_EXTRAS = {
    "napari": "napari",
    "zarr": "zarr",
    "distributed": "cluster",
    "onnxruntime": "onnx",
    "matplotlib": "train",
}

# The side of what is timed, px: tiles of all backends have their halo. Measured twice each, in turn.
_SIDE = 640
_ROUNDS = 2
_CHECKED = 128  # px
_TOLERANCE = 1e-4


def examine() -> Iterator[tuple[str, str, bool]]:
    """Yield (topic, finding, is it well) for everything that can be checked here."""
    yield "python", f"{platform.python_version()} on {platform.platform()}", True
    yield from _versions()
    yield from _devices()
    yield from _weights()
    yield from _speed()
    yield _backend()
    for module, extra in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        text = "installed" if there else f"not installed (optional: pip install mdrn-plugin[{extra}])"
        yield module, text, True


def _backend() -> tuple[str, str, bool]:
    import torch

    from mdrn_plugin import tuning

    found = tuning.load(torch.get_num_threads())
    if found is not None:
        return "backend", found.explain(), True
    if tuning.file().exists():
        return "backend", "torch; what was measured no longer holds (versions, threads): --tune again", True
    return "backend", "torch; not compared with others here (--tune does)", True


def tune() -> Tuning:
    """Time every backend that is installed with the shipped models, and keep the result.

    Raises
    ------
    NotSupported
        Nothing but torch is installed, or another backend gives another picture.
    OutputUnusable
        The folder for caches cannot be written.
    """
    import torch

    from mdrn_plugin import tuning
    from mdrn_plugin.engine.backends import is_installed
    from mdrn_plugin.options import BACKENDS

    backends = [name for name in BACKENDS if name == "torch" or is_installed(name)]
    if len(backends) < 2:
        raise NotSupported("nothing but torch is installed to compute with; pip install 'mdrn-plugin[onnx]'")
    timings = tuple(_timed(d, backends) for d in _kinds_of_network())
    threads = torch.get_num_threads()
    found = tuning.Tuning(tuning.choose(timings), timings)
    tuning.save(found, threads)
    return found


def _kinds_of_network() -> list[Descriptor]:
    """Return one shipped model for each network that all backends can run: bands differ in weights only."""
    from mdrn_plugin.zoo import shipped

    kinds = {json.dumps(d.settings): d for d in shipped().descriptors if d.architecture == "mdrn"}
    return sorted(kinds.values(), key=lambda d: d.name)


def _timed(descriptor: Descriptor, backends: list[str]) -> Timing:
    """Return the least times of a model over 0.4 megapixels, as the plan would have it run."""
    import numpy as np

    from mdrn_plugin.engine.planes import run_plan
    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import Picture, decide_range
    from mdrn_plugin.pipeline import make_plan, measure
    from mdrn_plugin.tuning import Timing
    from mdrn_plugin.zoo import shipped

    axes, shape = ("YXS", (_SIDE, _SIDE, 3)) if descriptor.colours == 3 else ("YX", (_SIDE, _SIDE))
    pixels = np.random.default_rng(0).normal(0.5, 0.1, shape).astype(np.float32)

    def run(side: int, backend: str, precision: str) -> tuple[float, NDArray[np.float32]]:
        picture = Picture(pixels[:side, :side], axes, decide_range(pixels))
        options = Options(noise="25", model=descriptor.name, backend=backend, precision=precision)
        plan = make_plan(picture, measure(picture, options), options)
        out = np.empty(picture.shape, np.float32)
        began = time.perf_counter()
        run_plan(picture, out, plan, shipped())
        return time.perf_counter() - began, out

    # Also the first, slow call of each.
    expected = run(_CHECKED, "torch", "fp32")[1]
    for backend in backends:
        worst = float(np.abs(run(_CHECKED, backend, "fp32")[1] - expected).max())
        if not worst < _TOLERANCE:
            raise NotSupported(
                f"backend {backend}: differs from torch by {worst:.1e} of white here; uninstall it"
            )
    rounds = [{name: run(_SIDE, name, "auto")[0] for name in backends} for _ in range(_ROUNDS)]
    return Timing(descriptor.name, {name: min(times[name] for times in rounds) for name in backends})


def _versions() -> Iterator[tuple[str, str, bool]]:
    for name in _VERSIONS:
        try:
            yield name, importlib.metadata.version(name), True
        except importlib.metadata.PackageNotFoundError:
            own = name == "mdrn-plugin"
            yield name, "run from a source tree" if own else "not installed", own


def _devices() -> Iterator[tuple[str, str, bool]]:
    import torch

    from mdrn_plugin.engine.device import resolve_device, resolve_precision
    from mdrn_plugin.networks import fan_native, fp32_native, native, non_local

    chosen = resolve_device("auto")
    yield "cpu", f"{torch.get_num_threads()} threads, {resolve_precision('auto', 'cpu')}", True
    missing = native.why_not()
    if not missing:
        yield "kernel", "runs MDRN in bf16 on the CPU", True
    elif fp32_native.library() is not None:
        yield "kernel", f"runs MDRN in fp32 on the CPU (not in bf16: {missing})", True
    else:
        yield "kernel", f"not used: {fp32_native.why_not()}", True
    missing = fan_native.why_not()
    yield "RAW kernel", f"not used: {missing}" if missing else "runs FAN in fp32 on the CPU", True
    missing = non_local.why_not()
    text = f"not used: {missing}" if missing else "looks for what a picture repeats, on the CPU"
    yield "best kernel", text, True
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(k)
            yield f"cuda:{k}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB", True
    yield "device", f"{chosen} is used unless --device says otherwise", True


def _weights() -> Iterator[tuple[str, str, bool]]:
    from mdrn_plugin.zoo import shipped

    try:
        zoo = shipped()
        for descriptor in zoo.descriptors:
            zoo.load(descriptor.name)
    except MdrnError as error:
        yield "weights", str(error), False
        return
    yield "weights", f"{len(zoo.descriptors)} models, all intact", bool(zoo.descriptors)


def _speed() -> Iterator[tuple[str, str, bool]]:
    import numpy as np

    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import Picture, decide_range
    from mdrn_plugin.pipeline import denoise_picture

    pixels = np.random.default_rng(0).normal(0.5, 0.1, (512, 512)).astype(np.float32)
    picture = Picture(pixels, "YX", decide_range(pixels))
    try:
        denoise_picture(picture, Options(noise="25"))
        began = time.perf_counter()
        result = denoise_picture(picture, Options(noise="25"))
    except MdrnError as error:
        yield "speed", str(error), False
        return
    seconds = time.perf_counter() - began
    plan = result.plan
    text = f"{0.262144 / seconds:.2f} megapixels/s, {plan.steps[0].model}, {plan.device}, {plan.precision}"
    yield "speed", text, True
