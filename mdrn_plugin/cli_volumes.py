"""``mdrn-batch plan``, ``run`` and ``merge-report``: one volume, many processes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mdrn_plugin.cli_options import Signals, options_of, parse_range, processing_options
from mdrn_plugin.errors import BadOption, Cancelled

_cluster_option = click.option(
    "--cluster",
    metavar="tcp://HOST:PORT|local:N",
    help="Give the blocks to workers of dask.distributed: those of a scheduler, or N started here.",
)
_quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only errors.")


def add_volume_commands(group: click.Group) -> None:
    """Add the commands to ``mdrn-batch``."""
    for command in (plan, run, merge_report):
        group.add_command(command)


@click.command()
@click.argument("volume", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@processing_options
@click.option("--suffix", default="", help="Put behind the name of the output: -clean gives a-clean.zarr.")
@click.option("--blocks", "count_only", is_flag=True, help="Print the number of blocks instead of the path.")
@_quiet_option
def plan(
    volume: Path,
    out: Path,
    suffix: str,
    count_only: bool,
    quiet: bool,
    limits: str | None,
    **wishes: Any,
) -> None:
    """Settle how a large VOLUME is denoised into the folder OUT, and print the path of the plan.

    VOLUME is OME-Zarr or TIFF, the output is OME-Zarr. Noise and range are measured once, on a sample.
    `run` then does the blocks, in any number of processes; `merge-report` finishes. Nothing of that is
    needed for a run in one process: `denoise` does it all.
    """
    from mdrn_plugin.batch import blocks, jobs
    from mdrn_plugin.batch.run import Settings

    options, value_range = options_of(wishes), parse_range(limits)
    found = jobs.collect(
        [str(volume)], out, suffixes=frozenset((".zarr", ".tif", ".tiff")), suffix=suffix, format="zarr"
    )
    if found.failures or len(found.jobs) != 1:
        reason = (
            found.failures[0].reason if found.failures else f"{volume}: expected one volume, not a folder"
        )
        raise BadOption(f"{reason}; give a folder of OME-Zarr or a TIFF file")
    job = found.jobs[0]
    jobs.prepare_output(out, found.jobs)
    digest = Settings(options, value_range).digest()
    file = blocks.prepare(job.source, job.target, out, options, settings=digest, value_range=value_range)
    opened = blocks.open_volume(file)
    if not quiet:
        grid = opened.plan.grid()
        shape = " x ".join(f"{n} {a}" for a, n in zip(opened.plan.axes, opened.plan.shape, strict=True))
        click.echo(f"{job.source}: {shape}, {len(grid)} blocks, {opened.levels} levels", err=True)
        for line in opened.plan.plan.explain().splitlines():
            click.echo(f"    {line}", err=True)
        if opened.plan.note:
            click.echo(f"    note: {opened.plan.note}", err=True)
    click.echo(str(len(opened.plan.grid())) if count_only else os.path.abspath(file))


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--shard", metavar="I/N", help="Only the I-th of N parts of the blocks, I from 1.")
@_cluster_option
@_quiet_option
def run(plan_file: Path, shard: str | None, cluster: str | None, quiet: bool) -> None:
    """Do the blocks of a PLAN that are not done; all of them, or one shard.

    May be stopped and started again, and started several times at once: the bytes are the same.
    """
    from mdrn_plugin.batch import blocks

    if shard is not None and cluster is not None:
        raise BadOption("--shard and --cluster: contradict each other; choose one")
    volume = blocks.open_volume(plan_file)
    part = _parse_shard(shard)

    def work(progress: Callable[[int, int], None], stop: Callable[[], bool]) -> int:
        if cluster is not None:
            from mdrn_plugin.batch.cluster import run_on

            return run_on(cluster, volume, progress=progress, stop=stop)
        return blocks.run(volume, shard=part, progress=progress, stop=stop)

    began = time.perf_counter()
    count = _guarded(work, quiet)
    if not quiet:
        click.echo(f"{count} blocks done in {time.perf_counter() - began:.1f} s", err=True)


@click.command("merge-report")
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@_cluster_option
@_quiet_option
def merge_report(plan_file: Path, overwrite: bool, cluster: str | None, quiet: bool) -> None:
    """Finish a PLAN whose blocks are done, and print a report as JSON.

    Makes the pyramid, looks the output through, gives it its final name, and judges what was removed.
    """
    from mdrn_plugin.batch import blocks

    volume = blocks.open_volume(plan_file)

    def work(progress: Callable[[int, int], None], stop: Callable[[], bool]) -> dict[str, Any]:
        levels = None
        if cluster is not None:
            from mdrn_plugin.batch.cluster import levels_on

            levels = levels_on(cluster, volume, stop=stop)
        return blocks.finish(volume, overwrite=overwrite, progress=progress, stop=stop, levels=levels)

    report = _guarded(work, quiet)
    click.echo(json.dumps(report))


def _parse_shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    i, _, count = text.partition("/")
    if not (i.isdigit() and count.isdigit()):
        raise BadOption(f"shard {text!r}: expected I/N such as 3/64, I from 1")
    return int(i), int(count)


def _guarded(work: Callable[..., Any], quiet: bool) -> Any:
    """Do some work with a progress line; signals end it between tiles."""
    live = sys.stderr.isatty() and not quiet
    with Signals() as signals:

        def progress(done: int, total: int) -> None:
            if live:
                click.echo(f"\r{done} of {total} blocks", nl=False, err=True)

        try:
            return work(progress, lambda: signals.received > 0)
        except Cancelled:
            click.echo("interrupted: what is done is kept, the same command goes on from there", err=True)
            sys.exit(signals.exit_code)
        finally:
            if live:
                click.echo("", err=True)
