"""Running planes: tiled equals whole, every dtype comes back, memory and stop are handled."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mdrn_plugin.engine import device
from mdrn_plugin.engine import run as engine
from mdrn_plugin.engine.device import FP32_KERNEL, KERNEL, KERNELS, resolve_device, resolve_precision, threads
from mdrn_plugin.engine.ensemble import eightfold
from mdrn_plugin.engine.run import Job, run_plane
from mdrn_plugin.errors import BadOption, Cancelled, NotSupported, OutOfMemory
from mdrn_plugin.networks import fp32_native, mdrn, native
from mdrn_plugin.networks.mdrn import MDRN, FoldedMDRN, exact_halo

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def _network(colours: int = 1, blocks: int = 1) -> FoldedMDRN:
    """A network with random weights that removes something of the size of noise."""
    torch.manual_seed(0)
    network = MDRN(colours, blocks)
    with torch.no_grad():
        network.tail.weight.mul_(0.2)
    return FoldedMDRN(network).eval()


def _job(network: nn.Module, **changes: Any) -> Job:
    job = Job(network, black=0.0, gain=1.0, tile=64, halo=exact_halo(1), stride=8)
    return dataclasses.replace(job, **changes)


def _run(pixels: NDArray[Any], job: Job) -> NDArray[Any]:
    out = np.empty_like(pixels)
    run_plane(pixels, out, job)
    return out


class _Whole(nn.Module):
    """What the engine asks of a network, by one that takes a tile in one strip."""

    def set_precision(self, dtype: torch.dtype) -> Self:
        return self

    def strips(self, height: int, width: int) -> int:
        return 1


class _Constant(_Whole):
    """Says that every pixel holds the same noise."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def residual(self, x: Tensor, between: Callable[[], None]) -> Tensor:
        between()
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("colours", [1, 3])
def test_run_plane_tiled_equals_whole(colours: int) -> None:
    noisy = np.random.default_rng(0).random((139, 107, colours), np.float32)
    network = _network(colours)
    whole = _run(noisy, _job(network, tile=512))
    tiled = _run(noisy, _job(network, tile=48))
    assert np.abs(whole - noisy).std() > 0.01  # it does something
    assert np.abs(whole - tiled).max() <= 1e-6


def test_run_plane_without_halo_differs() -> None:
    """The counterpart of the test above: were the halo ignored, it would show."""
    noisy = np.random.default_rng(0).random((104, 104, 1), np.float32)
    network = _network()
    assert (
        np.abs(_run(noisy, _job(network, tile=512)) - _run(noisy, _job(network, tile=48, halo=0))).max()
        > 1e-3
    )


def test_run_plane_every_size_to_40() -> None:
    network, rng = _network(), np.random.default_rng(1)
    for n in range(1, 41):
        for shape in ((n, n, 1), (1, n, 1), (n, 1, 1)):
            noisy = rng.random(shape, np.float32)
            out = _run(noisy, _job(network))
            assert out.shape == shape
            assert np.isfinite(out).all()


@pytest.mark.parametrize("shape", [(1, 40), (9, 33), (17, 24), (40, 40)])
def test_run_plane_odd_size_tiled_equals_whole(shape: tuple[int, int]) -> None:
    network, noisy = _network(), np.random.default_rng(1).random((*shape, 1), np.float32)
    assert np.abs(_run(noisy, _job(network, tile=16)) - _run(noisy, _job(network))).max() <= 1e-6


@pytest.mark.parametrize(
    "kind", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", ">u2", ">f4", "f2", "f4", "f8"]
)
def test_run_plane_keeps_dtype_and_saturates(kind: str) -> None:
    dtype = np.dtype(kind)
    white = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
    pixels = np.array([[0.0, 0.5, 1.0]])[..., None] * white
    pixels = np.minimum(pixels, np.nextafter(white, 0) if dtype.kind != "f" else white).astype(dtype)
    for noise in (-0.25, 0.25):
        out = _run(pixels, _job(_Constant(noise), gain=1 / white))
        assert out.dtype == dtype
        expected = pixels.astype(float) - noise * white
        if dtype.kind != "f":
            expected = np.clip(expected, np.iinfo(dtype).min, np.iinfo(dtype).max)
        np.testing.assert_allclose(
            out.astype(float), expected, rtol=2e-3, atol=0.51 if dtype.kind != "f" else 1e-3
        )


def test_run_plane_saturates_at_the_sensors_white() -> None:
    pixels = np.full((8, 8, 1), 4090, np.uint16)
    out = _run(pixels, _job(_Constant(-0.1), gain=1 / 4095, saturate=(0, 4095)))
    assert (out == 4095).all()


def test_run_plane_not_finite_pixels_come_back_and_do_not_spread() -> None:
    clean = np.random.default_rng(2).random((64, 64, 1), np.float32)
    broken = clean.copy()
    broken[5, 5], broken[40, 20], broken[41, 20] = np.nan, np.inf, -np.inf
    job = _job(_network(), fill=0.5)
    a, b = _run(clean, job), _run(broken, job)
    assert np.isnan(b[5, 5, 0])
    assert b[40, 20, 0] == np.inf
    assert b[41, 20, 0] == -np.inf
    finite = np.isfinite(b)
    assert finite.sum() == 64 * 64 - 3
    assert np.abs(a - b)[finite].max() < 1


def test_run_plane_extreme_value_survives_and_stays_alone() -> None:
    pixels = np.full((32, 32, 1), 0.5, np.float32)
    pixels[16, 16] = 1e30
    out = _run(pixels, _job(_network()))
    assert out[16, 16, 0] == pytest.approx(1e30)
    assert np.abs(np.delete(out.ravel(), 16 * 32 + 16)).max() < 10


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_run_plane_strength_blends(strength: float) -> None:
    pixels = np.full((8, 8, 1), 0.5, np.float32)
    assert _run(pixels, _job(_Constant(0.2), strength=strength)) == pytest.approx(0.5 - 0.2 * strength)


def test_run_plane_bf16_close_to_fp32() -> None:
    noisy = np.random.default_rng(3).random((96, 96, 1), np.float32)
    network = _network()
    fp32 = _run(noisy, _job(network))
    bf16 = _run(noisy, _job(network, precision="bf16"))
    assert (fp32 - bf16).std() <= 0.02 * (fp32 - noisy).std()


@pytest.mark.parametrize("precision", KERNELS)
def test_run_plane_by_a_kernel_has_the_same_bytes_in_any_tiles(precision: str) -> None:
    if KERNELS[precision].library() is None:
        pytest.skip(f"no compiled kernel here: {KERNELS[precision].why_not()}")
    noisy = np.random.default_rng(3).random((136, 152, 1), np.float32)
    network = _network()
    fp32 = _run(noisy, _job(network))
    whole = _run(noisy, _job(network, precision=precision, tile=512))
    assert (fp32 - whole).std() <= {KERNEL: 0.01, FP32_KERNEL: 1e-5}[precision] * (fp32 - noisy).std()
    for tile in (32, 64):
        assert np.array_equal(_run(noisy, _job(network, precision=precision, tile=tile)), whole)


@pytest.mark.parametrize("precision", KERNELS)
def test_plan_for_a_kernel_where_it_is_not_is_refused(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are not those of the operators, and a plan gives the same bytes everywhere."""
    monkeypatch.setattr(KERNELS[precision], "library", lambda: None)
    with pytest.raises(NotSupported, match="--precision fp32"):
        _run(np.zeros((16, 16, 1), np.float32), _job(_network(), precision=precision))


@pytest.mark.parametrize(("tile", "ensemble"), [(512, 1), (48, 1), (48, 8)])
def test_run_plane_tells_progress_as_often_as_announced(
    tile: int, ensemble: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdrn, "_STRIP_BYTES", 16 * 100 * 64 * 4)
    pixels = np.random.default_rng(0).random((139, 107, 1), np.float32)
    job = _job(_network(), tile=tile, halo=16, ensemble=ensemble)
    told: list[int] = []
    run_plane(pixels, np.empty_like(pixels), job, tile_done=lambda: told.append(1))
    assert len(told) == engine.count_tiles(139, 107, job) > 5


def test_run_plane_stop_inside_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdrn, "_STRIP_BYTES", 0)  # strips of 8 rows
    pixels, told = np.zeros((64, 64, 1), np.float32), list[int]()
    with pytest.raises(Cancelled):
        run_plane(
            pixels,
            pixels.copy(),
            _job(_network()),
            tile_done=lambda: told.append(1),
            stop=lambda: len(told) == 3,
        )
    assert len(told) == 3


def test_run_plane_stop_between_tiles() -> None:
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 2

    pixels = np.zeros((160, 96, 1), np.float32)
    done: list[int] = []
    with pytest.raises(Cancelled):
        run_plane(
            pixels,
            np.empty_like(pixels),
            _job(_Constant(0), tile=16),
            tile_done=lambda: done.append(1),
            stop=stop,
        )
    assert len(done) == 2


class _Hungry(_Whole):
    """Runs out of memory on tiles above a size, as torch does on a CPU."""

    def __init__(self, largest: int, message: str = "DefaultCPUAllocator: can't allocate memory") -> None:
        super().__init__()
        self.largest, self.message = largest, message

    def residual(self, x: Tensor, between: Callable[[], None]) -> Tensor:
        between()
        if x.shape[-1] > self.largest:
            raise RuntimeError(self.message)
        return torch.zeros_like(x)


def test_run_plane_out_of_memory_halves_the_tile() -> None:
    pixels = np.random.default_rng(0).random((300, 300, 1), np.float32)
    out = np.empty_like(pixels)
    job = run_plane(pixels, out, _job(_Hungry(160), tile=256, halo=16))
    assert job.tile == 128
    np.testing.assert_array_equal(out, pixels)


def test_run_plane_out_of_memory_with_users_tile_says_what_fits() -> None:
    pixels = np.zeros((300, 300, 1), np.float32)
    with pytest.raises(OutOfMemory, match="--tile 128"):
        run_plane(pixels, pixels.copy(), _job(_Hungry(100), tile=256, user_tile=True))


def test_run_plane_out_of_memory_everywhere_gives_up() -> None:
    pixels = np.zeros((64, 64, 1), np.float32)
    with pytest.raises(OutOfMemory, match="close other programs"):
        run_plane(pixels, pixels.copy(), _job(_Hungry(0), tile=64))


def test_run_plane_another_runtime_error_is_not_retried() -> None:
    pixels = np.zeros((64, 64, 1), np.float32)
    with pytest.raises(RuntimeError, match="illegal"):
        run_plane(pixels, pixels.copy(), _job(_Hungry(0, "CUDA error: an illegal memory access")))


def test_eightfold_follows_flips_and_rotations() -> None:
    network, x = _network(), torch.rand(1, 1, 16, 24)
    with torch.no_grad():
        out = eightfold(network.residual, x)
        for k in (1, 4, 7):
            turned = torch.rot90(x.flip(-1) if k >= 4 else x, k % 4, (-2, -1))
            expected = torch.rot90(out.flip(-1) if k >= 4 else out, k % 4, (-2, -1))
            torch.testing.assert_close(eightfold(network.residual, turned), expected, rtol=0, atol=1e-5)


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("wish", ["gpu", "cuda:x", "cuda:99", ""])
def test_resolve_device_impossible_names_the_remedy(wish: str) -> None:
    with pytest.raises(BadOption, match="cpu"):
        resolve_device(wish)


def test_resolve_precision_is_decided_by_hardware_not_by_timing() -> None:
    assert resolve_precision("auto", "cpu") == resolve_precision("auto", "cpu")
    assert resolve_precision("fp32", "cpu") == "fp32"
    with pytest.raises(BadOption):
        resolve_precision("fp8", "cpu")


def test_resolve_precision_bf16_names_the_kernel_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: object())
    assert resolve_precision("bf16", "cpu") == KERNEL
    assert resolve_precision("bf16", "cuda:0") == "bf16"
    assert resolve_precision("fp32", "cpu") == "fp32"
    monkeypatch.setattr(native, "library", lambda: None)
    assert resolve_precision("bf16", "cpu") == "bf16"


def test_resolve_precision_auto_takes_the_fp32_kernel_where_only_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "multiplies_bf16", lambda _: False)
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(fp32_native, "library", lambda: object())
    assert resolve_precision("auto", "cpu") == FP32_KERNEL
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("auto", "mps") == "fp32"
    monkeypatch.setattr(native, "library", lambda: object())
    assert resolve_precision("auto", "cpu") == KERNEL
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(device, "multiplies_bf16", lambda _: True)
    assert resolve_precision("auto", "cpu") == "bf16"  # by operators: which is faster has not been measured
    monkeypatch.setattr(device, "multiplies_bf16", lambda _: False)
    monkeypatch.setattr(fp32_native, "library", lambda: None)
    assert resolve_precision("auto", "cpu") == "fp32"


def test_placed_network_runs_operators_unless_the_plan_is_for_a_kernel() -> None:
    network = _network()
    assert engine.placed(network, "cpu", "fp32").kernel is None
    assert engine.placed(network, "cpu", "bf16").kernel is None


def test_placed_network_is_kept() -> None:
    network = _network()
    assert engine.placed(network, "cpu", "fp32") is engine.placed(network, "cpu", "fp32")
    assert engine.placed(network, "cpu", "bf16") is not engine.placed(network, "cpu", "fp32")
