"""``mdrn-batch``: parse, call the library, print. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdrn_plugin import __version__
from mdrn_plugin.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_MATCHED,
    EXIT_TERMINATED,
    BadOption,
    Cancelled,
    MdrnError,
)

if TYPE_CHECKING:
    from mdrn_plugin.batch.jobs import Job, Jobs
    from mdrn_plugin.batch.run import Outcome, Settings
    from mdrn_plugin.picture import ValueRange
    from mdrn_plugin.plan import Options


def main() -> None:
    """Entry point: known errors become one line and their exit code, unknown ones a plea to report."""
    try:
        code = cli.main(standalone_mode=False)
    except MdrnError as error:
        click.echo(f"mdrn-batch: {error}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("mdrn-batch: interrupted", err=True)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout has gone, such as `| head`
        code = 0
    except Exception as error:
        if os.environ.get("MDRN_DEBUG"):
            raise
        click.echo(
            f"mdrn-batch: unexpected {type(error).__name__}: {error}; please report this as a bug "
            "(MDRN_DEBUG=1 shows where)",
            err=True,
        )
        code = EXIT_BUG
    _leave(code if isinstance(code, int) else 0)


def _leave(code: int) -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain about it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mdrn-batch")
def cli() -> None:
    """Denoise pictures without tuning: photographs, microscopy stacks, whole folders."""


def _processing_options(command: Any) -> Any:
    """Add what `denoise` and `info` have in common."""
    for option in reversed(
        (
            click.option(
                "--noise",
                default="auto",
                show_default=True,
                metavar="auto|25|25dn",
                help="Measure it, or a standard deviation: 25 means 25/255 of white, 25dn units of the file.",
            ),
            click.option(
                "--quality",
                type=click.Choice(["fast", "balanced", "best", "best+"]),
                default="balanced",
                show_default=True,
                help="best+ averages eight symmetries.",
            ),
            click.option("--model", metavar="NAME", help="A model by name, see `mdrn-batch models`."),
            click.option(
                "--device",
                default="auto",
                show_default=True,
                metavar="auto|cpu|cuda[:N]|mps",
                help="Where to compute.",
            ),
            click.option(
                "--precision",
                type=click.Choice(["auto", "fp32", "bf16"]),
                default="auto",
                show_default=True,
                help="Arithmetic inside the network.",
            ),
            click.option("--tile", type=int, metavar="PX", help="Side of a tile, a multiple of 16."),
            click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads."),
            click.option(
                "--strength",
                type=click.FloatRange(0, 1),
                default=1.0,
                show_default=True,
                help="0 keeps the input, 1 takes the result.",
            ),
            click.option("--exact", is_flag=True, help="fp32 and the full halo: tiled equals whole."),
            click.option("--range", "limits", metavar="LOW,HIGH", help="The values of black and white."),
        )
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUTS...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("-r", "--recursive", is_flag=True, help="Enter sub-folders; the tree is mirrored.")
@click.option("--pattern", default="*", show_default=True, help="Only files of folders with such names.")
@_processing_options
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, file by file, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line per file on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="The plan of every file.")
@click.option("--log-file", type=click.Path(path_type=Path), help="Append messages to this file.")
def denoise(
    inputs: tuple[str, ...],
    out: Path,
    recursive: bool,
    pattern: str,
    limits: str | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
    **wishes: Any,
) -> None:
    """Denoise files and folders into a folder.

    INPUTS are files, folders or globs; - reads a list of files from standard input. Files that are
    done already are skipped. Exit code: 0 all done, 2 wrong usage, 3 some files failed and the
    others are done, 4 nothing matched, 5 output unusable, 130/143 interrupted.
    """
    from mdrn_plugin.batch import jobs as batch_jobs
    from mdrn_plugin.batch.run import Settings
    from mdrn_plugin.formats import READABLE_SUFFIXES

    settings = Settings(_options(wishes), _parse_range(limits), overwrite)
    listed = [line.rstrip("\n") for line in sys.stdin] if inputs == ("-",) else list(inputs)
    jobs = batch_jobs.collect(
        listed, out, suffixes=frozenset(READABLE_SUFFIXES), recursive=recursive, pattern=pattern
    )
    screen = _Screen(quiet, verbose, as_json, log_file)
    if not jobs.jobs and not jobs.failures:
        raise _nothing(listed)
    if dry_run:
        sys.exit(_show_plans(jobs, settings))
    batch_jobs.prepare_output(out)
    sys.exit(_run_batch(jobs, out, settings, screen))


def _nothing(inputs: list[str]) -> click.ClickException:
    shown = ", ".join(inputs[:3]) or "an empty list"
    return _NothingMatched(
        f"nothing to do: no picture found in {shown}; check the path, --pattern, --recursive"
    )


class _NothingMatched(click.ClickException):
    exit_code = EXIT_NOTHING_MATCHED


def _options(wishes: dict[str, Any]) -> Options:
    from mdrn_plugin.plan import Options

    options = Options(**wishes)
    if options.model is not None:
        from mdrn_plugin.zoo import shipped

        shipped().get(options.model)
    return options


def _parse_range(text: str | None) -> ValueRange | None:
    if text is None:
        return None
    from mdrn_plugin.picture import ValueRange

    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise BadOption(f"range {text!r}: expected two numbers such as 0,4095") from None
    if not low < high:
        raise BadOption(f"range {text!r}: expected black below white, such as 0,4095")
    return ValueRange(low, high, "given by the user", given=True)


class _Screen:
    """Messages and the progress line."""

    def __init__(self, quiet: bool, verbose: bool, as_json: bool, log_file: Path | None) -> None:
        self._quiet, self._verbose, self._json = quiet, verbose, as_json
        self._log_file = log_file
        # NO_COLOR and pipes: a progress line on a terminal only.
        self._live = sys.stderr.isatty() and not quiet
        self._shown = 0

    def say(self, text: str, *, important: bool = False) -> None:
        self._wipe()
        if important or not self._quiet:
            click.echo(text, err=True)
        if self._log_file is not None:
            try:
                with open(self._log_file, "a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(text + "\n")
            except OSError as error:
                raise BadOption(f"log file {self._log_file}: cannot be written ({error.strerror})") from error

    def told(self, outcome: Outcome) -> None:
        from mdrn_plugin.batch.report import line, record

        self.say(line(outcome), important=outcome.state == "failed")
        if self._verbose and outcome.result is not None:
            for text in outcome.result.plan.explain().splitlines():
                self.say(f"         {text}")
        if self._json:
            click.echo(record(outcome))
            sys.stdout.flush()

    def progress(self, job: Job, done: int, total: int) -> None:
        if self._live:
            self._wipe()
            text = f"{job.source.name}: {100 * done // max(1, total)} %"[:78]
            click.echo(text, nl=False, err=True)
            self._shown = len(text)

    def _wipe(self) -> None:
        if self._shown:
            click.echo("\r" + " " * self._shown + "\r", nl=False, err=True)
            self._shown = 0


class _Signals:
    """SIGINT and SIGTERM ask for the end; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> _Signals:
        import signal

        self._previous = {s: signal.signal(s, self._on) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        import signal

        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on(self, number: int, frame: object) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    @property
    def exit_code(self) -> int:
        import signal

        return EXIT_TERMINATED if self.received == signal.SIGTERM else EXIT_INTERRUPTED


def _run_batch(jobs: Jobs, out: Path, settings: Settings, screen: _Screen) -> int:
    import time

    from mdrn_plugin.batch import report
    from mdrn_plugin.batch.run import exit_code, run

    began = time.perf_counter()
    outcomes: list[Outcome] = []

    def told(outcome: Outcome) -> None:
        outcomes.append(outcome)
        screen.told(outcome)

    with _Signals() as signals:
        try:
            run(jobs, out, settings, told=told, progress=screen.progress, stop=lambda: signals.received > 0)
            code = exit_code(outcomes)
        except Cancelled:
            screen.say(
                "interrupted: what is done is kept, the same command goes on from there", important=True
            )
            code = signals.exit_code
        finally:
            seconds = time.perf_counter() - began
            screen.say(report.summary(outcomes, seconds))
            if screen._json:
                click.echo(report.totals(outcomes, seconds))
    return code


def _show_plans(jobs: Jobs, settings: Settings) -> int:
    from mdrn_plugin.errors import EXIT_OK, EXIT_SOME_FAILED
    from mdrn_plugin.pipeline import make_plan, measure, prepare

    failed = [f.reason for f in jobs.failures]
    for job in jobs.jobs:
        try:
            picture = prepare(job.source, job.target, settings.value_range)
            plan = make_plan(picture, measure(picture, settings.options), settings.options)
        except MdrnError as error:
            failed.append(str(error))
            continue
        click.echo(f"{job.source} -> {job.target}")
        for line in plan.explain().splitlines():
            click.echo(f"    {line}")
    for reason in failed:
        click.echo(f"failed   {reason}", err=True)
    return EXIT_SOME_FAILED if failed else EXIT_OK


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@_processing_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(file: Path, limits: str | None, as_json: bool, **wishes: Any) -> None:
    """Show what a file is, how noisy it is, and what would be done to it."""
    import dataclasses
    import json

    from mdrn_plugin import formats
    from mdrn_plugin.noise import describe
    from mdrn_plugin.pipeline import make_plan, measure

    options = _options(wishes)
    picture = formats.read(file)
    given = _parse_range(limits)
    if given is not None:
        picture = dataclasses.replace(picture, range=given)
    profiles = measure(picture, options)
    plan = make_plan(picture, profiles, options)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "file": os.fspath(file),
                    "format": picture.metadata.format,
                    "axes": picture.axes,
                    "shape": picture.shape,
                    "dtype": str(picture.pixels.dtype),
                    "alpha": picture.alpha,
                    "range": dataclasses.asdict(picture.range),
                    "noise": [dataclasses.asdict(p) for p in profiles],
                    "plan": plan.as_dict(),
                }
            )
        )
        return
    shape = " x ".join(f"{n} {a}" for a, n in zip(picture.axes, picture.shape, strict=True))
    r = picture.range
    click.echo(f"file     {file}")
    click.echo(f"picture  {picture.metadata.format}, {shape}, {picture.pixels.dtype}")
    click.echo(f"range    black {r.black:g}, white {r.white:g} ({r.reason})")
    for k, profile in enumerate(profiles):
        name = f"channel {k}: " if len(profiles) > 1 else ""
        click.echo(f"noise    {name}{describe(profile, picture.range)}")
    for number, text in enumerate(plan.explain().splitlines()):
        click.echo(f"{'plan' if number == 0 else '':9}{text}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def models(as_json: bool) -> None:
    """List the models, the noise each is for, and what it was measured to reach."""
    import dataclasses
    import json

    from mdrn_plugin.zoo import shipped

    descriptors = sorted(shipped().descriptors, key=lambda d: (d.tier, d.colours, d.band_255))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(d) for d in descriptors]))
        return
    for d in descriptors:
        low, high = d.band_255
        kind = "colour" if d.colours == 3 else "gray"
        scores = ", ".join(f"{key} {value:.2f}" for key, value in list(d.psnr.items())[:4])
        click.echo(f"{d.name:24} {d.tier:9} {kind:7} noise {low:3g} to {high:3g}   {scores}")


@cli.command()
def doctor() -> None:
    """Check this installation: versions, devices, weights, speed, extras."""
    from mdrn_plugin.doctor import examine

    healthy = True
    for topic, text, good in examine():
        healthy = healthy and good
        click.echo(f"{'ok ' if good else 'BAD'} {topic:12} {text}")
    if not healthy:
        sys.exit(EXIT_BUG)


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare two pictures: PSNR, SSIM, and statistics of A minus B."""
    import dataclasses
    import json

    from mdrn_plugin.compare import compare_files

    found = compare_files(a, b)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
        return
    click.echo(f"PSNR     {found.psnr:.2f} dB")
    click.echo(f"SSIM     {found.ssim:.4f}")
    click.echo(
        f"A - B    mean {found.mean:.6g}, std {found.std:.6g}, largest {found.largest:.6g} "
        "(units of the file)"
    )
    h, v = found.correlation
    click.echo(f"         lag-1 correlation {h:.3f} horizontal, {v:.3f} vertical")
