"""Other runtimes in the place of torch: a model's ONNX graph, on the CPU, in float32.

A `RuntimeNetwork` is to the engine what a `networks.mdrn.FoldedMDRN` is, so that tiles, scale, saturation,
stabilising and checks are the same code for all backends. The graph is that of `mdrn_plugin.export`.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mdrn_plugin.errors import BadOption, NotSupported
from mdrn_plugin.options import BACKENDS

if TYPE_CHECKING:
    from mdrn_plugin.zoo import Zoo


def is_installed(backend: str) -> bool:
    """Whether a backend other than torch can run: it, and what makes its graphs."""
    return all(importlib.util.find_spec(name) is not None for name in (backend, "onnx"))


def resolve_backend(wish: str, device: str, precision: str) -> str:
    """Return the backend that a wish means on this installation; "auto" is torch.

    Parameters
    ----------
    wish : str
        "auto" or one of `plan.BACKENDS`.
    device, precision : str
        As wished for, not resolved: other runtimes than torch compute on the CPU in fp32.

    Raises
    ------
    BadOption
        Not a backend, or one that cannot do what else is wished for.
    NotSupported
        Its extra is not installed.
    """
    if wish in ("auto", "torch"):
        return "torch"
    if wish not in BACKENDS:
        raise BadOption(f"backend {wish!r}: expected one of auto, {', '.join(BACKENDS)}")
    if device not in ("auto", "cpu"):
        raise BadOption(f"backend {wish}: computes on the CPU, not on {device}; use --device cpu")
    if precision not in ("auto", "fp32"):
        raise BadOption(f"backend {wish}: computes in fp32, not in {precision}; use --precision fp32")
    if not is_installed(wish):
        raise NotSupported(
            f"backend {wish}: is not installed; pip install 'mdrn-plugin[onnx]', or use --backend torch"
        )
    return wish


class RuntimeNetwork(nn.Module):
    """A network in onnxruntime; called as the engine calls its own.

    Parameters
    ----------
    model : bytes
        ONNX, as `mdrn_plugin.export.onnx_model` makes it.
    count : int
        CPU threads.
    """

    def __init__(self, model: bytes, count: int) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeNetwork:
        """Return the network itself: nothing in it changes, and a session cannot be copied."""
        return self

    def set_precision(self, dtype: torch.dtype) -> RuntimeNetwork:
        """Return the network; `dtype` is torch.float32, the plan sees to it."""
        assert dtype == torch.float32
        return self

    def strips(self, height: int, width: int) -> int:
        """Return 1: a tile goes through in one piece."""
        return 1

    def residual(self, x_NCHW: Tensor, *, between: Callable[[], None] | None = None) -> Tensor:
        """Return the noise that the network sees in `x_NCHW`, float32; as of `FoldedMDRN`."""
        if between is not None:
            between()
        noisy = np.ascontiguousarray(x_NCHW.numpy())
        try:
            (denoised,) = self._session.run(None, {"noisy": noisy})
        except Exception as error:
            if "llocate" in str(error):  # its own class of errors, with nothing else to tell them by
                raise MemoryError(str(error)) from error
            raise
        return x_NCHW - torch.from_numpy(denoised)


_lock = threading.Lock()
_ready: dict[tuple[str, str, int], RuntimeNetwork] = {}


def load_network(zoo: Zoo, name: str, backend: str, count: int) -> nn.Module:
    """Return a model of the zoo as the engine runs it, made once and kept.

    Parameters
    ----------
    zoo : Zoo
        Where the model is.
    name : str
        Of the model.
    backend : str
        As a `plan.Step` says.
    count : int
        CPU threads; of other backends than torch, which has its own setting.

    Raises
    ------
    UnknownModel, WeightsDamaged
        As of `Zoo.load`.
    NotSupported
        The backend is not installed here: the plan was made elsewhere.
    """
    if backend == "torch":
        return zoo.load(name)
    resolve_backend(backend, "cpu", "fp32")
    key = (zoo.get(name).sha256, backend, count)
    with _lock:
        if key not in _ready:
            from mdrn_plugin.export import onnx_model

            network: Any = zoo.load_plain(name)
            _ready[key] = RuntimeNetwork(onnx_model(network).SerializeToString(), count)
        return _ready[key]
