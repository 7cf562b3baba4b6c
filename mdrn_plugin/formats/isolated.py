"""Decoding in a helper process, so that a decoder that crashes, hangs or devours memory costs one file.

The helper is a plain Python without torch that reads one file after the other. It has a limit on
its memory, an alarm that the system itself rings when a file takes too long, and it ends when its
parent does, however that ended. It contains accidents; it is no sandbox for hostile code (see
SECURITY.md), yet its answers are taken apart with suspicion: pixels come as plain bytes, and the
rest may name our own records only.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdrn_plugin import errors
from mdrn_plugin.errors import CannotRead, MdrnError
from mdrn_plugin.formats.limits import DEFAULT_MAX_PIXELS
from mdrn_plugin.formats.sniffing import shown

if TYPE_CHECKING:
    from mdrn_plugin.picture import Picture

SECONDS = 20.0  # for any file, and
SECONDS_PER_MIB = 1.0  # more for large ones: the slowest codec here (LZMA) does 20 MiB/s
_LEAST_MEMORY = 2 * 2**30
_SHARE_OF_MEMORY = 0.75  # of what the computer has; address space, so rather too much than too little
_HEADER = struct.Struct("<BQQ")  # kind of answer, bytes of the record, bytes of the pixels
_PICTURE, _ERROR = 0, 1
_PR_SET_PDEATHSIG = 1  # Linux
_NOTHING = memoryview(b"")
_SERVE = "from mdrn_plugin.formats import isolated; isolated.serve()"


def memory_limit() -> int:
    """Return the bytes of address space that a helper may have."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 4 * _LEAST_MEMORY
    return max(_LEAST_MEMORY, int(total * _SHARE_OF_MEMORY))


def is_possible() -> bool:
    """Whether helper processes can be started: not from a frozen application."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class Decoder:
    """Reads pictures in a helper process; one caller at a time, others wait.

    Parameters
    ----------
    max_pixels : int, optional
        As of `mdrn_plugin.formats.read`.
    seconds : float
        Time limit of a small file; large ones get more.
    memory : int, optional
        Bytes of address space; default: three quarters of the computer's memory.
    """

    def __init__(
        self, *, max_pixels: int | None = None, seconds: float = SECONDS, memory: int | None = None
    ) -> None:
        self._max_pixels = max_pixels
        self._seconds = seconds
        self._memory = memory_limit() if memory is None else memory
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.lost = 0  # helpers that did not survive a file

    def start(self) -> None:
        """Start the helper ahead of the first file; it comes up while the caller does other things."""
        with self._lock:
            self._alive()

    def read(self, path: str | os.PathLike[str]) -> Picture:
        """Read a picture; see `mdrn_plugin.formats.read`.

        Raises
        ------
        CannotRead, NotSupported
            As of `formats.read`; also when the helper crashed, took too long or too much memory.
        """
        where = Path(path)
        with self._lock:
            process = self._alive()
            seconds = self._seconds + SECONDS_PER_MIB * _size(where) / 2**20
            assert process.stdin is not None
            assert process.stdout is not None
            watch = threading.Timer(seconds + 5, process.kill) if os.name == "nt" else None
            if watch is not None:
                watch.start()
            try:
                _send(process.stdin, pickle.dumps((os.fspath(where), self._max_pixels, seconds)))
                kind, record, pixels = _receive(process.stdout)
            except (OSError, EOFError, struct.error) as error:
                raise CannotRead(self._obituary(where, process, seconds)) from error
            finally:
                if watch is not None:
                    watch.cancel()
        answer = _Reader(io.BytesIO(record)).load()
        if kind == _ERROR:
            name, message = answer
            found = getattr(errors, str(name), CannotRead)
            raise (found if issubclass(found, MdrnError) else CannotRead)(str(message))
        return _assemble(answer, pixels)

    def close(self) -> None:
        """End the helper at once."""
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()
            _bury(process)

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise CannotRead("the reading of files was stopped")
        if self._process is None or self._process.poll() is not None:
            if self._process is not None:
                _bury(self._process)
            self._process = _start(self._memory)
        return self._process

    def _obituary(self, where: Path, process: subprocess.Popen[bytes], seconds: float) -> str:
        """Say why the helper ended."""
        name = shown(where)
        with contextlib.suppress(OSError):
            process.kill()
        code = process.wait()
        _bury(process)
        self._process = None
        if self._closed:
            return f"{name}: was being read when the run was stopped"
        self.lost += 1
        if os.name == "nt" or code == -getattr(signal, "SIGALRM", 14):
            reason = f"its decoder did not end within {seconds:.0f} s"
        elif code == -signal.SIGKILL:
            reason = "its decoder was ended by the system, most likely for want of memory"
        elif code < 0:
            reason = f"its decoder crashed (signal {-code})"
        else:
            reason = f"its decoder ended with code {code}"
        return f"{name}: is damaged or made to do harm: {reason}; get an intact copy"


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _start(memory: int) -> subprocess.Popen[bytes]:
    # -P: the current folder, where the pictures may be, is no place for modules.
    path = [os.path.abspath(p) for p in sys.path if p]
    code = f"import sys; sys.path[:] = {path!r}; {_SERVE}"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(memory), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows: from napari, no console
    )


def _bury(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


class _Reader(pickle.Unpickler):
    """Loads our own records and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        ours = module in ("mdrn_plugin.picture", "mdrn_plugin.mosaic")
        ours = ours or module.startswith("mdrn_plugin.formats.")
        found = getattr(importlib.import_module(module), name, None) if ours else None
        if isinstance(found, type) and hasattr(found, "__dataclass_fields__"):
            return found
        raise CannotRead(f"the helper that decodes sent {module}.{name}, expected a picture")


def _assemble(answer: Any, pixels: bytearray) -> Picture:
    from mdrn_plugin.picture import Picture

    axes, value_range, alpha, metadata, mosaic, dtype, shape = answer
    array = np.frombuffer(pixels, np.dtype(dtype)).reshape(shape)
    return Picture(array, axes, value_range, alpha=alpha, metadata=metadata, mosaic=mosaic)


def _send(pipe: Any, data: bytes) -> None:
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: Any) -> tuple[int, bytes, bytearray]:
    kind, record, pixels = _HEADER.unpack(_exactly(pipe, _HEADER.size))
    if record > 2**31 or pixels > 16 * DEFAULT_MAX_PIXELS * 8:
        raise EOFError
    return kind, bytes(_exactly(pipe, record)), _exactly(pipe, pixels)


def _exactly(pipe: Any, count: int) -> bytearray:
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        read = pipe.readinto(view[at:])
        if not read:
            raise EOFError
        at += read
    return data


# --- in the helper ------------------------------------------------------------------------------


def serve() -> None:
    """Answer requests until the parent ends; what the helper runs."""
    memory, parent = int(sys.argv[1]), int(sys.argv[2])
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a library prints must not get between the answers.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _confine(memory, parent)
    while True:
        head = requests.read(8)
        if len(head) < 8:
            return
        path, max_pixels, seconds = pickle.loads(requests.read(struct.unpack("<Q", head)[0]))
        kind, record, pixels = _answer(path, max_pixels, seconds)
        answers.write(_HEADER.pack(kind, len(record), pixels.nbytes) + record)
        answers.write(pixels)
        answers.flush()
        del pixels


def _answer(path: str, max_pixels: int | None, seconds: float) -> tuple[int, bytes, memoryview]:
    from mdrn_plugin import formats

    _alarm(seconds)
    try:
        picture = formats.read(path, max_pixels=max_pixels)
        pixels = np.ascontiguousarray(picture.pixels)
    except MdrnError as error:
        return _ERROR, pickle.dumps((type(error).__name__, str(error))), _NOTHING
    except MemoryError:
        return _ERROR, pickle.dumps(("CannotRead", f"{shown(Path(path))}: needs too much memory")), _NOTHING
    finally:
        _alarm(0)
    about = (picture.axes, picture.range, picture.alpha, picture.metadata, picture.mosaic)
    facts = (*about, pixels.dtype.str, pixels.shape)
    return _PICTURE, pickle.dumps(facts), pixels.reshape(-1).view(np.uint8).data


def _confine(memory: int, parent: int) -> None:
    # Ctrl-C reaches the whole group of processes; the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # Windows; macOS has no such limit
        pass
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(1)


def _alarm(seconds: float) -> None:
    """Have the system end this process after so long; nothing that hangs can prevent it."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
