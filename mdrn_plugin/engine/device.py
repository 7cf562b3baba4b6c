"""Which device and which precision; decided from what the machine is, never by timing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from mdrn_plugin.errors import BadOption
from mdrn_plugin.networks import fan_native, fp32_native, native, non_local

# The precisions of plans that were made for a compiled kernel: its bytes are not those of the operators.
KERNEL = "bf16-kernel"
FP32_KERNEL = "fp32-kernel"
FAN_KERNEL = FP32_KERNEL  # the kernel of FAN, which computes in fp32
KERNELS = {KERNEL: native, FP32_KERNEL: fp32_native}  # of MDRN
CHOICES = "auto, cpu, cuda, cuda:N, mps"


def resolve_device(wish: str) -> str:
    """Turn a wish into the name of a device that is there.

    Parameters
    ----------
    wish : str
        "auto" takes the first CUDA device, else the CPU. Apple's MPS is used on request only.

    Raises
    ------
    BadOption
        Not a device name, or no such device on this machine.
    """
    if wish == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wish == "cpu":
        return "cpu"
    if wish == "cuda" or wish.startswith("cuda:"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        number = wish.removeprefix("cuda").removeprefix(":") or "0"
        if not number.isdigit():
            raise BadOption(f"device {wish!r}: expected one of {CHOICES}")
        if int(number) >= count:
            raise BadOption(
                f"device {wish!r}: this machine has {count} CUDA devices; use --device cpu or auto"
            )
        return f"cuda:{number}"
    if wish == "mps":
        if not torch.backends.mps.is_available():
            raise BadOption("device 'mps': not available on this machine; use --device cpu or auto")
        return "mps"
    raise BadOption(f"device {wish!r}: expected one of {CHOICES}")


def resolve_precision(wish: str, device: str) -> str:
    """Return "fp32", "bf16", "bf16-kernel" or "fp32-kernel".

    "auto" means bf16 where the hardware multiplies it directly (CUDA from Ampere on; CPUs with
    AMX or AVX512-BF16), else fp32. The residual is always subtracted in fp32. On CPUs where the
    compiled kernel runs (`networks.native`), bf16 is "bf16-kernel"; where that for fp32 runs
    (`networks.fp32_native`), fp32 by "auto" is "fp32-kernel". Networks that a kernel has no form for
    run on torch's operators. "fp32" is always those: the same bytes everywhere.
    """
    if wish not in ("auto", "fp32", "bf16"):
        raise BadOption(f"precision {wish!r}: expected one of auto, fp32, bf16")
    if wish == "fp32":
        return wish
    if device == "cpu" and native.library() is not None:
        return KERNEL
    if wish == "bf16" or multiplies_bf16(device):
        return "bf16"
    return FP32_KERNEL if device == "cpu" and fp32_native.library() is not None else "fp32"


def resolve_non_local(device: str) -> str:
    """Return "kernel", "torch" or "": what looks for what a picture repeats.

    On the CPU the compiled kernel; torch's operators take ten times as long there as a network and
    are for other devices.
    """
    if device != "cpu":
        return "torch"
    return "kernel" if non_local.library() is not None else ""


def resolve_raw_precision(wish: str, device: str) -> str:
    """Return "fp32" or "fp32-kernel": what FAN computes in.

    The compiled kernel (`networks.fan_native`) where it runs, unless fp32 is asked for: that is the one
    which gives the same bytes everywhere.
    """
    runs = device == "cpu" and wish != "fp32" and fan_native.library() is not None
    return FAN_KERNEL if runs else "fp32"


def multiplies_bf16(device: str) -> bool:
    """Whether the hardware of a device multiplies bfloat16 numbers directly."""
    found: bool
    if device.startswith("cuda"):
        found = torch.cuda.is_bf16_supported(including_emulation=False)
        return found
    if device != "cpu":
        return False
    try:
        found = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    except AttributeError:  # another torch: without the question there is no safe yes
        return False
    return found


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` CPU threads inside the block; None leaves the setting alone."""
    before = torch.get_num_threads()
    if count is not None and count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of torch or numpy means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator of torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
