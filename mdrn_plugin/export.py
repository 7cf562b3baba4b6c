"""Models as ONNX files that run without this package.

The graph is written node by node from the weights, in standard operators: no tracing, and nothing
but `onnx` is needed for it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdrn_plugin.errors import BadOption, NotSupported
from mdrn_plugin.files import write_atomic

if TYPE_CHECKING:
    import os

    from torch import Tensor

    from mdrn_plugin.networks.mdrn import MDRN
    from mdrn_plugin.zoo import Zoo

OPSET = 17
PRECISIONS = ("fp32", "fp16")


def export_onnx(zoo: Zoo, name: str, path: str | os.PathLike[str], *, precision: str = "fp32") -> None:
    """Write a model as an ONNX file.

    The file takes ``noisy`` (N, C, H, W), float32, white = 1, height and width multiples of
    ``size_multiple``, and returns ``denoised``, alike. Its metadata hold what the manifest says of
    the model.

    Parameters
    ----------
    zoo : Zoo
        Where the model is.
    name : str
        Of the model.
    path : path-like
        The file; replaced if it is there.
    precision : str
        Of weights and arithmetic, "fp32" or "fp16"; the residual is subtracted in float32.

    Raises
    ------
    UnknownModel, WeightsDamaged, OutputUnusable
        As of `Zoo.load` and `files.write_atomic`.
    NotSupported
        `onnx` is not installed, or the model is of another architecture.
    BadOption
        `precision` is neither.
    """
    if precision not in PRECISIONS:
        raise BadOption(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    try:
        import onnx
    except ImportError as error:
        raise NotSupported("ONNX export needs onnx; pip install 'mdrn-plugin[onnx]'") from error
    from mdrn_plugin.networks.mdrn import MDRN

    descriptor = zoo.get(name)
    network = zoo.load_plain(name)
    if not isinstance(network, MDRN):
        raise NotSupported(f"model {name}: ONNX export is for MDRN, not for {descriptor.architecture}")
    facts = dataclasses.asdict(descriptor)
    about = {key: facts[key] for key in ("name", "sha256", "architecture", "settings", "tier", "colours")}
    about |= {key: facts[key] for key in ("band_255", "trained_255", "teacher", "distillation", "psnr")}
    about |= {
        "size_multiple": network.stride,
        "exact_halo": descriptor.halo,
        "precision": precision,
        "values": "white = 1; the model denoises noise of trained_255 / 255",
        "licence": "BSD-3-Clause",
    }
    model = onnx_model(network, precision=precision)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.checker.check_model(model)
    with write_atomic(Path(path)) as file:
        file.write(model.SerializeToString())


def onnx_model(network: MDRN, *, precision: str = "fp32") -> Any:
    """Return the ONNX model of a network, any size of picture, without metadata."""
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph(half=precision == "fp16")
    answer = graph.network(network, "noisy")
    graph.node("Sub", ["noisy", answer], output="denoised")
    shape: list[str | int | None] = ["N", network.colours, "H", "W"]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "MDRN",
            [helper.make_tensor_value_info("noisy", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("denoised", TensorProto.FLOAT, shape)],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="mdrn-plugin",
        ir_version=8,  # what opset 17 came with: older runtimes read it
    )
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Nodes and weights in the order in which they are computed."""

    def __init__(self, *, half: bool) -> None:
        self.half = half
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def node(self, kind: str, inputs: list[str], *, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def weight(self, tensor: Tensor) -> str:
        from onnx import numpy_helper

        values = tensor.detach().cpu().float().numpy()
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype("float16") if self.half else values, name))
        return name

    def convolution(
        self, x: str, layer: Any, *, stride: int = 1, dilation: int = 1, weight: Tensor | None = None
    ) -> str:
        tensor = layer.weight if weight is None else weight
        margin = dilation * (tensor.shape[2] - 1) // 2 if stride == 1 else 0
        return self.node(
            "Conv",
            [x, self.weight(tensor), self.weight(layer.bias)],
            kernel_shape=list(tensor.shape[2:]),
            strides=[stride, stride],
            dilations=[dilation, dilation],
            pads=[margin] * 4,
        )

    def network(self, network: MDRN, x: str) -> str:
        """Add the network; return the name of its residual, float32."""
        from onnx import TensorProto

        from mdrn_plugin.networks.mdrn import LEVELS, node_order

        if self.half:
            x = self.node("Cast", [x], to=TensorProto.FLOAT16)
        head = network.head.weight
        side = network.unshuffle
        if side > 1:
            x = self.node("SpaceToDepth", [x], blocksize=side)
            # ONNX counts the places of a block first, then the colours; torch the other way round.
            outputs, samples, rows, columns = head.shape
            grouped = head.reshape(outputs, network.colours, side * side, rows, columns)
            head = grouped.transpose(1, 2).reshape(outputs, samples, rows, columns)
        done: dict[tuple[int, int], str] = {}
        for i, j in node_order():
            name = f"{i}_{j}"
            if j > 0:
                up: Any = network.up[name]
                weights = [self.weight(up.weight), self.weight(up.bias)]
                risen = self.node(
                    "ConvTranspose", [done[i + 1, j - 1], *weights], kernel_shape=[2, 2], strides=[2, 2]
                )
                joined = self.node("Concat", [*(done[i, k] for k in range(j)), risen], axis=1)
            elif i > 0:
                joined = self.convolution(done[i - 1, 0], network.down[i - 1], stride=2)
            else:
                joined = self.convolution(x, network.head, weight=head)
            done[i, j] = self._group(network.msag[name], joined)
        noise = self.convolution(done[0, LEVELS - 1], network.tail)
        if side > 1:
            noise = self.node("DepthToSpace", [noise], blocksize=side, mode="CRD")
        return self.node("Cast", [noise], to=TensorProto.FLOAT) if self.half else noise

    def _group(self, group: Any, joined: str) -> str:
        from mdrn_plugin.networks.mdrn import unshuffle_columns

        fused = x = self.convolution(joined, group.fusion)
        for block in group.blocks:
            inner = self.node("Relu", [self.convolution(x, block.expand)])
            half = block.near.weight.shape[1]
            # Two convolutions of half the outputs would do too; a split keeps the file close to the paper.
            sizes = self._integers([half, half])
            names = [f"v{len(self.nodes)}a", f"v{len(self.nodes)}b"]
            self._split(inner, sizes, names)
            near = self.node("Relu", [self.convolution(names[0], block.near)])
            wide = self.node("Relu", [self.convolution(names[1], block.wide, dilation=2)])
            both = self.node("Concat", [near, wide], axis=1)
            merged = self.convolution(both, block.merge, weight=unshuffle_columns(block.merge.weight))
            x = self.node("Add", [merged, x])
        return self.node("Add", [x, fused])

    def _integers(self, values: list[int]) -> str:
        import numpy as np
        from onnx import numpy_helper

        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _split(self, x: str, sizes: str, names: list[str]) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Split", [x, sizes], names, axis=1))
