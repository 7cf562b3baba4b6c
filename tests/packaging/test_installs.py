"""Whatever way it is installed, the package holds every module, weight, recipe and the manifests."""

from __future__ import annotations

import platform
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import copy_tree, run

WAYS = ("wheel", "wheel from sdist", "editable")
# Folder of the tree → folder of the installed package.
MAPPED = {"mdrn_plugin": "mdrn_plugin", "training": "mdrn_plugin/training", "weights": "mdrn_plugin/weights"}

LIST_DATA = """
import hashlib, importlib.resources, json
def files(package, folder=""):
    top = importlib.resources.files(package)
    top = top.joinpath(folder) if folder else top
    return {x.name: hashlib.sha256(x.read_bytes()).hexdigest() for x in top.iterdir() if x.is_file()}
print(json.dumps({
    "weights": files("mdrn_plugin.weights"),
    "recipes": files("mdrn_plugin.training", "recipes"),
    "package": files("mdrn_plugin"),
}))
"""


def _digests(folder: Path, *patterns: str) -> dict[str, str]:
    import hashlib

    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for q in patterns for p in folder.glob(q)}


@pytest.mark.parametrize("way", WAYS)
def test_data_of_every_install_equals_the_tree(
    way: str, tree: Path, installed: Callable[[str, str], Any]
) -> None:
    found = installed(way, LIST_DATA)

    weights = _digests(tree / "weights", "*.safetensors", "manifest.json")
    recipes = _digests(tree / "training" / "recipes", "*.toml")
    assert "manifest.json" in weights
    assert recipes
    assert weights.items() <= found["weights"].items()
    assert recipes.items() <= found["recipes"].items()
    assert _digests(tree, "napari.yaml").items() <= found["package"].items()
    assert "py.typed" in found["package"]


@pytest.mark.parametrize("way", WAYS)
def test_entry_points_of_every_install_lead_somewhere(
    way: str, tree: Path, installed: Callable[[str, str], Any]
) -> None:
    code = """
import importlib.metadata as m, importlib.util as u, json
d = m.distribution("mdrn-plugin")
def there(value):
    return u.find_spec(value.split(":")[0]) is not None
print(json.dumps({e.name: [e.group, e.value, there(e.value)] for e in d.entry_points}))
"""
    points = installed(way, code)

    assert set(points) == {"mdrn-batch", "mdrn-train", "mdrn-plugin"}
    assert points["mdrn-plugin"][:2] == ["napari.manifest", "mdrn_plugin:napari.yaml"]
    missing = [name for name, (_, _, there) in points.items() if not there]
    assert not missing


@pytest.mark.parametrize("way", WAYS)
def test_recipes_of_every_install_load(way: str, tree: Path, installed: Callable[[str, str], Any]) -> None:
    code = """
import json
from mdrn_plugin.training.recipe import load_recipe, recipe_names
print(json.dumps([load_recipe(n).name for n in recipe_names()]))
"""
    assert sorted(installed(way, code)) == sorted(
        p.stem for p in (tree / "training" / "recipes").glob("*.toml")
    )


def test_every_module_of_the_wheel_imports(installed: Callable[[str, str], Any]) -> None:
    # The viewer needs napari and a display: its own tests import it.
    code = """
import importlib, json, pkgutil, mdrn_plugin
names = [m.name for m in pkgutil.walk_packages(mdrn_plugin.__path__, "mdrn_plugin.")
         if not m.name.startswith("mdrn_plugin.viewer") and not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""
    assert {"mdrn_plugin.weights", "mdrn_plugin.training.loop"} <= set(installed("wheel from sdist", code))


def test_an_editable_install_is_live(tree: Path, installed: Callable[[str, str], Any]) -> None:
    before = installed("editable", LIST_DATA)
    extra = tree / "training" / "recipes" / "added-later.toml"
    recipe = next((tree / "training" / "recipes").glob("*.toml"))
    try:
        shutil.copy2(recipe, extra)
        after = installed("editable", LIST_DATA)
    finally:
        extra.unlink()

    assert set(after["recipes"]) - set(before["recipes"]) == {"added-later.toml"}


@pytest.mark.parametrize("way", ["wheel", "wheel from sdist"])
def test_the_wheel_lists_what_the_tree_lists(way: str, tree: Path, wheels: dict[str, Path]) -> None:
    expected = {
        f"{inside}/{path.relative_to(tree / outside).as_posix()}"
        for outside, inside in MAPPED.items()
        for path in (tree / outside).rglob("*")
        if path.is_file() and path.suffix not in (".md", ".c", ".h", ".so")
    }
    with zipfile.ZipFile(wheels[way]) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n and not n.endswith(".so")}

    lacking, stray = sorted(expected - names), sorted(names - expected)
    assert not lacking, (
        f"not in the wheel (list them in packages or package-data of pyproject.toml): {lacking}"
    )
    assert not stray, f"in the wheel but not in the tree: {stray}"


def test_the_sdist_holds_the_whole_tree(tree: Path, sdist: Path) -> None:
    expected = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    made = (".egg-info/", "build/", ".so")
    expected = {name for name in expected if not any(part in name for part in made)}
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}

    assert not expected - names, f"not in the sdist (name them in MANIFEST.in): {sorted(expected - names)}"


COMPILES = sys.platform == "linux" and platform.machine() == "x86_64" and shutil.which("cc") is not None


@pytest.mark.skipif(not COMPILES, reason="the kernel is built on Linux, x86-64, with a C compiler")
@pytest.mark.parametrize("way", WAYS)
def test_the_kernel_of_every_install_loads(way: str, installed: Callable[[str, str], Any]) -> None:
    code = """
import json
from mdrn_plugin.networks import fan_native, fp32_native, native, non_local
from mdrn_plugin.training import kernel
libraries = native, fp32_native, fan_native, non_local, kernel
print(json.dumps([[m.library() is not None, m.why_not()] for m in libraries]))
"""
    for loaded, why in installed(way, code):
        assert loaded or "processor" in why


@pytest.mark.parametrize(
    ("change", "tag"), [({"CC": "/no/compiler"}, None), ({"MDRN_PURE": "1"}, "py3-none-any")]
)
def test_a_wheel_without_the_kernel_can_be_built(
    change: dict[str, str], tag: str | None, tmp_path: Path
) -> None:
    source, out = copy_tree(tmp_path / "tree"), tmp_path / "out"
    shutil.rmtree(source / "weights")  # large, and not what is asked
    (source / "weights").mkdir()
    (source / "weights" / "__init__.py").touch()
    out.mkdir()
    code = f"import setuptools.build_meta as b; b.build_wheel({str(out)!r})"
    run([sys.executable, "-c", code], source, **change)

    (wheel,) = out.iterdir()
    assert tag is None or tag in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "mdrn_plugin/networks/native.py" in names
    assert not [name for name in names if name.endswith(".so")]


def test_the_licence_is_in_the_wheel(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["wheel"]) as archive:
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
