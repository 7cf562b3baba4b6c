"""Rebuilds every weight that ships: data, noise, losses, optimizers and the training loop.

Runs as ``mdrn-train`` once installed, or as ``python -m training`` from an uninstalled tree with
nothing but torch, numpy and safetensors (decoding pictures into a pack needs Pillow as well).
"""
