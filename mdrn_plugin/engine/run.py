"""Running a network over planes, tile by tile, straight into the output.

Memory is bounded by the tile: a tile is read from the source, turned into floats, denoised,
turned back and written; neither a float copy of the picture nor a full-size result in another
type ever exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mdrn_plugin.engine.device import FP32_KERNEL, KERNELS, is_out_of_memory
from mdrn_plugin.engine.ensemble import eightfold
from mdrn_plugin.engine.heap import HEAP
from mdrn_plugin.engine.tiles import Tile, Window, cut
from mdrn_plugin.errors import Cancelled, NotSupported, OutOfMemory
from mdrn_plugin.networks import non_local
from mdrn_plugin.networks.mdrn import FoldedMDRN
from mdrn_plugin.networks.non_local import Refined
from mdrn_plugin.networks.scales import TwoScales

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

# The network sees values of about 0..1; what lies beyond these limits (hot pixels, 1e30) is kept
# aside and added back, so that it neither leaks into its surroundings nor is lost.
_SEEN = (-2.0, 3.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """How one plane is run.

    Attributes
    ----------
    network : nn.Module
        Inference form, float32: ``residual(x, between=...)``, ``strips(height, width)``,
        ``set_precision(dtype)`` as `networks.mdrn.FoldedMDRN` has them.
    black, gain : float
        The network sees ``(value - black) * gain``.
    tile, halo, stride : int
        px.
    ensemble : int
        1, or 8 for the self-ensemble.
    device, precision : str
        As `engine.device` resolves them.
    strength : float
        0 returns the input, 1 the network's result.
    saturate : pair of float, optional
        Limits of the stored integers in file units; None for floats.
    fill : float
        File-unit value that stands in for pixels that are not finite while the network runs.
    user_tile : bool
        The user set the tile: it is not overridden when memory runs out.
    """

    network: nn.Module
    black: float
    gain: float
    tile: int
    halo: int
    stride: int
    ensemble: int = 1
    device: str = "cpu"
    precision: str = "fp32"
    strength: float = 1.0
    saturate: tuple[float, float] | None = None
    fill: float = 0.0
    user_tile: bool = False


Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


def count_tiles(height: int, width: int, job: Job) -> int:
    """Return how many strips of tiles `run_plane` will go through."""
    network = placed(job.network, job.device, job.precision)
    total = 0
    for tile in cut(height, width, job.tile, job.halo, job.stride):
        rows, columns = tile.read_bottom - tile.read_top, tile.read_right - tile.read_left
        rows, columns = rows + -rows % job.stride, columns + -columns % job.stride
        total += _strips(network, rows, columns)
        if job.ensemble == 8:
            total += 3 * _strips(network, rows, columns) + 4 * _strips(network, columns, rows)
    return total


def _strips(network: nn.Module, height: int, width: int) -> int:
    count: int = network.strips(height, width)  # type: ignore[operator]
    return count


def run_plane(
    source_HWC: Any,
    target_HWC: NDArray[Any],
    job: Job,
    *,
    window: Window | None = None,
    tile_done: Callable[[], None] | None = None,
    stop: Stop | None = None,
) -> Job:
    """Denoise one plane into `target_HWC`.

    Parameters
    ----------
    source_HWC : array (H, W, C)
        Any real dtype, file units; sliced tile by tile, never written to.
    target_HWC : ndarray (H, W, C)
        Same dtype; may be a view.
    job : Job
        Network, scale, tiles, device.
    window : Window, optional
        Compute only this part of the plane.
    tile_done : callable, optional
        Called after every strip of a tile, as often as `count_tiles` says.
    stop : callable, optional
        Asked before every strip.

    Returns
    -------
    Job
        As it was carried out: a smaller tile or another device after memory ran out.

    Raises
    ------
    Cancelled
        `stop` said so; the target is half done and must be thrown away.
    OutOfMemory
        Not even the smallest tile fits, or the user's own does not.
    """
    height, width = source_HWC.shape[:2]
    while True:
        try:
            with torch.inference_mode():
                network = placed(job.network, job.device, job.precision)
                begun = False

                def between() -> None:
                    nonlocal begun
                    if begun and tile_done is not None:
                        tile_done()
                    begun = True
                    if stop is not None and stop():
                        raise Cancelled("stopped on request; nothing was written")

                for tile in cut(height, width, job.tile, job.halo, job.stride, window):
                    _run_tile(source_HWC, target_HWC, tile, network, job, between)
                    if job.device == "cpu":
                        HEAP.after_tile()
                if begun and tile_done is not None:
                    tile_done()
            return job
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            job = smaller_job(job, error)


def smaller_job(job: Job, error: BaseException) -> Job:
    """Return the next thing to try after memory ran out: half the tile, then the CPU.

    Raises
    ------
    OutOfMemory
        Nothing is left to try, or the user set the tile.
    """
    if job.device.startswith("cuda"):
        torch.cuda.empty_cache()
    smallest = 8 * job.stride
    half = max(smallest, job.tile // 2 // job.stride * job.stride)
    if job.user_tile:
        raise OutOfMemory(
            f"tile {job.tile}: does not fit into the memory of {job.device}; "
            f"try --tile {half} or leave it out"
        ) from error
    if half < job.tile:
        return dataclasses.replace(job, tile=half)
    if job.device != "cpu":
        return dataclasses.replace(job, device="cpu", precision="fp32")
    raise OutOfMemory(f"out of memory even with tiles of {smallest} px; close other programs") from error


def _run_tile(
    source: Any,
    target: NDArray[Any],
    tile: Tile,
    network: nn.Module,
    job: Job,
    between: Callable[[], None],
) -> None:
    values = np.asarray(source[tile.read_top : tile.read_bottom, tile.read_left : tile.read_right])
    x_HWC: Any = values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)
    odd = ~np.isfinite(x_HWC) if values.dtype.kind == "f" else None
    if odd is not None and odd.any():
        x_HWC[odd] = job.fill
    else:
        odd = None
    scaled = ((x_HWC - job.black) * job.gain).astype(np.float32)
    seen = np.clip(scaled, *_SEEN)

    x_NCHW = _to_device(_pad(seen, job.stride), job.device)
    # What is asked of the network is the residual; it is subtracted here, in at least float32.
    # The caller may be inside an autocast block of its own: the plan decides the precision.
    with torch.autocast(job.device.split(":")[0], enabled=False):
        noise_NCHW = (
            eightfold(lambda t: _residual(network, t, between), x_NCHW)
            if job.ensemble == 8
            else _residual(network, x_NCHW, between)
        )
    noise = noise_NCHW[0].permute(1, 2, 0).float().cpu().numpy()

    rows = slice(tile.top - tile.read_top, tile.bottom - tile.read_top)
    columns = slice(tile.left - tile.read_left, tile.right - tile.read_left)
    result = x_HWC[rows, columns] - noise[rows, columns] * (job.strength / job.gain)
    if odd is not None:
        place = odd[rows, columns]
        result[place] = values[rows, columns][place]
    target[tile.top : tile.bottom, tile.left : tile.right] = store(result, values.dtype, job.saturate)


def store(
    result: NDArray[np.floating[Any]], dtype: np.dtype[Any], limits: tuple[float, float] | None
) -> NDArray[Any]:
    """Return values in file units as `dtype`; integers are rounded and saturate at `limits`."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # float16 may overflow to infinity only where it was near it
            return result.astype(dtype)
    if dtype.kind == "b":
        return result >= 0.5
    info = np.iinfo(dtype)
    low, high = limits or (info.min, info.max)
    rounded = np.rint(result)
    stored = np.clip(rounded, low, high)
    # A float cannot hold the largest 64-bit integers: what reaches the limit is set, not cast.
    top = stored >= float(high)
    out = np.where(top, 0, stored).astype(dtype)
    out[top] = int(high)
    return out


def _residual(network: nn.Module, x_NCHW: Tensor, between: Callable[[], None]) -> Tensor:
    noise: Tensor = network.residual(x_NCHW, between=between)  # type: ignore[operator]
    return noise.float()


def _pad(x_HWC: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Mirror the right and lower border out to multiples of `stride`.

    "symmetric" rather than "reflect": it exists for a single pixel too.
    """
    down, right = -x_HWC.shape[0] % stride, -x_HWC.shape[1] % stride
    if not down and not right:
        return x_HWC
    return np.pad(x_HWC, ((0, down), (0, right), (0, 0)), mode="symmetric")


def _to_device(x_HWC: NDArray[np.float32], device: str) -> Tensor:
    # An HWC array seen as NCHW is channels_last already.
    x = torch.from_numpy(np.ascontiguousarray(x_HWC))[None].permute(0, 3, 1, 2)
    return x.to(device).contiguous(memory_format=torch.channels_last)


_placed: dict[tuple[int, str, str], tuple[nn.Module, nn.Module]] = {}


def placed(network: nn.Module, device: str, precision: str) -> nn.Module:
    """Return a copy of `network` on a device in a precision; made once and kept.

    Raises
    ------
    NotSupported
        The precision is that of a compiled kernel, which is not here: another would give other bytes.
    """
    import copy

    if isinstance(network, TwoScales):
        return TwoScales(*(placed(part, device, precision) for part in (network.fine, network.coarse)))
    if isinstance(network, Refined):
        if network.kernel and device == "cpu" and non_local.library() is None:
            raise NotSupported(
                "the plan was made where the compiled kernel for what a picture repeats runs, and here it "
                f"does not ({non_local.why_not()}); plan again on this machine"
            )
        inner, gates = (placed(part, device, precision) for part in (network.network, network.gates))
        return Refined(inner, gates, network.sigma, kernel=network.kernel)
    kernel = KERNELS.get(precision)
    if kernel is not None and kernel.library() is None:
        raise NotSupported(
            f"precision {precision}: the plan was made where MDRN's compiled kernel runs, and here it does "
            f"not ({kernel.why_not()}); plan again on this machine, or everywhere with --precision fp32"
        )
    key = (id(network), device, precision)
    if key not in _placed:
        dtype = torch.float32 if precision in ("fp32", FP32_KERNEL) else torch.bfloat16
        twin: Any = copy.deepcopy(network)
        if isinstance(twin, FoldedMDRN) and precision == FP32_KERNEL:
            twin.use_fp32_kernel()
        twin = twin.set_precision(dtype)
        if isinstance(twin, FoldedMDRN) and kernel is None:
            twin.kernel = None
        twin = twin.to(device, memory_format=torch.channels_last).eval()
        _placed[key] = (network, twin)  # the original too: its id must not be used again
    return _placed[key][1]
