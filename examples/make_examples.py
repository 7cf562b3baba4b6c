"""Make the three examples: procedural scenes, so the clean truth is known and no rights are touched.

    python examples/make_examples.py                   the noisy pictures, into this folder
    python examples/make_examples.py --clean FOLDER    the clean ones: photo.png, cells.tif, gray.png

Needs numpy, Pillow and tifffile. Seeded: the same versions give the same pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Array = NDArray[np.float64]
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write the noisy pictures, or with ``--clean`` the clean ones."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--clean", type=Path, metavar="FOLDER", help="write the clean pictures there instead")
    folder = parser.parse_args().clean
    photo, cells, gray = mountain_lake(), cell_stack(), still_life()
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(to_uint8(photo)).save(folder / "photo.png")
        write_stack(folder / "cells.tif", expose_stack(cells, None))
        Image.fromarray(to_uint8(gray)).save(folder / "gray.png")
        return
    rng = np.random.default_rng(20220428)
    noisy = to_uint8(expose_photo(photo, rng))
    Image.fromarray(noisy).save(HERE / "photo.jpg", quality=95, subsampling=0, dpi=(300, 300), exif=_exif())
    write_stack(HERE / "cells.tif", expose_stack(cells, rng))
    Image.fromarray(to_uint8(gray + rng.normal(0, 25 / 255, gray.shape))).save(
        HERE / "gray.png", optimize=True
    )


# -- noise


def expose_photo(scene_sRGB: Array, rng: np.random.Generator) -> Array:
    """Add the noise of a small sensor at high ISO: photons and read noise in linear light, then sRGB."""
    linear = np.where(scene_sRGB <= 0.04045, scene_sRGB / 12.92, ((scene_sRGB + 0.055) / 1.055) ** 2.4)
    electrons_at_white, read_noise_e = 260.0, 2.2
    signal = rng.poisson(linear * electrons_at_white) + rng.normal(0, read_noise_e, linear.shape)
    linear = np.clip(signal / electrons_at_white, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def expose_stack(scene_ZYX: Array, rng: np.random.Generator | None) -> NDArray[np.uint16]:
    """Give a camera's counts: offset 100 DN, 2.2 DN per electron, read noise 2.5 e (none without `rng`)."""
    offset_dn, gain_dn_per_e, read_noise_e = 100.0, 2.2, 2.5
    electrons = scene_ZYX * 90.0 + 2.0
    if rng is not None:
        electrons = rng.poisson(electrons) + rng.normal(0, read_noise_e, electrons.shape)
    return np.clip(np.round(offset_dn + gain_dn_per_e * electrons), 0, 65535).astype(np.uint16)


# -- a mountain lake at dusk, colour


def mountain_lake(width: int = 768, height: int = 512) -> Array:
    """Return the scene, float sRGB in 0..1, (height, width, 3); drawn at twice the size and reduced."""
    rng = np.random.default_rng(7)
    w, h = width * 2, height * 2
    shore = int(h * 0.60)
    y, x = np.mgrid[0:shore, 0:w].astype(np.float64)

    # Sky: night blue above, ember at the horizon; clouds lit from below.
    t = (y / shore)[..., None]
    stops = np.array([[24, 38, 84], [62, 84, 140], [168, 136, 164], [246, 168, 120], [255, 214, 150]]) / 255
    sky = _ramp(t[..., 0] ** 1.1, stops)
    cloud = fractal(rng, (shore, w), 1.7, stretch=3.5)
    cover = np.clip((cloud - 0.52) * 4.5, 0, 1) * np.clip(1.25 - y / shore, 0, 1)
    lit = np.clip(np.roll(cloud, -14, axis=0) - cloud, -0.1, 0.1) * 4 + 0.55
    colour = lit[..., None] * np.array([1.0, 0.66, 0.56]) + (1 - lit[..., None]) * np.array(
        [0.36, 0.33, 0.50]
    )
    scene = sky * (1 - 0.75 * cover[..., None]) + colour * 0.75 * cover[..., None]
    glow = np.exp(-(((x - w * 0.66) / (w * 0.20)) ** 2) - ((y - shore * 0.80) / (shore * 0.26)) ** 2)
    scene += glow[..., None] * np.array([0.34, 0.20, 0.06])

    # Three ranges, bluer and paler with distance; relief lit from the right, snow on the farthest.
    ranges = (
        (0.50, 0.34, 2.1, [0.47, 0.45, 0.60], 0.62),
        (0.70, 0.22, 2.0, [0.28, 0.30, 0.44], 0.85),
        (0.86, 0.13, 1.8, [0.15, 0.19, 0.27], 1.00),
    )
    for base, swing, rough, tint, depth in ranges:
        line = ridge(rng, w, rough)
        crest = shore * (base - swing * line)
        rock = 1 - np.abs(2 * fractal(rng, (shore, w), 2.0, stretch=1.0) - 1)
        rock = 0.72 * rock + 0.28 * fractal(rng, (shore, w), 1.5, stretch=0.8)
        slope = (
            np.roll(rock, 5, axis=1) - np.roll(rock, -5, axis=1) + 0.5 * (np.roll(rock, -4, axis=0) - rock)
        )
        light = np.clip(0.80 + 5.5 * slope, 0.42, 1.65)
        body = light[..., None] * np.array(tint)
        if base < 0.6:
            below = y - crest
            snow = np.clip((shore * 0.10 + 150 * (rock - 0.6) + 160 * slope - below) / 16, 0, 1)
            body = body * (1 - snow[..., None]) + np.clip(light, 0.5, 1.3)[..., None] * snow[
                ..., None
            ] * np.array([0.80, 0.72, 0.80])
        haze = np.clip((y - crest) / (shore * 0.5), 0, 0.5)[..., None] * (1.1 - depth)
        body = body * (1 - haze) + haze * np.array([0.86, 0.62, 0.56])
        mask = np.clip(y - crest, 0, 1)[..., None]
        scene = scene * (1 - mask) + body * mask

    picture = Image.fromarray(to_uint8(scene))
    draw = ImageDraw.Draw(picture)
    for _ in range(420):
        _spruce(
            draw, rng, float(rng.uniform(0, w)), shore - float(rng.uniform(-2, 16)), float(rng.gamma(9, 5.4))
        )
    _cabin(picture, rng, int(w * 0.17), shore - 4)
    scene = np.asarray(picture, dtype=np.float64) / 255

    # The lake mirrors it, squeezed, rippled and darker.
    depth_px = h - shore
    rows = np.arange(depth_px, dtype=np.float64)[:, None]
    waves = fractal(rng, (depth_px, w), 1.4, stretch=9.0) - 0.5
    near = rows / depth_px
    source_y = np.clip(shore - 1 - rows * 1.30 + waves * (6 + 70 * near), 0, shore - 1).astype(int)
    source_x = np.clip(np.arange(w)[None, :] + waves * 18 * near, 0, w - 1).astype(int)
    lake = scene[source_y, source_x] * (0.74 - 0.22 * near[..., None])
    lake = (
        lake * 0.88 + 0.12 * np.array([0.10, 0.20, 0.32]) + np.clip(waves, 0.10, 1)[..., None] * 0.20 - 0.02
    )
    scene = np.concatenate([scene, np.clip(lake, 0, 1)])
    picture = Image.fromarray(to_uint8(scene))
    _pier(picture, rng, shore)
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float64) / 255


def _spruce(draw: ImageDraw.ImageDraw, rng: np.random.Generator, x: float, foot: float, size: float) -> None:
    """Draw one conifer: drooping, ragged tiers of branches."""
    shade = rng.uniform(0.7, 1.25)
    colour = tuple(int(c * shade) for c in (22, 36, 38))
    half = size * 0.20
    tiers = max(5, int(size / 6))
    for k in range(tiers):
        top = foot - size + size * 0.93 * k / tiers
        reach = half * (k + 1.2) / tiers * rng.uniform(0.8, 1.15)
        low = top + size / tiers * 1.7
        draw.polygon(
            [(x, top), (x - reach, low), (x, low - size / tiers * 0.5), (x + reach, low)], fill=colour
        )


def _cabin(picture: Image.Image, rng: np.random.Generator, left: int, foot: int) -> None:
    """Draw a log cabin with lit windows, a shingle roof and a sign."""
    draw = ImageDraw.Draw(picture)
    width, wall, roof = 250, 92, 84
    top = foot - wall
    for k in range(8):
        y = top + k * wall / 8
        tone = rng.uniform(0.85, 1.15)
        draw.rectangle(
            (left, y, left + width, y + wall / 8), fill=tuple(int(c * tone) for c in (104, 66, 44))
        )
        draw.line((left, y, left + width, y), fill=(48, 29, 22), width=2)
        for _ in range(26):
            gx = left + float(rng.uniform(0, width - 22))
            gy = y + float(rng.uniform(2, wall / 8 - 1))
            draw.line((gx, gy, gx + float(rng.uniform(6, 22)), gy), fill=(78, 49, 34))
    for k in range(10):
        y = top - roof + k * roof / 10
        inset = 60 * (1 - k / 10) - 18
        x = left + inset
        while x < left + width - inset:
            tone = rng.uniform(0.75, 1.25)
            step = float(rng.uniform(9, 15))
            draw.rectangle((x, y, x + step, y + roof / 10), fill=tuple(int(c * tone) for c in (86, 52, 50)))
            draw.line((x, y, x, y + roof / 10), fill=(44, 27, 29))
            x += step
        draw.line((left + inset, y + roof / 10, left + width - inset, y + roof / 10), fill=(44, 27, 29))
    draw.rectangle((left + 186, top - roof - 26, left + 208, top - roof + 26), fill=(74, 60, 62))
    for wx in (26, 190):
        box = (left + wx, top + 26, left + wx + 36, top + 66)
        halo = Image.new("RGB", picture.size)
        ImageDraw.Draw(halo).rectangle(
            (box[0] - 10, box[1] - 10, box[2] + 10, box[3] + 10), fill=(90, 62, 22)
        )
        region = (box[0] - 60, box[1] - 60, box[2] + 60, box[3] + 60)
        soft = np.asarray(halo.crop(region).filter(ImageFilter.GaussianBlur(14)), dtype=np.int16)
        picture.paste(
            Image.fromarray(np.clip(np.asarray(picture.crop(region)) + soft, 0, 255).astype(np.uint8)),
            region[:2],
        )
        draw.rectangle(box, fill=(255, 214, 128), outline=(52, 32, 24), width=4)
        draw.line((box[0] + 18, box[1], box[0] + 18, box[3]), fill=(52, 32, 24), width=3)
        draw.line((box[0], box[1] + 20, box[2], box[1] + 20), fill=(52, 32, 24), width=3)
    draw.rectangle((left + 108, top + 38, left + 144, foot), fill=(66, 40, 30), outline=(40, 24, 19), width=3)
    draw.rectangle(
        (left + 72, top + 5, left + 180, top + 28), fill=(222, 198, 158), outline=(52, 32, 24), width=2
    )
    font = ImageFont.load_default(13)
    draw.text((left + 126, top + 16), "MIRROR LAKE", font=font, fill=(46, 30, 26), anchor="mm")


def _pier(picture: Image.Image, rng: np.random.Generator, shore: int) -> None:
    """Draw a pier of weathered planks that comes towards us."""
    draw = ImageDraw.Draw(picture)
    w, h = picture.size
    far, near = shore + 16, h
    count = 34

    def edge(s: float) -> tuple[float, float, float]:
        p = s**1.7
        y = far + (near - far) * p
        return y, w * 0.300 + w * 0.30 * p, w * 0.335 + w * 0.56 * p

    for k in range(3, count, 5):
        y, left, right = edge((k + 0.5) / count)
        size = 2 + 14 * (k / count) ** 1.7
        for x in (left + size, right - size):
            draw.rectangle((x - size, y, x + size, min(h, y + size * 7)), fill=(38, 30, 34))
    for k in range(count):
        y0, l0, r0 = edge(k / count)
        y1, l1, r1 = edge((k + 1) / count)
        tone = rng.uniform(0.80, 1.18) * (0.82 + 0.35 * k / count)
        base = np.array([128, 104, 98]) * tone
        gap = max(1.0, (y1 - y0) * 0.10)
        draw.polygon([(l0, y0), (r0, y0), (r1, y1 - gap), (l1, y1 - gap)], fill=tuple(int(c) for c in base))
        draw.polygon([(l1, y1 - gap), (r1, y1 - gap), (r1, y1), (l1, y1)], fill=(34, 26, 30))
        for _ in range(int(14 + 60 * k / count)):
            s = float(rng.uniform(0.05, 0.95))
            gy = y0 + (y1 - gap - y0) * s
            gl, gr = l0 + (l1 - l0) * s, r0 + (r1 - r0) * s
            gx = float(rng.uniform(gl, gr))
            ge = min(gr, gx + float(rng.uniform(0.03, 0.22)) * (gr - gl))
            grain = base * rng.uniform(0.72, 1.12)
            draw.line((gx, gy, ge, gy), fill=tuple(int(c) for c in np.clip(grain, 0, 255)))
        for x in (l0 + 0.06 * (r0 - l0), r0 - 0.06 * (r0 - l0)):
            nail = 0.5 + 2.2 * k / count
            yn = (y0 + y1) / 2
            draw.ellipse((x - nail, yn - nail, x + nail, yn + nail), fill=(48, 38, 40))


# -- cells with a stained cytoskeleton, five focal planes


def cell_stack(depth: int = 5, size: int = 256) -> Array:
    """Return the brightness of a fluorescence stack, 0..about 1, (depth, size, size)."""
    rng = np.random.default_rng(11)
    over = 3
    n = size * over
    centres: list[tuple[float, float]] = []
    while len(centres) < 9:
        c = (float(rng.uniform(0.06, 0.94)) * n, float(rng.uniform(0.06, 0.94)) * n)
        if all(np.hypot(c[0] - a, c[1] - b) > 0.26 * n for a, b in centres):
            centres.append(c)
    layers = [Image.new("F", (n, n)) for _ in range(depth)]
    y, x = np.mgrid[0:n, 0:n].astype(np.float64)
    body = np.zeros((n, n))
    nuclei = np.zeros((n, n))
    for cx, cy in centres:
        angle = float(rng.uniform(0, np.pi))
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
        long, short = n * float(rng.uniform(0.050, 0.062)), n * float(rng.uniform(0.036, 0.046))
        radius = np.hypot(u / long, v / short)
        nuclei = np.maximum(nuclei, 1 / (1 + np.exp((radius - 1) * 14)))
        body += np.exp(-((radius / 2.6) ** 2))
        for _ in range(85):
            _filament(layers, rng, cx, cy, (long + short) / 2, n)
    chromatin = fractal(rng, (n, n), 1.2)
    stack = []
    for z, layer in enumerate(layers):
        # What lies in the planes above and below is seen too, out of focus.
        own = blur(np.asarray(layer, dtype=np.float64), 1.5 * over / 2)
        others = sum(
            blur(np.asarray(other, dtype=np.float64), (1.2 + 2.2 * abs(z - k)) * over) * 0.75 ** abs(z - k)
            for k, other in enumerate(layers)
            if k != z
        )
        focus = np.exp(-(((z - (depth - 1) / 2) / 1.6) ** 2))
        plane = 0.62 * own + 0.55 * others + 0.05 * body
        plane = plane * (1 - 0.72 * nuclei) + nuclei * focus * 0.10 * chromatin
        stack.append(plane.reshape(size, over, size, over).mean(axis=(1, 3)))
    result = np.stack(stack)
    return np.asarray(result / np.quantile(result, 0.998), dtype=np.float64)


def _filament(
    layers: list[Image.Image], rng: np.random.Generator, cx: float, cy: float, nucleus: float, n: int
) -> None:
    """Draw one microtubule: it leaves the nucleus' rim, bends little, and changes planes on its way."""
    heading = float(rng.uniform(0, 2 * np.pi))
    px, py = cx + np.cos(heading) * nucleus * 0.8, cy + np.sin(heading) * nucleus * 0.8
    heading += float(rng.normal(0, 0.7))
    z, climb = float(rng.uniform(0, len(layers) - 1)), float(rng.normal(0, 0.035))
    bend, step = float(rng.normal(0, 0.035)), n / 130
    brightness = float(rng.uniform(0.4, 1.0))
    for _ in range(int(rng.uniform(14, 46))):
        bend = 0.9 * bend + float(rng.normal(0, 0.030))
        heading += bend
        qx, qy = px + np.cos(heading) * step, py + np.sin(heading) * step
        z = float(np.clip(z + climb, 0, len(layers) - 1))
        ImageDraw.Draw(layers[round(z)]).line((px, py, qx, qy), fill=brightness, width=2)
        px, py = qx, qy


def write_stack(path: Path, stack_ZYX: NDArray[np.uint16]) -> None:
    """Write an ImageJ hyperstack: 0.13 µm pixels, 0.5 µm between planes, green LUT, display range."""
    lut = np.zeros((3, 256), np.uint8)
    lut[1] = np.arange(256)
    lut[0] = lut[2] = np.clip((np.arange(256) - 160) * 0.9, 0, 255).astype(np.uint8)
    low, high = float(np.quantile(stack_ZYX, 0.01)), float(np.quantile(stack_ZYX, 0.999))
    metadata = {
        "axes": "ZYX",
        "spacing": 0.5,
        "unit": "um",
        "min": low,
        "max": high,
        "Ranges": (low, high),
        "LUTs": [lut],
        "Labels": [f"z={0.5 * z:g} um" for z in range(len(stack_ZYX))],
        "Info": "procedural microtubules, made by examples/make_examples.py",
    }
    tifffile.imwrite(path, stack_ZYX, imagej=True, resolution=(1 / 0.13, 1 / 0.13), metadata=metadata)


# -- a ray-traced still life, gray


def still_life(width: int = 512, height: int = 384) -> Array:
    """Return four balls on a wooden table before a plastered wall, float in 0..1, (height, width)."""
    rng = np.random.default_rng(3)
    over = 2
    w, h = width * over, height * over
    grain, plaster, marble = (
        fractal(rng, (512, 512), p, stretch=s) for p, s in ((1.1, 14.0), (1.3, 1.0), (1.7, 1.0))
    )
    j, i = np.mgrid[0:h, 0:w]
    ray = np.stack([(i - w / 2) / w * 1.25, -(j - h * 0.40) / w * 1.25 - 0.10, np.ones((h, w))], axis=-1)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    eye = np.array([0.0, 1.45, -4.6])
    balls = [
        (-1.25, 0.75, 0.75, 0.3),
        (0.30, 0.55, 0.55, -0.75),
        (1.38, 0.85, 0.85, 0.75),
        (-0.30, 0.32, 0.32, -1.55),
    ]
    lamp = np.array([-3.2, 5.2, -3.4])

    nearest = np.full((h, w), np.inf)
    kind = np.full((h, w), -1)
    for index, (cx, cy, radius, cz) in enumerate(balls):
        t = _meet(eye, ray, np.array([cx, cy, cz]), radius)
        hit = t < nearest
        nearest[hit], kind[hit] = t[hit], index
    table = np.where(ray[..., 1] < -1e-6, -eye[1] / np.minimum(ray[..., 1], -1e-6), np.inf)
    wall = (3.2 - eye[2]) / ray[..., 2]
    for index, t in ((10, table), (11, wall)):
        hit = t < nearest
        nearest[hit], kind[hit] = t[hit], index
    point = eye + nearest[..., None] * ray
    normal = np.zeros_like(point)
    colour = np.zeros((h, w))

    on_table, on_wall = kind == 10, kind == 11
    normal[on_table], normal[on_wall] = (0, 1, 0), (0, 0, -1)
    px, pz, py = point[..., 0], point[..., 2], point[..., 1]
    plank = np.floor(pz * 1.9)
    wood = _sample(grain, px * 26 + plank * 97, pz * 210)
    seam = np.clip(np.abs(pz * 1.9 - np.round(pz * 1.9)) * 28, 0.25, 1)
    tone = 0.40 + 0.07 * np.sin(plank * 2.4) + 0.34 * (wood - 0.5)
    colour[on_table] = (tone * seam)[on_table]
    colour[on_wall] = (0.52 + 0.30 * (_sample(plaster, px * 70, py * 70) - 0.5))[on_wall]
    for index, (cx, cy, radius, cz) in enumerate(balls):
        on = kind == index
        normal[on] = (point[on] - np.array([cx, cy, cz])) / radius
        nx, ny, nz = normal[..., 0], normal[..., 1], normal[..., 2]
        tilt = 0.75 * ny + 0.55 * nx - 0.35 * nz
        stripes = 0.14 + 0.72 / (1 + np.exp(-30 * np.sin(tilt * 15)))
        vein = np.abs(
            np.sin(4 * nx + 7 * ny + 9 * (_sample(marble, nx * 120 + 256, ny * 120 + nz * 60) - 0.5))
        )
        dots = 0.82 - 0.62 / (
            1 + np.exp(-26 * (np.sin(9 * nx + 1) * np.sin(9 * ny) * np.sin(9 * nz + 2) - 0.22))
        )
        look = (stripes, 0.22 + 0.66 * vein**0.6, dots, np.full((h, w), 0.62))[index]
        colour[on] = look[on]

    # A lamp with some width gives soft shadows; light from everywhere fades where balls stand close.
    lit = np.zeros((h, w))
    samples = 20
    for k in range(samples):
        spot = lamp + 0.65 * np.array([np.cos(k * 2.4), 0.0, np.sin(k * 2.4)]) * np.sqrt((k + 0.5) / samples)
        to = spot - point
        far = np.linalg.norm(to, axis=-1, keepdims=True)
        to = to / far
        free = np.ones((h, w), bool)
        for cx, cy, radius, cz in balls:
            free &= _meet(point + normal * 1e-3, to, np.array([cx, cy, cz]), radius) > far[..., 0]
        lit += free * np.clip((normal * to).sum(-1), 0, 1) * (36 / far[..., 0] ** 2) / samples
    near = np.ones((h, w))
    for cx, cy, radius, cz in balls:
        away = np.linalg.norm(point - np.array([cx, cy, cz]), axis=-1)
        touch = (on_table | on_wall) & (away < 3 * radius)
        near[touch] *= 1 - 0.75 * (radius / np.maximum(away, radius))[touch] ** 4
    to = lamp - point
    to /= np.linalg.norm(to, axis=-1, keepdims=True)
    half = to - ray
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    shine = np.clip((normal * half).sum(-1), 0, 1) ** 90 * (kind < 10) * (lit > 0.05)
    value = colour * (0.20 * near + 0.95 * lit) + 0.65 * shine
    value = np.clip(value, 0, 1) ** (1 / 1.8)
    shade = 1 - 0.28 * (((i - w / 2) / w) ** 2 + ((j - h / 2) / h) ** 2) * 2
    small = (value * shade).reshape(height, over, width, over).mean(axis=(1, 3))
    return np.asarray(np.clip(small, 0, 1), dtype=np.float64)


def _meet(start: Array, ray: Array, centre: Array, radius: float) -> Array:
    """Return the distance along `ray` at which it meets the ball, infinite if it does not."""
    to = start - centre
    b = (to * ray).sum(-1)
    root = b * b - (to * to).sum(-1) + radius * radius
    t = -b - np.sqrt(np.maximum(root, 0))
    return np.where((root > 0) & (t > 1e-4), t, np.inf)


def _sample(texture: Array, x: Array, y: Array) -> Array:
    """Look `texture` up, periodic and bilinear."""
    n, m = texture.shape
    x, y = np.nan_to_num(x), np.nan_to_num(y)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - x0, y - y0
    top = texture[y0 % n, x0 % m] * (1 - fx) + texture[y0 % n, (x0 + 1) % m] * fx
    low = texture[(y0 + 1) % n, x0 % m] * (1 - fx) + texture[(y0 + 1) % n, (x0 + 1) % m] * fx
    return top * (1 - fy) + low * fy


# -- shared


def fractal(rng: np.random.Generator, shape: tuple[int, int], power: float, stretch: float = 1.0) -> Array:
    """Return periodic noise with spectrum 1 / f**power, 0..1; `stretch` > 1 draws it out sideways."""
    fy = np.fft.fftfreq(shape[0])[:, None]
    fx = np.fft.rfftfreq(shape[1])[None, :] * stretch
    f = np.maximum(np.hypot(fy, fx), 1 / max(shape))
    noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) / f**power, s=shape)
    low, high = np.quantile(noise, [0.002, 0.998])
    return np.asarray(np.clip((noise - low) / (high - low), 0, 1), dtype=np.float64)


def ridge(rng: np.random.Generator, width: int, power: float) -> Array:
    """Return a jagged line, 0..1: one-dimensional noise with spectrum 1 / f**power."""
    f = np.maximum(np.fft.rfftfreq(2 * width), 1 / width)
    line = np.fft.irfft(np.fft.rfft(rng.normal(size=2 * width)) / f ** (power / 1.35))[:width]
    return np.asarray((line - line.min()) / (line.max() - line.min()), dtype=np.float64)


def blur(picture: Array, sigma_px: float) -> Array:
    """Blur with a periodic Gaussian."""
    fy = np.fft.fftfreq(picture.shape[0])[:, None]
    fx = np.fft.rfftfreq(picture.shape[1])[None, :]
    pass_band = np.exp(-2 * (np.pi * sigma_px) ** 2 * (fy**2 + fx**2))
    return np.asarray(np.fft.irfft2(np.fft.rfft2(picture) * pass_band, s=picture.shape), dtype=np.float64)


def to_uint8(picture: Array) -> NDArray[np.uint8]:
    """Round 0..1 to 8 bits."""
    return np.clip(np.round(picture * 255), 0, 255).astype(np.uint8)


def _ramp(position: Array, stops: Array) -> Array:
    """Return the colour at `position` (0..1) of a gradient through `stops`."""
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(position, at, stops[:, c]) for c in range(3)], axis=-1)


def _exif() -> Image.Exif:
    """Return what a camera would have said, as far as it is true here."""
    exif = Image.Exif()
    exif[0x010E] = "Mirror Lake, a procedural scene"
    exif[0x0131] = "examples/make_examples.py"
    return exif


if __name__ == "__main__":
    main()
