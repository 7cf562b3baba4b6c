"""What a user can wish for; every front end fills in the same record."""

from __future__ import annotations

import dataclasses
import math

from mdrn_plugin.errors import BadOption

NOISE_MODELS = ("auto", "gaussian", "poisson-gaussian", "correlated")
QUALITIES = ("fast", "balanced", "best", "best+")
BACKENDS = ("torch", "onnxruntime")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user can wish for; every front end fills in this record.

    Attributes
    ----------
    noise : str
        "auto"; "25" for a standard deviation of 25/255 of white; "25dn" in units of the file;
        "0.01,0.0004" for a variance of 0.01 * signal + 0.0004, signal 0..1 from black to white;
        "2.5,30dn" for the same in units of the file.
    noise_model : str
        One of `NOISE_MODELS`: what kind of noise to expect; "auto" decides by what is measured.
    quality : str
        One of `QUALITIES`; "best" looks for what the picture repeats as well, "best+" adds the x8
        self-ensemble.
    model : str, optional
        Name of a model, instead of the choice by noise and quality.
    device, precision : str
        See `engine.device`.
    backend : str
        "auto", or one of `BACKENDS`.
    tile : int, optional
        Side of a tile, px; never overridden.
    threads : int, optional
        CPU threads.
    strength : float
        0 keeps the input, 1 takes the network's result.
    chroma_strength : float, optional
        The same for the colour noise of RAW mosaics; left out: as `strength`.
    exact : bool
        fp32 and the full halo: tiled equals whole to rounding.
    along : str, optional
        "Z" or "T": denoised planes are averaged with their neighbours on this axis, where these show
        the same.
    """

    noise: str = "auto"
    noise_model: str = "auto"
    quality: str = "balanced"
    model: str | None = None
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    tile: int | None = None
    threads: int | None = None
    strength: float = 1.0
    chroma_strength: float | None = None
    exact: bool = False
    along: str | None = None

    def __post_init__(self) -> None:
        law = parse_noise(self.noise).law
        if self.noise_model not in NOISE_MODELS:
            raise BadOption(f"noise model {self.noise_model!r}: expected one of {', '.join(NOISE_MODELS)}")
        if law is not None and self.noise_model == "gaussian":
            raise BadOption(
                f"noise {self.noise!r}: gain and offset are for the noise model poisson-gaussian; "
                "give one standard deviation, or leave out the noise model"
            )
        if self.quality not in QUALITIES:
            raise BadOption(f"quality {self.quality!r}: expected one of {', '.join(QUALITIES)}")
        if self.backend not in ("auto", *BACKENDS):
            raise BadOption(f"backend {self.backend!r}: expected one of auto, {', '.join(BACKENDS)}")
        if not 0 <= self.strength <= 1:
            raise BadOption(f"strength {self.strength}: expected a number from 0 to 1")
        if self.chroma_strength is not None and not 0 <= self.chroma_strength <= 1:
            raise BadOption(f"chroma strength {self.chroma_strength}: expected a number from 0 to 1")
        if self.tile is not None and (self.tile < 32 or self.tile % 16):
            raise BadOption(f"tile {self.tile}: expected a multiple of 16 from 32 on, such as 256")
        if self.threads is not None and self.threads < 1:
            raise BadOption(f"threads {self.threads}: expected 1 or more")
        if self.along not in (None, "Z", "T"):
            raise BadOption(f"along {self.along!r}: expected Z or T")
        if self.along is not None and self.strength != 1:
            raise BadOption(f"along {self.along}: averages what strength {self.strength} keeps; drop one")


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseWish:
    """A parsed noise option."""

    value: float | None  # standard deviation; None: estimate, or see law
    unit: str  # "255", "dn", or for a law "1"
    law: tuple[float, float] | None = None  # gain and offset of the variance


def parse_noise(text: str) -> NoiseWish:
    """Parse "auto", "25", "25dn", "0.01,0.0004" or "2.5,30dn".

    Raises
    ------
    BadOption
        Anything else.
    """
    plain = text.strip().lower()
    if plain == "auto":
        return NoiseWish(None, "255")
    in_file = plain.endswith("dn")
    try:
        values = [float(part) for part in plain.removesuffix("dn").split(",")]
    except ValueError:
        values = []
    if len(values) == 1 and math.isfinite(values[0]) and values[0] >= 0:
        return NoiseWish(values[0], "dn" if in_file else "255")
    # A negative offset is a pedestal: the signal begins above black.
    if len(values) == 2 and all(map(math.isfinite, values)) and values[0] > 0:
        return NoiseWish(None, "dn" if in_file else "1", (values[0], values[1]))
    raise BadOption(
        f"noise {text!r}: expected auto, a number such as 25 (of 255), 25dn (units of the file), "
        "or gain and offset of the variance such as 0.01,0.0004 (gain above 0)"
    )
