"""An exported model runs in onnxruntime without this package and gives the same picture."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mdrn_plugin.errors import BadOption, NotSupported, UnknownModel
from mdrn_plugin.export import export_onnx, onnx_model
from mdrn_plugin.networks.mdrn import MDRN
from mdrn_plugin.zoo import shipped

if TYPE_CHECKING:
    from pathlib import Path

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def _run(model: bytes, noisy: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"noisy": noisy})[0]
    return answer


@pytest.mark.parametrize(
    ("colours", "settings", "precision", "limit"),
    [
        (1, {}, "fp32", 1e-5),
        (3, {"blocks": 1, "channels": 16, "unshuffle": 2}, "fp32", 1e-5),
        (1, {"blocks": 1}, "fp16", 5e-3),
    ],
)
@pytest.mark.parametrize("size", [(32, 48), (80, 16)])
def test_onnx_equals_torch_at_any_size(
    colours: int, settings: dict[str, int], precision: str, limit: float, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    network = MDRN(colours, **settings)
    noisy = np.random.default_rng(0).random((2, colours, *size), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(noisy)).numpy()
    found = _run(onnx_model(network, precision=precision).SerializeToString(), noisy)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < limit
    assert np.abs(found - noisy).max() > 10 * limit  # it does something


def test_shipped_model_runs_without_our_package(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    export_onnx(shipped(), "mdrn-2b-gray-20-35", file)
    noisy = np.random.default_rng(0).normal(0.5, 0.1, (1, 1, 64, 88)).astype(np.float32)
    np.save(tmp_path / "noisy.npy", noisy)
    program = (
        "import sys, numpy, onnxruntime\n"
        "folder = sys.argv[1]\n"
        "session = onnxruntime.InferenceSession(folder + '/model.onnx', providers=['CPUExecutionProvider'])\n"
        "out = session.run(None, {'noisy': numpy.load(folder + '/noisy.npy')})[0]\n"
        "numpy.save(folder + '/out.npy', out)\n"
        "assert not any(m.split('.')[0] in ('mdrn_plugin', 'torch') for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    with torch.no_grad():
        expected = shipped().load("mdrn-2b-gray-20-35")(torch.from_numpy(noisy)).numpy()
    found = np.load(tmp_path / "out.npy")
    assert np.abs(found - expected).max() < 1e-4
    assert np.abs(found - noisy).std() > 0.05


def test_metadata_say_what_the_model_is(tmp_path: Path) -> None:
    export_onnx(shipped(), "mdrn-2b-colour-0-90", tmp_path / "m.onnx", precision="fp16")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    descriptor = shipped().get("mdrn-2b-colour-0-90")
    assert about["name"] == descriptor.name
    assert about["sha256"] == descriptor.sha256
    assert json.loads(about["trained_255"]) == list(descriptor.trained_255)
    assert json.loads(about["size_multiple"]) == 8
    assert [o.version for o in onnx.load(tmp_path / "m.onnx").opset_import] == [17]
    assert session.get_inputs()[0].shape == ["N", 3, "H", "W"]


def test_impossible_exports_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadOption, match="fp16"):
        export_onnx(shipped(), "mdrn-2b-gray-0-90", tmp_path / "m.onnx", precision="int8")
    with pytest.raises(UnknownModel):
        export_onnx(shipped(), "no-such", tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NotSupported, match="export"):
        export_onnx(shipped(), "mdrn-2b-gray-0-90", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_export_command_writes_the_file(tmp_path: Path) -> None:
    from mdrn_plugin.cli import cli

    target = tmp_path / "m.onnx"
    result = CliRunner().invoke(cli, ["export", "mdrn-2b-gray-0-90", "--onnx", str(target)])
    assert result.exit_code == 0, result.output
    onnx.checker.check_model(str(target))
