"""How noisy a picture is: from the picture alone, in words and numbers."""

from mdrn_plugin.noise.curve import NoiseCurve
from mdrn_plugin.noise.estimate import estimate_channels, estimate_noise
from mdrn_plugin.noise.level import estimate_sigma
from mdrn_plugin.noise.profile import NoiseProfile, describe, told_law, told_sigma

__all__ = [
    "NoiseCurve",
    "NoiseProfile",
    "describe",
    "estimate_channels",
    "estimate_noise",
    "estimate_sigma",
    "told_law",
    "told_sigma",
]
