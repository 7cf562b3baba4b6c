"""The rules of the DNG specification 1.4.0.0 that concern the files we write, tag by tag.

Read by tifffile, so that reader and writer share no code. Each rule names the section of Adobe's
"Digital Negative (DNG) Specification", version 1.4.0.0 (June 2012), that it comes from, or of TIFF 6.0.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import tifffile

# TIFF types: 1 BYTE, 2 ASCII, 3 SHORT, 4 LONG, 5 RATIONAL, 7 UNDEFINED, 10 SRATIONAL, 12 DOUBLE
_TYPES = {
    254: {4}, 256: {3, 4}, 257: {3, 4}, 258: {3}, 259: {3}, 262: {3}, 274: {3}, 277: {3}, 284: {3},
    33421: {3}, 33422: {1}, 50706: {1}, 50707: {1}, 50708: {2}, 50710: {1}, 50711: {3}, 50713: {3},
    50714: {3, 4, 5}, 50717: {3, 4}, 50718: {5}, 50719: {3, 4, 5}, 50720: {3, 4, 5}, 50721: {10},
    50722: {10}, 50728: {3, 5}, 50778: {3}, 50779: {3}, 50781: {1}, 50829: {3, 4}, 50935: {5},
    50970: {4}, 51041: {12},
}  # fmt: skip
# Sections "DNG Tags": "Located in: IFD 0" or "Located in: Raw IFD".
_IFD0_ONLY = {50706, 50707, 50708, 50721, 50722, 50728, 50778, 50779, 50781}
_RAW_ONLY = {33421, 33422, 50710, 50711, 50713, 50714, 50717, 50718, 50719, 50720, 50829, 50935, 51041}


def broken_rules(path: Path) -> list[str]:
    """Return what a DNG file breaks, one line each; empty if nothing."""
    found: list[str] = []
    with tifffile.TiffFile(path) as file:
        main = file.pages[0]
        subs = list(main.pages or [])
        check = _Check(found)
        size = path.stat().st_size
        check(not file.is_bigtiff, "TIFF 6.0 section 2: classic header")
        raws = [p for p in (main, *subs) if _value(p, 254) == 0]
        check(len(raws) == 1, "NewSubFileType: exactly one main image (0)")
        if len(raws) != 1:
            return found
        raw = raws[0]
        for page in (main, *subs):
            _check_directory(page, size, check)
        _check_main(main, raw, check)
        _check_raw(raw, check)
    return found


class _Check:
    def __init__(self, found: list[str]) -> None:
        self._found = found

    def __call__(self, holds: bool, rule: str) -> None:
        if not holds:
            self._found.append(rule)


def _value(page: Any, tag: int) -> Any:
    entry = page.tags.get(tag)
    return None if entry is None else entry.value


def _numbers(page: Any, tag: int) -> list[float]:
    entry = page.tags.get(tag)
    if entry is None:
        return []
    value = entry.value
    if isinstance(value, bytes):
        return [float(b) for b in value]
    values = list(value) if isinstance(value, tuple | list) else [value]
    if entry.dtype in (5, 10):
        values = [a / b if b else math.nan for a, b in zip(values[::2], values[1::2], strict=True)]
    return [float(v) for v in values]


def _check_directory(page: Any, size: int, check: _Check) -> None:
    codes = [t.code for t in page.tags]
    check(codes == sorted(set(codes)), "TIFF 6.0 section 2: tags ascending, each once")
    for tag in page.tags:
        allowed = _TYPES.get(tag.code)
        check(allowed is None or int(tag.dtype) in allowed, f"{tag.name}: type {tag.dtype}")
        check(tag.valueoffset % 2 == 0, f"TIFF 6.0 section 2: {tag.name} begins on an even byte")
    starts = _numbers(page, 273) or _numbers(page, 324)
    counts = _numbers(page, 279) or _numbers(page, 325)
    check(bool(starts) and len(starts) == len(counts), "TIFF 6.0: as many offsets as byte counts")
    check(
        all(s + c <= size for s, c in zip(starts, counts, strict=False)), "TIFF 6.0: pixels inside the file"
    )
    for required in (256, 257, 258, 259, 262, 277):
        check(required in codes, f"TIFF 6.0 section 8: tag {required} is there")


def _check_main(main: Any, raw: Any, check: _Check) -> None:
    codes = {t.code for t in main.tags}
    version, backward = _numbers(main, 50706), _numbers(main, 50707)
    check(len(version) == 4 and version[0] == 1, "DNGVersion: four bytes, 1.x; required")
    check(len(backward) == 4 and backward <= version, "DNGBackwardVersion: not above DNGVersion")
    check(bool(_value(main, 50708)), "UniqueCameraModel: required, not empty")
    check(_value(main, 274) in range(1, 9), "Orientation: required for DNG, 1 to 8")
    if raw is not main:
        check(_value(main, 254) == 1, "NewSubFileType: 1 for a preview in IFD 0")
        check(not codes & _RAW_ONLY, f"raw tags in IFD 0: {sorted(codes & _RAW_ONLY)}")
        check(not {t.code for t in raw.tags} & _IFD0_ONLY, "camera profile tags belong into IFD 0")
        # Preview Images: JPEG of YCbCr (or gray), PreviewColorSpace says how to read it.
        check(_value(main, 259) == 7 and _value(main, 262) == 6, "Preview Images: baseline JPEG, YCbCr")
        check(_numbers(main, 258) == [8, 8, 8], "Preview Images: 8 bit")
        check(_value(main, 50970) == 2, "PreviewColorSpace: sRGB")
    colours = 3 if _value(raw, 262) == 32803 else _value(raw, 277)
    if colours == 3:
        matrix = _numbers(main, 50721)
        check(len(matrix) == 9, "ColorMatrix1: ColorPlanes * 3 values; required for all but monochrome")
        check(50722 not in codes or len(_numbers(main, 50722)) == 9, "ColorMatrix2: ColorPlanes * 3 values")
        for tag in (50778, 50779):
            light = _value(main, tag)
            check(
                light is None or light in {*range(1, 5), *range(9, 16), *range(17, 25), 255},
                "CalibrationIlluminant",
            )
        neutral = _numbers(main, 50728)
        check(
            not neutral or (len(neutral) == 3 and all(v > 0 for v in neutral)),
            "AsShotNeutral: ColorPlanes, > 0",
        )
        check(not (neutral and 50729 in codes), "AsShotNeutral and AsShotWhiteXY: not both")
    else:
        check(50721 not in codes, "ColorMatrix1: not for monochrome")
    identity = _numbers(main, 50781)
    check(len(identity) in (0, 16), "RawDataUniqueID: 16 bytes")


def _check_raw(raw: Any, check: _Check) -> None:
    width, height, samples = _value(raw, 256), _value(raw, 257), _value(raw, 277)
    kind = _value(raw, 262)
    check(kind in (32803, 34892), "PhotometricInterpretation: CFA or LinearRaw")
    bits = _numbers(raw, 258)
    check(len(bits) == samples and all(8 <= b <= 32 for b in bits), "BitsPerSample: 8 to 32, one per sample")
    check(_value(raw, 259) in (1, 7), "Compression: none or (lossless) JPEG for 16 bit")
    check(_value(raw, 284) in (None, 1), "PlanarConfiguration: 1")
    tile = _value(raw, 322), _value(raw, 323)
    if tile[0]:
        check(tile[0] % 16 == 0 and tile[1] % 16 == 0, "TIFF 6.0 section 15: tiles are multiples of 16")
        expected = math.ceil(width / tile[0]) * math.ceil(height / tile[1])
        check(len(_numbers(raw, 324)) == expected, "TIFF 6.0 section 15: number of tiles")
    active = _numbers(raw, 50829) or [0, 0, height, width]
    top, left, bottom, right = active
    check(0 <= top < bottom <= height and 0 <= left < right <= width, "ActiveArea: inside the image")
    origin, size = _numbers(raw, 50719) or [0, 0], _numbers(raw, 50720) or [width, height]
    check(
        origin[0] + size[0] <= right - left and origin[1] + size[1] <= bottom - top,
        "DefaultCropOrigin, DefaultCropSize: inside the active area",
    )
    planes = samples
    if kind == 32803:
        planes = 3
        shape = _numbers(raw, 33421)
        pattern = _numbers(raw, 33422)
        check(samples == 1, "PhotometricInterpretation: a CFA has one sample per pixel")
        check(
            len(shape) == 2 and len(pattern) == shape[0] * shape[1],
            "CFAPattern: rows * columns of its dimensions",
        )
        colours = _numbers(raw, 50710) or [0, 1, 2]
        check(set(pattern) <= set(colours), "CFAPlaneColor: holds every colour of CFAPattern")
        check(_value(raw, 50711) in (None, *range(1, 10)), "CFALayout: 1 to 9")
    repeat = _numbers(raw, 50713) or [1, 1]
    black = _numbers(raw, 50714)
    check(
        not black or len(black) == repeat[0] * repeat[1] * samples,
        "BlackLevel: BlackLevelRepeatRows * BlackLevelRepeatCols * SamplesPerPixel values",
    )
    white = _numbers(raw, 50717)
    check(len(white) == samples, "WhiteLevel: SamplesPerPixel values")
    check(bool(white) and max(black or [0]) < min(white), "BlackLevel below WhiteLevel")
    noise = _numbers(raw, 51041)
    check(len(noise) in (0, 2, 2 * planes), "NoiseProfile: 2 or 2 * ColorPlanes values")
    check(all(v >= 0 for v in noise), "NoiseProfile: not negative")
    applied = _numbers(raw, 50935)
    check(not applied or 0 <= applied[0] <= 1, "NoiseReductionApplied: 0 to 1")
