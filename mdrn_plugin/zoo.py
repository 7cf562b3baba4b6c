"""The shipped models: manifest, checks, loading.

``weights/manifest.json`` describes every weight file as data: what it is for (`band_255`), what it
was trained on, its sha256. Nothing is loaded that fails a check, and only safetensors are read.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mdrn_plugin.errors import UnknownModel, WeightsDamaged

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from torch import Tensor, nn

    from mdrn_plugin.networks.mdrn import MDRN

MANIFEST_FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Descriptor:
    """One model of the manifest; its limits are data.

    Attributes
    ----------
    name : str
        architecture-size-colour-level, such as ``mdrn-2b-gray-20-35``.
    file : str
        Name of the weight file beside the manifest.
    sha256 : str
    architecture : str
        Key of `networks.registry.ARCHITECTURES`.
    settings : dict
        Arguments of the network.
    tier : str
        "fast", "balanced" or "best"; "own" for what the user trained, which is never chosen.
    colours : int
        1 gray, 3 RGB.
    band_255 : pair of float
        Noise levels (0..255) that the plan picks it for.
    trained_255 : pair of float
        Noise levels that it was trained on.
    stride : int
        Tile origins and sizes are multiples of this, px.
    halo : int
        Tiles that see so much around them equal the whole picture exactly, px.
    default_halo : int
        What is used unless exactness is asked for, px.
    psnr : dict
        Measured by the quality benchmark: "set/sigma" to dB.
    """

    name: str
    file: str
    sha256: str
    architecture: str
    settings: dict[str, Any]
    tier: str
    colours: int
    band_255: tuple[float, float]
    trained_255: tuple[float, float]
    stride: int
    halo: int
    default_halo: int
    psnr: dict[str, float]
    teacher: str | None = None
    distillation: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Zoo:
    """All models of one folder, and the user's own beside them.

    Attributes
    ----------
    folder : Traversable
        Where the weights are.
    descriptors : tuple of Descriptor
        What the plan chooses from.
    own : Zoo, optional
        Models that the user trained: they are used when asked for by name, never chosen.
    """

    folder: Traversable
    descriptors: tuple[Descriptor, ...]
    own: Zoo | None = None

    def get(self, name: str) -> Descriptor:
        """Return a model by name; `UnknownModel` lists those there are."""
        for descriptor in self.all():
            if descriptor.name == name:
                return descriptor
        known = ", ".join(d.name for d in self.all()) or "none"
        raise UnknownModel(f"model {name!r}: not known; there are {known}")

    def all(self) -> tuple[Descriptor, ...]:
        """Return every model, the user's own last."""
        return self.descriptors + (self.own.descriptors if self.own else ())

    def load(self, name: str) -> nn.Module:
        """Return the trained network, float32, in its inference form.

        Raises
        ------
        UnknownModel
            No such name.
        WeightsDamaged
            The file is missing or fails a check; the message names it.
        """
        if self.own and all(d.name != name for d in self.descriptors):
            return self.own.load(name)
        return _load(self, name)

    def load_plain(self, name: str) -> nn.Module:
        """Return the trained network as it was trained, float32; raises as `load`."""
        if self.own and all(d.name != name for d in self.descriptors):
            return self.own.load_plain(name)
        descriptor = self.get(name)
        return _build(self.folder / descriptor.file, descriptor)


@functools.cache
def shipped() -> Zoo:
    """Return the models that came with this installation."""
    return open_zoo(_shipped_folder())


def available() -> Zoo:
    """Return the models that came with this installation, and those that the user trained."""
    folder = own_folder()
    if not (folder / "manifest.json").is_file():
        return shipped()
    return dataclasses.replace(shipped(), own=open_zoo(folder))


def own_folder() -> Path:
    """Return the folder of the user's own models: ``MDRN_MODELS``, else the usual place for data."""
    if named := os.environ.get("MDRN_MODELS"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_data_dir("mdrn", appauthor=False)) / "models"


def open_zoo(folder: Traversable) -> Zoo:
    """Read the manifest of a folder of weights.

    Raises
    ------
    WeightsDamaged
        The manifest is missing, not JSON, of another format, or lacks a field.
    """
    source = folder / "manifest.json"
    try:
        manifest = json.loads(source.read_text(encoding="utf-8"))
        version = manifest["format"]
        if version != MANIFEST_FORMAT:
            raise WeightsDamaged(
                f"{source}: expected manifest format {MANIFEST_FORMAT}, got {version}; reinstall mdrn-plugin"
            )
        descriptors = tuple(_descriptor(entry) for entry in manifest["models"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsDamaged(f"{source}: not a valid manifest ({error!r}); reinstall mdrn-plugin") from error
    return Zoo(folder, descriptors)


def _shipped_folder() -> Traversable:
    try:
        return importlib.resources.files("mdrn_plugin.weights")
    except ModuleNotFoundError:  # an uninstalled tree: the folder lies beside the package
        return Path(__file__).resolve().parent.parent / "weights"


def _descriptor(entry: dict[str, Any]) -> Descriptor:
    low, high = entry["band_255"]
    trained_low, trained_high = entry["trained_255"]
    return Descriptor(
        name=entry["name"],
        file=entry["file"],
        sha256=entry["sha256"],
        architecture=entry["architecture"],
        settings=dict(entry["settings"]),
        tier=entry["tier"],
        colours=entry["settings"]["colours"],
        band_255=(float(low), float(high)),
        trained_255=(float(trained_low), float(trained_high)),
        stride=entry["stride"],
        halo=entry["halo"],
        default_halo=entry["default_halo"],
        psnr=dict(entry.get("psnr", {})),
        teacher=entry.get("teacher"),
        distillation=entry.get("distillation"),
    )


_lock = threading.Lock()
_loaded: dict[tuple[str, str, str], nn.Module] = {}


def _load(zoo: Zoo, name: str) -> nn.Module:
    descriptor = zoo.get(name)
    key = (str(zoo.folder), descriptor.name, descriptor.sha256)
    with _lock:
        if key not in _loaded:
            from mdrn_plugin.networks.mdrn import FoldedMDRN

            network = _build(zoo.folder / descriptor.file, descriptor)
            folds = descriptor.architecture == "mdrn"
            _loaded[key] = FoldedMDRN(cast("MDRN", network)).eval() if folds else network
        return _loaded[key]


def _build(source: Traversable, descriptor: Descriptor) -> nn.Module:
    import torch

    from mdrn_plugin.networks.registry import ARCHITECTURES, build

    if descriptor.architecture not in ARCHITECTURES:
        raise WeightsDamaged(
            f"{source}: architecture {descriptor.architecture!r} is not known; update mdrn-plugin"
        )
    # Built without initial values: they are replaced at once, and drawing them costs 10 ms.
    with torch.device("meta"):
        network = build(descriptor.architecture, descriptor.settings)
    tensors = read_weights(source, descriptor.sha256)
    check_tensors(source, tensors, network.state_dict())
    network.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    return network.eval()


def read_weights(source: Traversable, sha256: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file whose hash is as the manifest says.

    Raises
    ------
    WeightsDamaged
        Missing, another hash, or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = source.read_bytes()
    except OSError as error:
        raise WeightsDamaged(f"{source}: cannot be read ({error.strerror}); reinstall mdrn-plugin") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsDamaged(
            f"{source}: expected sha256 {sha256[:12]}…, got {found[:12]}…; "
            "the file is damaged or not ours, reinstall mdrn-plugin"
        )
    try:
        return load(data)
    except SafetensorError as error:
        raise WeightsDamaged(f"{source}: not a safetensors file ({error}); reinstall mdrn-plugin") from error


def check_tensors(source: Traversable, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise `WeightsDamaged` unless keys, shapes, dtypes and finiteness are right."""
    import torch

    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise WeightsDamaged(
            f"{source}: wrong keys (missing {missing[:3] or 'none'}, unknown {extra[:3] or 'none'}); "
            "the file belongs to another network"
        )
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise WeightsDamaged(
                f"{source}: {key}: expected shape {tuple(expected[key].shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise WeightsDamaged(f"{source}: {key}: expected floating point weights, got {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsDamaged(f"{source}: {key}: holds values that are not finite")
