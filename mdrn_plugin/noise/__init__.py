"""How noisy a picture is: from the picture alone, in words and numbers."""

from mdrn_plugin.noise.level import estimate_channels, estimate_noise, estimate_sigma
from mdrn_plugin.noise.profile import NoiseProfile, describe

__all__ = ["NoiseProfile", "describe", "estimate_channels", "estimate_noise", "estimate_sigma"]
