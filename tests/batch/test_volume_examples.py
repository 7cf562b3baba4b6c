"""The examples of docs/volumes.md: their commands are commands, and the SLURM script does a volume."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mdrn_plugin import cli

pytest.importorskip("zarr")
from tiny_zoo import make_models
from zarr_samples import make_store, noisy

FILES = ("volumes.md", "volumes/volume.slurm", "volumes/Snakefile", "volumes/main.nf")


@pytest.mark.parametrize("name", FILES)
def test_commands_of_the_examples_are_commands(name: str, root: Path) -> None:
    text = (root / "docs" / name).read_text()
    found = re.findall(r"mdrn-batch (?:plan|run|merge-report|denoise) [^\n`]*", text)
    assert found
    for line in found:
        line = re.split(r'\)$|"$|[#&>]|\s-[ue]\s|\)\s*$', line)[0].strip().strip("\"'")
        # What the tool puts in is put in: shards, counts, paths.
        line = re.sub(r"\$\(cat [^)]*\)|\$\{[^}]*\}(?:\.\w+\(\)\})?|\{[^}]*\}|\$\w+", "7", line)
        name, *arguments = shlex.split(line.replace('"', "").replace("'", ""))[1:]
        cli.cli.commands[name].make_context(name, arguments)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_scripts_are_bash(root: Path) -> None:
    script = root / "docs/volumes/volume.slurm"
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_slurm_script_does_a_volume(root: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "volume.zarr", noisy((2, 200, 150), np.uint8), "zyx")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "mdrn-batch"
    command.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from mdrn_plugin.cli import main; main()' \"$@\"\n"
    )
    command.chmod(0o755)
    models = make_models(tmp_path / "models")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    there = {**os.environ, "PATH": path, "MDRN_MODELS": str(models), "SLURM_ARRAY_TASK_COUNT": "2"}

    def sh(text: str, **more: str) -> str:
        done = subprocess.run(
            ["bash", "-c", text], cwd=tmp_path, env={**there, **more}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    plan = sh("mdrn-batch plan volume.zarr out --threads 1 --model tiny --tile 64 -q")
    for task in ("1", "2"):
        sh(f"bash {root / 'docs/volumes/volume.slurm'}", PLAN=plan, SLURM_ARRAY_TASK_ID=task)
    report = json.loads(sh(f"mdrn-batch merge-report {plan}"))
    assert report["processes"] == 2
    assert (tmp_path / "out" / "volume.zarr" / "zarr.json").is_file()
    assert json.loads(sh(f"mdrn-batch merge-report {plan}")) == report
