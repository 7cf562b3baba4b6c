"""The napari manifest: one text in two places, valid, and pointing at things that exist."""

from __future__ import annotations

import importlib

import pytest

from .conftest import ROOT


def test_manifest_copies_are_byte_equal() -> None:
    # A link would break on Windows checkouts; npe2 looks inside the package only.
    outside = (ROOT / "napari.yaml").read_bytes()
    inside = (ROOT / "mdrn_plugin" / "napari.yaml").read_bytes()
    assert outside == inside, "copy napari.yaml to mdrn_plugin/napari.yaml"


def test_manifest_is_valid_and_named_after_the_distribution() -> None:
    npe2 = pytest.importorskip("npe2")

    manifest = npe2.PluginManifest.from_file(ROOT / "napari.yaml")

    assert manifest.name == "mdrn-plugin"
    assert manifest.display_name == "MDRN"


@pytest.mark.viewer
def test_commands_of_the_manifest_exist() -> None:
    npe2 = pytest.importorskip("npe2")

    for command in npe2.PluginManifest.from_file(ROOT / "napari.yaml").contributions.commands or ():
        module, _, name = command.python_name.partition(":")
        assert callable(getattr(importlib.import_module(module), name)), command.python_name
