"""Networks by the name that the manifest calls their architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdrn_plugin.networks.fan import FAN
from mdrn_plugin.networks.mdrn import MDRN
from mdrn_plugin.networks.mwrcanet import MWRCANet
from mdrn_plugin.networks.non_local import NonLocal

Network = MDRN | FAN | MWRCANet | NonLocal

ARCHITECTURES: dict[str, type[Network]] = {
    "mdrn": MDRN,
    "fan": FAN,
    "mwrcanet": MWRCANet,
    "non-local": NonLocal,
}


def build(architecture: str, settings: Mapping[str, Any]) -> Network:
    """Return the network of an architecture, its initial values as torch draws them.

    Parameters
    ----------
    architecture : str
        A key of `ARCHITECTURES`; KeyError otherwise.
    settings : mapping
        Arguments of the network, as JSON has them.
    """
    values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return ARCHITECTURES[architecture](**values)
