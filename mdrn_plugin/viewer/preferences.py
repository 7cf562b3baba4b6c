"""What a user has set for this plugin in napari's preferences."""

from __future__ import annotations

import dataclasses

from mdrn_plugin.options import QUALITIES


@dataclasses.dataclass(frozen=True, slots=True)
class Preferences:
    """Defaults of the widgets; those of the manifest where nothing was set.

    Attributes
    ----------
    quality : str
        One of `mdrn_plugin.options.QUALITIES`.
    device : str
        As of the options of the core.
    threads : int, optional
        CPU threads; None leaves it to torch.
    """

    quality: str = "balanced"
    device: str = "auto"
    threads: int | None = None


def load() -> Preferences:
    """Read the preferences; napari before 0.9 has none for plugins."""
    try:
        from napari.settings import get_plugin_settings

        chosen = get_plugin_settings("mdrn-plugin").denoising
        quality, device, threads = str(chosen.quality), str(chosen.device), int(chosen.threads)
    except (ImportError, KeyError, AttributeError, TypeError, ValueError):
        return Preferences()
    return Preferences(quality if quality in QUALITIES else "balanced", device or "auto", threads or None)
