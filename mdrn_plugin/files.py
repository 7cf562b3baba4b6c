"""Writing files so that a crash leaves the old file or the new one, never half of one.

Every byte this project writes goes through `write_atomic`. The order of steps follows restic's
local backend: temporary file beside the target, write, flush, check, fsync, close, rename, fsync
of the folder. The temporary file is locked while it is written, so that a later run can tell the
left-over of a killed process (lock free) from a file that another process is writing (lock held).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from mdrn_plugin.errors import OutputExists, OutputUnusable

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be deleted there, which serves as the lock
    fcntl = None  # type: ignore[assignment]

PART_PREFIX = ".mdrn-"
PART_SUFFIX = ".mdrn-part"

_SYNCED_AT_ONCE = 16

# errno values that mean: this folder or disk cannot take the output, whatever the file.
_UNUSABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})


@contextlib.contextmanager
def write_atomic(
    path: str | os.PathLike[str],
    *,
    check: Callable[[Path], None] | None = None,
    overwrite: bool = True,
) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; put it in place when the block ends without error.

    Parameters
    ----------
    path : path-like
        The final name. Its folder must exist.
    check : callable, optional
        Called with the path of the finished temporary file before it takes the final name; an
        exception from it abandons the write. Writers use it to count pages or decode again.
    overwrite : bool
        If false, an existing `path` is never replaced, not even one that appears meanwhile.

    Yields
    ------
    BinaryIO
        Writable and seekable. ``.name`` is the path of the temporary file, for encoders that
        insist on opening a file themselves.

    Raises
    ------
    OutputUnusable
        The folder is missing, read-only, or the disk is full.
    OutputExists
        `overwrite` is false and the file exists.
    """
    target = Path(path)
    with _told_of(target):
        if not overwrite and os.path.lexists(target):
            raise OutputExists(f"{target}: exists already; choose another folder or allow overwriting")
        file, part = open_part(target.parent)
        try:
            with file:
                yield file
                file.flush()
                if check is not None:
                    check(part)
                os.fsync(file.fileno())
            if overwrite:
                os.replace(part, target)
            else:
                _place_new(part, target)
        except BaseException:
            # Closed by the `with`; on Windows an open file could not be removed.
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        _fsync_folder(target.parent)


@contextlib.contextmanager
def _told_of(target: Path) -> Iterator[None]:
    """Turn what the system says of a folder or disk that cannot take the output into `OutputUnusable`."""
    try:
        yield
    except OSError as error:
        if error.errno in _UNUSABLE or (
            error.errno in (errno.ENOENT, errno.EFBIG) and _is_about(error, target)
        ):
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OutputUnusable(
                f"{target}: cannot be written ({reason}); free some space or choose another output folder"
            ) from error
        raise


def write_bytes(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `path` atomically; see `write_atomic` for what it raises."""
    with write_atomic(path, overwrite=overwrite) as file:
        file.write(data)


@contextlib.contextmanager
def write_folder_atomic(
    path: str | os.PathLike[str],
    *,
    check: Callable[[Path], None] | None = None,
    overwrite: bool = True,
) -> Iterator[Path]:
    """Make a folder beside `path`; put it in place as a whole when the block ends without error.

    As `write_atomic`, for formats that are folders. Yields the temporary folder, made and empty.
    """
    target = Path(path)
    with _told_of(target):
        if not overwrite and os.path.lexists(target):
            raise OutputExists(f"{target}: exists already; choose another folder or allow overwriting")
        part, lock = _make_part_folder(target.parent)
        try:
            yield part
            if check is not None:
                check(part)
            sync_tree(part)
            swap_in(part, target, overwrite=overwrite)
        finally:
            # What is left of it: all after an error, the old folder after it was replaced.
            shutil.rmtree(part, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def swap_in(part: Path, target: Path, *, overwrite: bool) -> None:
    """Give a finished folder its final name; what had that name before is then called `part`.

    Both lie in one file system. On Linux the two names are exchanged in one step; elsewhere there is a
    moment in which a target that is replaced has no name but that of a temporary folder.

    Raises
    ------
    OutputExists
        `overwrite` is false, and the name is taken.
    """
    if not os.path.lexists(target):
        if not _rename_new(part, target):
            raise OutputExists(f"{target}: appeared while it was being computed; it was left as it is")
    elif not overwrite:
        raise OutputExists(f"{target}: exists already; choose another folder or allow overwriting")
    elif not _renameat2(part, target, _RENAME_EXCHANGE):
        aside = part.with_name(f"{PART_PREFIX}{os.getpid()}-{secrets.token_hex(6)}{PART_SUFFIX}")
        os.rename(target, aside)
        os.rename(part, target)
        os.rename(aside, part)
    _fsync_folder(target.parent)


def sync_tree(folder: Path) -> None:
    """Have the system write every file of a folder to the disk."""
    # Several at once: a disk that is asked one by one takes its time for each of thousands of chunks.
    with ThreadPoolExecutor(_SYNCED_AT_ONCE, "mdrn-sync") as pool:
        for _ in pool.map(_fsync_file, files_of(folder)):
            pass
    for where, _, _ in os.walk(folder):
        _fsync_folder(Path(where))


def _fsync_file(file: str) -> None:
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_part_folder(folder: Path) -> tuple[Path, int | None]:
    while True:
        part = folder / f"{PART_PREFIX}{os.getpid()}-{secrets.token_hex(6)}{PART_SUFFIX}"
        try:
            os.mkdir(part)
        except FileExistsError:
            continue
        if fcntl is None:
            return part, None
        descriptor = os.open(part, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a cleaner caught it between creation and lock
            os.close(descriptor)
            continue
        except OSError:  # a file system without locks: nothing there is ever taken for stale
            return part, descriptor
        if not part.exists():
            os.close(descriptor)
            continue
        return part, descriptor


_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # Linux, renameat2(2)
_AT_FDCWD = -100


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Rename by the call of Linux that can exchange two names; false where there is none."""
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    done: int = call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # the file system cannot
        return False
    raise OSError(code, os.strerror(code), os.fspath(target))


def _rename_new(part: Path, target: Path) -> bool:
    try:
        if _renameat2(part, target, _RENAME_NOREPLACE):
            return True
        os.rename(part, target)  # refuses a folder that is not empty
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def content_hash(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file, in hexadecimal; of a folder, that of the names and hashes in it."""
    if os.path.isdir(path):
        whole = hashlib.sha256()
        for inner in files_of(path):
            name = os.path.relpath(inner, path).replace(os.sep, "/")
            whole.update(os.fsencode(name) + b"\0" + content_hash(inner).encode() + b"\n")
        return whole.hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: str | os.PathLike[str]) -> list[str]:
    """Return the paths of all files under a folder, sorted; links to folders are not entered."""
    return sorted(os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)


def remove_stale_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files that killed runs left in `folder`, and only those.

    A file is ours when its name has our prefix and suffix, and stale when nobody holds its lock.

    Returns
    -------
    list of Path
        What was removed.
    """
    removed = []
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return []
    for entry in entries:
        name = entry.name
        if not (name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX)):
            continue
        with contextlib.suppress(OSError):
            is_folder = entry.is_dir(follow_symlinks=False)
            if not is_folder and not entry.is_file(follow_symlinks=False):
                continue
            remove = shutil.rmtree if is_folder else os.unlink
            if fcntl is not None:
                mode = os.O_RDONLY if is_folder else os.O_RDWR
                descriptor = os.open(entry.path, mode | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(entry.path)
                finally:
                    os.close(descriptor)
            else:
                remove(entry.path)
            removed.append(Path(entry.path))
    return removed


def open_part(folder: Path) -> tuple[BinaryIO, Path]:
    """Open a temporary file that `remove_stale_parts` knows for ours, locked while it is open.

    The caller closes and removes or renames it.
    """
    # The name does not contain the target's: a 255-byte name must still have room for it.
    while True:
        part = folder / f"{PART_PREFIX}{os.getpid()}-{secrets.token_hex(6)}{PART_SUFFIX}"
        try:
            file = open(part, "x+b")  # noqa: SIM115 - closed by the caller's `with`
        except FileExistsError:
            continue
        if fcntl is None:
            return file, part
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a cleaner caught it between creation and lock
            file.close()
            continue
        except OSError:  # a file system without locks: nothing there is ever taken for stale
            return file, part
        if os.fstat(file.fileno()).st_nlink == 0:
            file.close()
            continue
        return file, part


def open_scratch(target: Path, nbytes: int) -> BinaryIO:
    """Open a temporary file without a name, where `target` will be: it is gone when its process is.

    Parameters
    ----------
    target : Path
        What the disk must have room for; its folder exists.
    nbytes : int
        Taken at once, so that a disk without room says so before any work.

    Raises
    ------
    OutputUnusable
        The folder cannot be written, or the disk has no room.
    """
    with _told_of(target):
        # Where a file cannot be made without a name it has one of ours for a moment.
        file = tempfile.TemporaryFile(dir=target.parent, prefix=PART_PREFIX, suffix=PART_SUFFIX)  # noqa: SIM115
        try:
            _take_room(file, nbytes)
        except BaseException:
            file.close()
            raise
        return file


def _take_room(file: Any, nbytes: int) -> None:
    if hasattr(os, "posix_fallocate") and nbytes:
        try:
            os.posix_fallocate(file.fileno(), 0, nbytes)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
                raise
    file.truncate(nbytes)


def write_at(file: BinaryIO, data: memoryview, offset: int, target: Path) -> None:
    """Write into a file of `open_scratch`; raises what that raises."""
    with _told_of(target):
        while data:
            if hasattr(os, "pwrite"):
                count = os.pwrite(file.fileno(), data, offset)
            else:
                file.seek(offset)
                count = file.write(data)
            data, offset = data[count:], offset + count


def _place_new(part: Path, target: Path) -> None:
    """Give `part` its final name, failing if the name was taken meanwhile."""
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise OutputExists(f"{target}: appeared while it was being computed; it was left as it is") from error
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise OutputExists(
                f"{target}: appeared while it was being computed; it was left as it is"
            ) from None
        os.replace(part, target)
        return
    part.unlink()


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems refuse this; the rename stands
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _is_about(error: OSError, target: Path) -> bool:
    """Whether a missing-file error is about the output folder, not about something else."""
    return error.errno == errno.EFBIG or not target.parent.is_dir()


def lock_byte(descriptor: int, place: int, *, take: bool) -> bool:
    """Lock or free one byte of an open file, without waiting.

    Returns
    -------
    bool
        False if somebody else has it. A file system without locks: true. The system lifts the lock when
        the process ends, however that happens.
    """
    try:
        if fcntl is None:
            import msvcrt

            os.lseek(descriptor, place, os.SEEK_SET)
            mode = msvcrt.LK_NBLCK if take else msvcrt.LK_UNLCK
            msvcrt.locking(descriptor, mode, 1)
        elif sys.platform == "linux":
            # Locks of the open file, not of the process: two ledgers in one process are two runs,
            # and closing one does not lift the locks of the other.
            kind = fcntl.F_WRLCK if take else fcntl.F_UNLCK
            wish = struct.pack("hhqqi4x", kind, os.SEEK_SET, place, 1, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wish)
        else:
            mode = fcntl.LOCK_EX | fcntl.LOCK_NB if take else fcntl.LOCK_UN
            fcntl.lockf(descriptor, mode, 1, place)
    except OSError as error:
        return not take or error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
    return True
