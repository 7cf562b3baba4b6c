"""What `mdrn-batch doctor` looks at."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Iterator

from mdrn_plugin.errors import MdrnError

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
    "onnxruntime": "export",
    "matplotlib": "train",
}


def examine() -> Iterator[tuple[str, str, bool]]:
    """Yield (topic, finding, is it well) for everything that can be checked here."""
    yield "python", f"{platform.python_version()} on {platform.platform()}", True
    yield from _versions()
    yield from _devices()
    yield from _weights()
    yield from _speed()
    for module, extra in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        text = "installed" if there else f"not installed (optional: pip install mdrn-plugin[{extra}])"
        yield module, text, True


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

    chosen = resolve_device("auto")
    yield "cpu", f"{torch.get_num_threads()} threads, {resolve_precision('auto', 'cpu')}", True
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

    from mdrn_plugin.picture import Picture, decide_range
    from mdrn_plugin.pipeline import denoise_picture
    from mdrn_plugin.plan import Options

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
