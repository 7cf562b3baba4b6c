"""Fetching a public picture set: resumable, checked, unpacked without trusting the archive."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from mdrn_plugin.errors import BadOption, CannotRead
from mdrn_plugin.files import write_atomic

from .data import SUFFIXES

_BLOCK = 1 << 20  # bytes read at a time
_LARGEST_PICTURE = 100 << 20  # bytes; no picture of 2040 pixels a side comes near
_TIMEOUT = 60  # s without a byte


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """One zip file of a set."""

    name: str
    md5: str  # as its users publish it; guards against damage, not against malice


@dataclasses.dataclass(frozen=True, slots=True)
class PictureSet:
    """A public set of pictures."""

    home: str
    archives: tuple[Archive, ...]
    licence: str


DIV2K = PictureSet(
    home="https://data.vision.ee.ethz.ch/cvl/DIV2K",
    archives=(
        Archive("DIV2K_train_HR.zip", "bdc2d9338d4e574fe81bf7d158758658"),
        Archive("DIV2K_valid_HR.zip", "9fcdda83005c5e5997799b69f955ff88"),
    ),
    licence="DIV2K (Agustsson and Timofte 2017) is for academic research only; "
    "its pictures belong to their authors.",
)


def fetch(pictures: PictureSet, folder: Path, url: str | None = None) -> list[Path]:
    """Download and unpack the archives of a set, going on where an earlier attempt stopped.

    Parameters
    ----------
    pictures : PictureSet
        What to fetch.
    folder : Path
        Where the pictures go, a folder per archive; made if it is missing.
    url : str, optional
        Folder that has the archives, instead of their home.

    Returns
    -------
    list of Path
        The folders that were filled.

    Raises
    ------
    CannotRead
        The server cannot be reached or sends something else than the archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = (url or pictures.home).rstrip("/")
    filled = []
    for archive in pictures.archives:
        target = folder / Path(archive.name).stem
        if not target.is_dir():
            part = folder / f"{archive.name}.part"
            _download(f"{base}/{archive.name}", part)
            _check(part, archive)
            _unpack(part, target)
            part.unlink()
        filled.append(target)
    return filled


def _download(url: str, part: Path) -> None:
    """Append to `part` what it lacks."""
    if not url.startswith(("http://", "https://")):
        raise BadOption(f"{url}: expected an http or https address; check --url")
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            goes_on = answer.status == 206
            total = int(answer.headers.get("Content-Length") or 0) + (have if goes_on else 0)
            with part.open("ab" if goes_on else "wb") as out:
                while block := answer.read(_BLOCK):
                    out.write(block)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            return
        raise CannotRead(f"{url}: the server answers {error.code} {error.reason}; check --url") from error
    except OSError as error:
        raise CannotRead(
            f"{url}: the download broke off ({error}); run the same command again, it goes on from there"
        ) from error
    if total and part.stat().st_size < total:
        raise CannotRead(
            f"{url}: {part.stat().st_size:,} of {total:,} bytes came; run the same command again, "
            "it goes on from there"
        )


def _check(part: Path, archive: Archive) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != archive.md5:
        part.unlink()
        raise CannotRead(
            f"{archive.name}: expected md5 {archive.md5}, got {digest.hexdigest()}; it was removed, "
            "run the same command again"
        )


def _unpack(part: Path, target: Path) -> None:
    """Write the pictures of an archive into `target`, which appears when all of them are there.

    Only the last part of each name is used, so that no archive can write elsewhere.
    """
    waiting = target.with_name(target.name + ".unpacking")
    shutil.rmtree(waiting, ignore_errors=True)
    waiting.mkdir()
    try:
        with zipfile.ZipFile(part) as archive:
            members = [m for m in archive.infolist() if PurePosixPath(m.filename).suffix.lower() in SUFFIXES]
            for member in members:
                name = PurePosixPath(member.filename.replace("\\", "/")).name
                if member.file_size > _LARGEST_PICTURE:
                    raise CannotRead(
                        f"{part.name}: {name} has {member.file_size:,} bytes; not a picture of it"
                    )
                with archive.open(member) as source, write_atomic(waiting / name, overwrite=False) as out:
                    shutil.copyfileobj(source, out, _BLOCK)
    except (zipfile.BadZipFile, EOFError) as error:
        raise CannotRead(f"{part}: not a valid zip file ({error}); remove it and try again") from error
    print(f"{target}: {len(members)} pictures", file=sys.stderr, flush=True)
    waiting.rename(target)
