"""How noisy a picture is, in one record."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class NoiseProfile:
    """Noise of one channel, or of the samples of one colour picture.

    Attributes
    ----------
    sigma : tuple of float
        Standard deviation of each channel (C) or sample (S), as a fraction of white minus black.
    correlation : tuple of float
        Lag-1 autocorrelation of the noise (horizontal, vertical); 0 for white noise.
    clipped : float
        Share of the pixels at black or white, 0..1.
    source : str
        "blind", "user" or "file".
    doubt : str
        In words why the estimate may be wrong; empty if there is no reason to think so.
    low_high_ratio : float
        Noise of the flattest blocks at low over that at high spatial frequencies, both as standard
        deviations; about 1 for white noise, 4..11 for camera pictures. 1 where it was not measured.
        Texture raises it too.
    correlated : bool
        Whether the spectrum of the flattest blocks speaks against white noise, texture allowed for.
    """

    sigma: tuple[float, ...]
    correlation: tuple[float, float] = (0.0, 0.0)
    clipped: float = 0.0
    source: str = "blind"
    doubt: str = ""
    low_high_ratio: float = 1.0
    correlated: bool = False
