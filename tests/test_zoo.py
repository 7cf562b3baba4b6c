"""Weights are checked before they are used; what ships is whole."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from mdrn_plugin.errors import UnknownModel, WeightsDamaged
from mdrn_plugin.networks.mdrn import MDRN, exact_halo
from mdrn_plugin.zoo import open_zoo, shipped


def _entry(data: bytes, **changes: Any) -> dict[str, Any]:
    entry = {
        "name": "tiny",
        "file": "tiny.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "architecture": "mdrn",
        "settings": {"colours": 1, "blocks": 1},
        "tier": "balanced",
        "band_255": [0, 90],
        "trained_255": [0, 92],
        "stride": 8,
        "halo": 48,
        "default_halo": 32,
    }
    return {**entry, **changes}


def _folder(path: Path, data: bytes, **changes: Any) -> Path:
    (path / "tiny.safetensors").write_bytes(data)
    (path / "manifest.json").write_text(json.dumps({"format": 1, "models": [_entry(data, **changes)]}))
    return path


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(MDRN(1, 1).state_dict())


def test_load_good_weights_denoises_as_trained(tmp_path: Path) -> None:
    state = _state()
    network = open_zoo(_folder(tmp_path, save(state))).load("tiny")
    plain, x = MDRN(1, 1), torch.rand(1, 1, 16, 16)
    plain.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-5)


def test_load_flipped_byte_is_refused(tmp_path: Path) -> None:
    data = save(_state())
    zoo = open_zoo(_folder(tmp_path, data))
    broken = bytearray(data)
    broken[len(data) // 2] ^= 1
    (tmp_path / "tiny.safetensors").write_bytes(broken)
    with pytest.raises(WeightsDamaged, match=r"tiny\.safetensors.*sha256"):
        zoo.load("tiny")


def test_load_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsDamaged, match="not a safetensors file"):
        open_zoo(_folder(tmp_path, pickle.dumps({"a": 1}))).load("tiny")


def test_load_missing_file_is_refused(tmp_path: Path) -> None:
    zoo = open_zoo(_folder(tmp_path, save(_state())))
    (tmp_path / "tiny.safetensors").unlink()
    with pytest.raises(WeightsDamaged, match="cannot be read"):
        zoo.load("tiny")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda s: s.pop("head.weight"), "wrong keys"),
        (lambda s: s.update(extra=torch.zeros(1)), "wrong keys"),
        (lambda s: s.update({"head.weight": torch.zeros(64, 3, 3, 3)}), "expected shape"),
        (lambda s: s.update({"head.weight": torch.zeros(64, 1, 3, 3, dtype=torch.int32)}), "floating point"),
        (lambda s: s["tail.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_load_wrong_tensors_are_refused(tmp_path: Path, harm: Any, message: str) -> None:
    state = {k: v.clone() for k, v in _state().items()}
    harm(state)
    with pytest.raises(WeightsDamaged, match=message):
        open_zoo(_folder(tmp_path, save(state))).load("tiny")


def test_load_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsDamaged, match="update mdrn-plugin"):
        open_zoo(_folder(tmp_path, save(_state()), architecture="unet")).load("tiny")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": 2, "models": []}', '{"format": 1, "models": [{}]}']
)
def test_open_zoo_bad_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(WeightsDamaged, match=r"manifest\.json"):
        open_zoo(tmp_path)


def test_get_unknown_model_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="tiny"):
        open_zoo(_folder(tmp_path, save(_state()))).get("huge")


def test_shipped_models_cover_all_noise_in_gray_and_colour() -> None:
    for colours in (1, 3):
        bands = [d.band_255 for d in shipped().descriptors if d.colours == colours and d.tier == "balanced"]
        for level in range(0, 91):
            assert any(low <= level <= high for low, high in bands), (colours, level)


def test_shipped_models_are_intact_and_say_their_limits() -> None:
    for descriptor in shipped().descriptors:
        network = shipped().load(descriptor.name)
        if descriptor.architecture == "mdrn":
            settings = descriptor.settings
            assert descriptor.halo == exact_halo(settings["blocks"], settings.get("unshuffle", 1))
        else:
            assert (descriptor.halo, descriptor.stride) == (network.halo, network.stride)
        assert descriptor.trained_255[0] <= descriptor.band_255[0] + 1e-6
        assert descriptor.trained_255[1] >= descriptor.band_255[1]


def test_shipped_model_loads_in_a_third_of_a_second() -> None:
    from mdrn_plugin import zoo

    descriptor = shipped().descriptors[0]
    times = []
    for _ in range(3):
        zoo._loaded.clear()
        began = time.process_time()
        shipped().load(descriptor.name)
        times.append(time.process_time() - began)
    assert min(times) < 0.3
