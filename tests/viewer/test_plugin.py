"""What napari finds of the plugin: manifest, widgets, menus, samples, reader, preferences."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mdrn_plugin

pytest.importorskip("napari")

import npe2

from mdrn_plugin.picture import Picture, decide_range
from mdrn_plugin.viewer import layers, reader, sample_data

from .conftest import Wait, noisy


def _manifest(root: Path) -> Any:
    return npe2.PluginManifest.from_file(root / "napari.yaml")


def test_manifest_validates_by_command(root: Path) -> None:
    program = Path(sys.executable).parent / ("npe2.exe" if sys.platform == "win32" else "npe2")
    done = subprocess.run([program, "validate", "napari.yaml"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_manifest_contributes_what_it_should(root: Path) -> None:
    found = _manifest(root)
    assert found.display_name == "MDRN"
    assert [str(c) for c in found.categories] == ["Image Processing"]
    assert {w.display_name for w in found.contributions.widgets} == {
        "Denoise",
        "Denoise folders",
        "Train on my images",
    }
    menus = found.contributions.menus
    assert [m.command for m in menus["napari/layers/filter"]] == ["mdrn-plugin.denoise"]
    assert [m.command for m in menus["napari/file/io_utilities"]] == ["mdrn-plugin.batch"]


def test_reader_claims_only_what_is_read(root: Path) -> None:
    from mdrn_plugin.formats import READABLE_SUFFIXES

    (claimed,) = _manifest(root).contributions.readers
    assert {p.removeprefix("*") for p in claimed.filename_patterns} <= READABLE_SUFFIXES


DISCOVER = """
import importlib.metadata, json, sys
sys.path[:0] = json.loads(sys.argv[1])
import npe2
manager = npe2.PluginManager()
manager.discover()
manifest = manager.get_manifest("mdrn-plugin")
import mdrn_plugin
loaded = [n for n in sys.modules if n.startswith(("mdrn_plugin.", "torch", "PySide6"))]
widgets = [w.display_name for w in manifest.contributions.widgets]
print(json.dumps([manifest.package_version, widgets, loaded, mdrn_plugin.__file__]))
"""


@pytest.mark.parametrize("way", ["as installed here", "wheel"])
def test_plugin_is_discovered_and_its_code_is_not_loaded_for_that(
    way: str, root: Path, tmp_path: Path
) -> None:
    places = [_unpacked_wheel(root, tmp_path)] if way == "wheel" else []
    command = [sys.executable, "-c", DISCOVER, json.dumps([str(p) for p in places])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version, widgets, loaded, where = json.loads(done.stdout.splitlines()[-1])
    assert version == mdrn_plugin.__version__
    assert len(widgets) == 3
    assert loaded == []
    assert way != "wheel" or Path(where).is_relative_to(places[0])


def _unpacked_wheel(root: Path, tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("mdrn_plugin", "training", "weights"):
        shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "napari.yaml"):
        shutil.copy2(root / name, tree / name)
    code = f"import setuptools.build_meta as b; b.build_wheel({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    return tmp_path / "site"


def test_command_works_without_napari_and_qt(tmp_path: Path) -> None:
    pixels = noisy(32, 32)
    mdrn_plugin.write(tmp_path / "a.png", Picture(pixels, "YX", decide_range(pixels)))
    code = (
        "import sys\n"
        "for name in ('napari', 'npe2', 'qtpy', 'PySide6', 'magicgui', 'superqt', 'vispy'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['mdrn-batch', 'denoise', 'a.png', '-o', 'out']\n"
        "from mdrn_plugin.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.png").exists()


@pytest.mark.viewer
def test_widgets_open_from_the_menu_of_plugins(viewer: Any, wait: Wait) -> None:
    for name in ("Denoise", "Denoise folders", "Train on my images"):
        _, widget = viewer.window.add_plugin_dock_widget("mdrn-plugin", name)
        assert type(widget).__module__.startswith("mdrn_plugin.viewer")


@pytest.mark.viewer
def test_samples_open_in_the_viewer(viewer: Any) -> None:
    for key in ("cells", "dusk"):
        viewer.open_sample("mdrn-plugin", key)
    cells, dusk = viewer.layers
    assert cells.data.dtype == np.uint16
    assert [str(u) for u in cells.units] == ["micrometer"] * 3
    assert dusk.rgb


@pytest.mark.parametrize("sample", [sample_data.cells, sample_data.dusk])
def test_samples_are_noisy_and_always_the_same(sample: Any) -> None:
    ((pixels, options, kind),) = sample()
    assert kind == "image"
    np.testing.assert_array_equal(pixels, sample()[0][0])
    profile = mdrn_plugin.estimate_noise(pixels, axes="YXS" if options.get("rgb") else "ZYX")
    low, high = (2, 40) if options.get("rgb") else (0.02, 1)
    assert all(low < 255 * s < high for s in profile[0].sigma)


def test_preferences_are_those_of_the_manifest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mdrn_plugin.viewer import preferences

    properties = _manifest(root).contributions.configurations["denoising"].properties
    defaults = preferences.Preferences()
    assert properties["quality"].default == defaults.quality
    assert properties["device"].default == defaults.device
    assert (properties["threads"].default or None) == defaults.threads


@pytest.mark.viewer
def test_preferences_of_the_user_are_what_the_panel_starts_with(viewer: Any) -> None:
    settings = pytest.importorskip("napari.settings")
    if not hasattr(settings, "get_plugin_settings"):
        pytest.skip("this napari has no preferences for plugins")
    from mdrn_plugin.viewer.denoise_widget import DenoiseWidget

    chosen = settings.get_plugin_settings("mdrn-plugin").denoising
    before = (chosen.quality, chosen.device, chosen.threads)
    try:
        chosen.quality, chosen.device, chosen.threads = "fast", "cpu", 1
        widget = DenoiseWidget(viewer)
        wishes = widget.wishes()
    finally:
        chosen.quality, chosen.device, chosen.threads = before
    assert (wishes.quality, wishes.device, wishes.threads) == ("fast", "cpu", 1)


# --- reader -------------------------------------------------------------------------------------


def _read(path: Path) -> list[Any]:
    found = reader.get_reader(str(path))
    assert found is not None
    return found(str(path))


def test_reader_keeps_sixteen_bits_of_colour(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (16, 20, 3), dtype=np.uint16)
    mdrn_plugin.write(tmp_path / "a.png", Picture(pixels, "YXS", decide_range(pixels)))
    ((found, options, _),) = _read(tmp_path / "a.png")
    np.testing.assert_array_equal(found, pixels)
    assert options["rgb"]
    assert options["name"] == "a"


def test_reader_takes_scale_and_channels_of_ome(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = noisy(3, 2, 32, 40, dtype=np.uint16)
    metadata = {
        "axes": "ZCYX",
        "PhysicalSizeX": 0.2,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 300,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": 1.5,
        "Channel": {"Name": ["DAPI", "GFP"], "Color": [65535, 16711935]},
        "SignificantBits": 12,
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata=metadata, ome=True)
    first, second = _read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(first[0], pixels[:, 0])
    np.testing.assert_array_equal(second[0], pixels[:, 1])
    assert [x[1]["name"].rpartition(" ")[2] for x in (first, second)] == ["DAPI", "GFP"]
    assert first[1]["scale"] == (1.5, 300, 0.2)
    assert first[1]["units"] == ("um", "nm", "um")
    assert first[1]["axis_labels"] == ("z", "y", "x")
    np.testing.assert_allclose(second[1]["colormap"][-1], (0, 1, 0, 1), atol=0.01)


def test_reader_takes_scale_limits_and_colours_of_imagej(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = noisy(4, 32, 40, dtype=np.uint16)
    lut = np.zeros((3, 256), np.uint8)
    lut[1] = np.arange(256)
    metadata = {"axes": "TYX", "unit": "micron", "finterval": 2.5, "min": 10, "max": 250, "LUTs": [lut]}
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, resolution=(5, 4), metadata=metadata)
    ((found, options, _),) = _read(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_allclose(options["scale"], (2.5, 0.25, 0.2))
    assert options["units"] == ("s", "um", "um")
    assert options["contrast_limits"] == (10, 250)
    np.testing.assert_allclose(options["colormap"][-1], (0, 1, 0, 1))
    from napari.layers import Image

    layer = Image(found, **options)
    assert tuple(layer.scale) == pytest.approx((2.5, 0.25, 0.2))


def test_reader_hands_the_range_of_the_file_to_the_core(tmp_path: Path) -> None:
    from napari.layers import Image

    tifffile = pytest.importorskip("tifffile")
    pixels = noisy(32, 40, dtype=np.uint16)
    metadata = {"axes": "YX", "SignificantBits": 12}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata=metadata, ome=True)
    ((found, options, _),) = _read(tmp_path / "a.ome.tif")
    picture = layers.as_picture(layers.source_of(Image(found, **options)))
    assert picture.range.white == mdrn_plugin.read(tmp_path / "a.ome.tif").range.white


def test_reader_leaves_to_others_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    assert reader.get_reader(str(tmp_path / "a.png")) is None
    assert reader.get_reader(str(tmp_path / "missing.png")) is None
    assert reader.get_reader(str(tmp_path)) is None
    assert reader.get_reader([str(tmp_path / "a.png")]) is None


def test_reader_lets_napari_try_what_we_refuse(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "two.tif") as writer:
        writer.write(noisy(16, 16))
        writer.write(noisy(24, 20, dtype=np.uint16))
    ((found, _, _),) = (x if len(x) == 3 else (*x, {}, "image")[:3] for x in _read(tmp_path / "two.tif"))
    assert found.shape == (16, 16)


@pytest.mark.viewer
def test_file_opened_by_the_plugin_is_denoised_as_the_command_does(
    viewer: Any, wait: Wait, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from mdrn_plugin.cli import cli
    from mdrn_plugin.viewer.denoise_widget import DenoiseWidget

    tifffile = pytest.importorskip("tifffile")
    pixels = (noisy(64, 64).astype(np.uint16) * 15).clip(0, 4095)
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": "YX", "SignificantBits": 12}, ome=True)
    viewer.open(tmp_path / "a.ome.tif", plugin="mdrn-plugin")
    widget = DenoiseWidget(viewer)
    viewer.window.add_dock_widget(widget)
    widget.run.native.click()
    assert wait(lambda: not widget._runner.busy)
    done = CliRunner().invoke(cli, ["denoise", str(tmp_path / "a.ome.tif"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    by_command = mdrn_plugin.read(tmp_path / "out" / "a.ome.tif").pixels
    np.testing.assert_array_equal(viewer.layers[-1].data, by_command)
