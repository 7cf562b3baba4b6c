"""What several of the networks' tests build."""

from __future__ import annotations

import torch
from torch import nn

from mdrn_plugin.networks.mdrn import MDRN, FoldedMDRN


def small_network(seed: int) -> FoldedMDRN:
    """Return a network of one block and 8 channels, random but for its biases."""
    torch.manual_seed(seed)
    network = MDRN(colours=1, blocks=1, channels=8)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    return FoldedMDRN(network).eval()
