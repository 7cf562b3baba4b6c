"""Which files go where, decided before any work.

One rule for links: a link to a file is read through, a link to a folder is not entered while a
tree is walked, and a link is never written through (the result replaces the link's name).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from mdrn_plugin.errors import BadOption, MdrnError, OutputUnusable
from mdrn_plugin.files import open_part, remove_stale_parts
from mdrn_plugin.formats import format_of_suffix, is_zarr, sniff, suffix_for

LEDGER_FOLDER = ".mdrn"
_LONGEST_NAME = 255  # bytes, on every file system in common use


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One file to be done."""

    source: Path
    target: Path


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """One thing that cannot be done, and why."""

    source: Path
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Jobs:
    """All there is to do, in order, and what cannot be."""

    jobs: tuple[Job, ...]
    failures: tuple[Failure, ...]


def collect(
    inputs: Iterable[str],
    out: Path,
    *,
    suffixes: frozenset[str],
    recursive: bool = False,
    pattern: str = "*",
    suffix: str = "",
    format: str | None = None,
    raw_output: str = "dng",
) -> Jobs:
    """Turn files, folders and globs into jobs.

    Parameters
    ----------
    inputs : iterable of str
        Files are taken whatever their name; of folders, what has one of `suffixes`; globs are for
        shells that do not expand them. A folder that is a zarr store is one picture.
    out : Path
        Output folder. What lies in it is never taken for input.
    suffixes : frozenset of str
        Lower case, with the dot.
    recursive : bool
        Enter sub-folders; the tree is mirrored in `out`.
    pattern : str
        Only names of folder entries that match, such as ``*.tif``.
    suffix : str
        Put behind the name of each output: ``a.tif`` becomes ``a-clean.tif`` with ``-clean``.
    format : str, optional
        Format of all outputs, see `formats.suffix_for`; left out, that of each input.
    raw_output : str
        What RAW files (by their content) become if `format` is left out.

    Raises
    ------
    BadOption
        Two inputs map to one output, an output is its own input, or `suffix` is no part of a name.
    """
    if suffix and suffix != os.path.basename(suffix.replace("\\", "/")):
        raise BadOption(f"suffix {suffix!r}: expected a part of a file name without slashes, such as -clean")
    failures: list[Failure] = []
    found: dict[Path, Job] = {}
    out_real = Path(os.path.realpath(out))
    for text in inputs:
        for source, relative in _expand(text, out_real, suffixes, recursive, pattern, failures):
            wished = format or _format_by_content(source, raw_output)
            target = out / relative.with_name(_target_name(relative.name, suffix, wished))
            if len(os.fsencode(target.name)) > _LONGEST_NAME:
                failures.append(
                    Failure(source, f"{source}: {target.name}: is too long for a file name; rename the input")
                )
                continue
            found.setdefault(source, Job(source, target))
    jobs = tuple(found.values())
    _refuse_collisions(jobs, out)
    return Jobs(jobs, tuple(failures))


def _format_by_content(source: Path, raw_output: str) -> str | None:
    """Return the format of the output where it is not that of the input's name."""
    if source.is_dir():
        return "zarr"
    kind = format_of_suffix(source)
    if kind not in (None, "tiff", "dng"):
        return None  # not opened for this: a folder may have thousands
    try:
        return raw_output if sniff(source) in ("raw", "dng") else None
    except (MdrnError, OSError):
        return None  # reading it will say what is wrong


def _target_name(name: str, suffix: str, format: str | None) -> str:
    """Return the name of the output: a.ome.tif, -clean, None gives a-clean.ome.tif."""
    if not suffix and format is None:
        return name
    stem, ending = os.path.splitext(name)
    if format is not None and format_of_suffix(ending) != format:
        ending = suffix_for(format)
        stem = stem.removesuffix(".ome")
    if stem.lower().endswith(".ome"):
        stem, ending = stem[:-4], stem[-4:] + ending
    return stem + suffix + ending


def _expand(
    text: str,
    out: Path,
    suffixes: frozenset[str],
    recursive: bool,
    pattern: str,
    failures: list[Failure],
) -> Iterator[tuple[Path, Path]]:
    path = Path(text)
    try:
        os.lstat(path)
    except PermissionError as error:
        failures.append(
            Failure(path, f"{path}: cannot be reached ({error.strerror}); check the rights of its folder")
        )
        return
    except (OSError, ValueError):  # not there, or no name at all: looked at below
        pass
    if os.path.isdir(path) and is_zarr(path):
        if out.is_relative_to(os.path.realpath(path)):
            raise BadOption(f"{path}: the output folder lies in it; choose another with -o")
        yield path, Path(os.path.basename(os.path.abspath(path)))
    elif os.path.isdir(path):
        if Path(os.path.realpath(path)) == out:
            raise BadOption(f"{path}: is the output folder itself; choose another with -o")
        for source in _walk(path, out, recursive, failures):
            name = source.name
            wanted = source.suffix.lower() in suffixes or is_zarr(source)
            if wanted and fnmatch.fnmatchcase(name.lower(), pattern.lower()):
                yield source, source.relative_to(path)
    elif os.path.lexists(path):
        yield path, Path(path.name)
    elif glob.has_magic(text):
        for match in sorted(glob.glob(text, recursive=recursive)):
            if os.path.isfile(match) or is_zarr(match):
                yield Path(match), Path(os.path.basename(match))
    else:
        failures.append(Failure(path, f"{path}: no such file or folder"))


def _walk(folder: Path, out: Path, recursive: bool, failures: list[Failure]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        failures.append(Failure(folder, f"{folder}: cannot be listed ({error.strerror})"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            if is_zarr(path):
                yield path
            elif recursive and Path(os.path.realpath(path)) != out:
                yield from _walk(path, out, recursive, failures)
        elif not entry.is_dir():  # a link to a folder is neither entered nor a picture
            yield path


def _refuse_collisions(jobs: tuple[Job, ...], out: Path) -> None:
    seen: dict[str, Job] = {}
    folds = folds_case(out) if len(jobs) > 1 else False
    for job in jobs:
        if _same_file(job.source, job.target):
            raise BadOption(
                f"{job.source}: the output would replace the input; choose another folder with -o"
            )
        key = os.path.abspath(job.target)
        if folds:
            key = unicodedata.normalize("NFC", key).casefold()
        other = seen.setdefault(key, job)
        if other is not job:
            raise BadOption(
                f"{other.source} and {job.source}: both would be written to {job.target}; "
                "use separate runs, or --recursive on their common folder"
            )


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def folds_case(folder: Path) -> bool:
    """Whether the disk takes names that differ in case (or Unicode form) for one."""
    probe = folder
    while not probe.is_dir():
        if probe == probe.parent:
            return False
        probe = probe.parent
    # A run that was killed while it asked the same left its file here: this is the next run.
    remove_stale_parts(probe)
    try:
        file, part = open_part(probe)
    except OSError:  # not writable: that is reported when the output is opened
        return False
    with file:
        try:
            return part.with_name(part.name.upper()).exists()
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


def prepare_output(out: Path, jobs: Iterable[Job] = ()) -> None:
    """Make the output folder, or say why it, or a folder of the mirrored tree, cannot be used.

    Raises
    ------
    OutputUnusable
        Not a folder, or not writable.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputUnusable(
            f"{out}: cannot be used as output folder ({error.strerror}); choose another with -o"
        ) from error
    for folder in {out, *(job.target.parent for job in jobs)}:
        if os.path.lexists(folder) and not folder.is_dir():
            raise OutputUnusable(f"{folder}: is in the way of an output folder; choose another with -o")
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise OutputUnusable(f"{folder}: is not writable; choose another output folder with -o")
