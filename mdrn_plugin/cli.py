"""``mdrn-batch``: parse, call the library, print. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mdrn_plugin import __version__
from mdrn_plugin.cli_options import Signals, deaf, options_of, parse_range, processing_options
from mdrn_plugin.cli_raw import facts, lines, output_option, told_once
from mdrn_plugin.cli_volumes import add_volume_commands
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
    from mdrn_plugin.batch.run import Outcome, Session, Settings
    from mdrn_plugin.picture import Picture


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
    except SystemExit as stop:  # a command said its code
        code = stop.code if stop.code is None or isinstance(stop.code, int) else EXIT_BUG
    except (click.Abort, KeyboardInterrupt):
        deaf()
        click.echo("mdrn-batch: interrupted", err=True)
        _leave_at_once(EXIT_INTERRUPTED)
    except _ReaderGone:
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


def _leave_at_once(code: int) -> None:
    """Leave without waiting for threads that read or write; what they leave, the next run removes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _leave(code: int) -> None:
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        deaf()  # while Python tears down, one more signal would end it with another exit code
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain about it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


class _ReaderGone(Exception):
    """Who read our stdout has left, such as `| head`."""


class _Commands(click.Group):
    """Leaves silently with 0 when the reader has gone; click's 1 would mean a fault of this program."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mdrn-batch")
def cli() -> None:
    """Denoise pictures without tuning: photographs, microscopy stacks, whole folders."""


add_volume_commands(cli)


def _from_config(context: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Let a TOML file give what the command line leaves out."""
    if file is None:
        return
    import tomllib

    try:
        with open(file, "rb") as source:
            given = tomllib.load(source)
    except OSError as error:
        raise BadOption(
            f"{file}: cannot be read ({error.strerror}); check the path of the configuration"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadOption(f"{file}: is not TOML ({error}); mend it") from error
    names: dict[str, click.Parameter] = {"inputs": context.command.params[0]}
    for parameter in context.command.params[1:]:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--") and option not in ("--config", "--no-isolate"):
                names[option[2:]] = parameter
    values = {}
    for key, value in given.items():
        name = key.replace("_", "-")
        if name not in names:
            known = ", ".join(sorted(names))
            raise BadOption(f"{file}: {key!r} is no option; use {known}")
        parameter = names[name]
        if isinstance(value, dict) or (isinstance(value, list) and name not in ("inputs", "range")):
            raise BadOption(f"{file}: {key}: expected a single value, got {value!r}")
        if getattr(parameter, "is_flag", False) and not isinstance(value, bool):
            raise BadOption(f"{file}: {key}: expected true or false, got {value!r}")
        if name == "range" and isinstance(value, list):
            value = ",".join(map(str, value))
        if name == "inputs":
            value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise BadOption(f'{file}: inputs: expected a list of paths such as ["scans"], got {value!r}')
        values[str(parameter.name)] = value
    context.obj = values.pop("inputs", None)
    context.default_map = values


@cli.command()
@click.argument("inputs", nargs=-1, metavar="INPUTS...")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Output folder.")
@click.option("-r", "--recursive", is_flag=True, help="Enter sub-folders; the tree is mirrored.")
@click.option("--pattern", default="*", show_default=True, help="Only files of folders with such names.")
@click.option("--suffix", default="", help="Put behind the names of the outputs: -clean gives a-clean.tif.")
@click.option(
    "--format",
    type=click.Choice(["tiff", "png", "jpeg", "webp", "bmp", "zarr"]),
    help="Format of the outputs.  [default: that of each input]",
)
@processing_options
@output_option
@click.option("--same-noise", is_flag=True, help="One noise for all like pictures of a folder: a series.")
@click.option(
    "--max-pixels", type=click.IntRange(min=1), metavar="N", help="Refuse larger files.  [default: 2e9]"
)
@click.option("--resume", is_flag=True, help="Skip what is done. This is the default.")
@click.option("--overwrite", is_flag=True, help="Do everything, and replace outputs that exist.")
@click.option("--retry-failed", is_flag=True, help="Only files that failed the last time.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option(
    "--jobs",
    "in_work",
    type=click.IntRange(1, 64),
    default=3,
    show_default=True,
    metavar="N",
    help="Files in work at once: one is computed, others are read and written meanwhile.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Decode what was written and compare; of files done before, compare the content.",
)
@click.option(
    "--isolate/--no-isolate",
    default=None,
    help="Decode in a helper process that may crash or hang.  [default: from 8 files on]",
)
@click.option("--watch", is_flag=True, help="Go on: denoise new files as they are completely written.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_from_config,
    help="A TOML file with these options by name; the command line has precedence.",
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path),
    metavar="HTML",
    help="Write a page with before and after, noise, model and verdict of every file.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, file by file, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line per file on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="The plan of every file.")
@click.option("--log-file", type=click.Path(path_type=Path), help="Append messages to this file.")
@click.pass_context
def denoise(
    context: click.Context,
    /,
    inputs: tuple[str, ...],
    out: Path,
    recursive: bool,
    pattern: str,
    suffix: str,
    format: str | None,
    limits: str | None,
    raw_output: str,
    same_noise: bool,
    max_pixels: int | None,
    resume: bool,
    overwrite: bool,
    retry_failed: bool,
    fail_fast: bool,
    in_work: int,
    verify: bool,
    isolate: bool | None,
    watch: bool,
    report_file: Path | None,
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
    from mdrn_plugin.formats import RAW_SUFFIXES, READABLE_SUFFIXES

    given = inputs or tuple(context.obj or ())
    if not given:
        raise click.MissingParameter(ctx=context, param=context.command.params[0])
    _refuse_contradictions(
        {"--resume": resume, "--overwrite": overwrite},
        {"--watch": watch, "--dry-run": dry_run},
        {"--watch": watch, "--retry-failed": retry_failed},
        {"--watch": watch, "- as input": given == ("-",)},
    )
    settings = Settings(
        options_of(wishes),
        parse_range(limits),
        overwrite,
        jobs=in_work,
        max_pixels=max_pixels,
        same_noise=same_noise,
        verify=verify,
        isolate=True if watch and isolate is None else isolate,
        fail_fast=fail_fast,
        retry_failed=retry_failed,
        preview=report_file is not None,
    )
    listed = [line.rstrip("\n") for line in sys.stdin] if given == ("-",) else list(given)

    def collect() -> Jobs:
        return batch_jobs.collect(
            listed,
            out,
            suffixes=READABLE_SUFFIXES | RAW_SUFFIXES,
            recursive=recursive,
            pattern=pattern,
            suffix=suffix,
            format=format,
            raw_output=raw_output,
        )

    jobs = collect()
    screen = _Screen(quiet, verbose, as_json, log_file)
    if not jobs.jobs and not jobs.failures and not watch:
        raise _nothing(listed)
    if dry_run:
        sys.exit(_show_plans(jobs, settings))
    batch_jobs.prepare_output(out, jobs.jobs)
    errand = _Errand(out, settings, screen, collect if watch else None, report_file)
    sys.exit(_run_batch(jobs, errand))


def _refuse_contradictions(*pairs: dict[str, bool]) -> None:
    for pair in pairs:
        if all(pair.values()):
            raise BadOption(f"{' and '.join(pair)}: contradict each other; choose one")


def _nothing(inputs: list[str]) -> click.ClickException:
    shown = ", ".join(inputs[:3]) or "an empty list"
    return _NothingMatched(
        f"nothing to do: no picture found in {shown}; check the path, --pattern, --recursive"
    )


class _NothingMatched(click.ClickException):
    exit_code = EXIT_NOTHING_MATCHED


class _Screen:
    """Messages and the progress line."""

    def __init__(self, quiet: bool, verbose: bool, as_json: bool, log_file: Path | None) -> None:
        self._quiet, self._verbose, self.json = quiet, verbose, as_json
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
        if self.json:
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Errand:
    """What is run, beside the jobs."""

    out: Path
    settings: Settings
    screen: _Screen
    collect: Callable[[], Jobs] | None  # finds the jobs again: to watch
    report_file: Path | None


def _run_batch(jobs: Jobs, errand: _Errand) -> int:
    import time

    from mdrn_plugin.batch import report
    from mdrn_plugin.batch.run import Session, exit_code

    began = time.perf_counter()
    screen, page = errand.screen, None
    if errand.report_file is not None:
        from mdrn_plugin.batch.html_report import HtmlReport

        page = HtmlReport(errand.report_file)

    def told(outcome: Outcome) -> None:
        screen.told(outcome)
        if page is not None:
            page.add(outcome)

    tally = report.Tally()

    def write_report() -> None:
        if page is not None and tally.count:
            page.write(tally, time.perf_counter() - began)

    with Signals() as signals:
        try:
            session = Session(
                errand.out,
                errand.settings,
                told=told,
                progress=screen.progress,
                stop=lambda: signals.received > 0,
                note=screen.say,
            )
            tally = session.tally
            with session:
                if errand.collect is None:
                    session.work(jobs)
                else:
                    _watch(session, errand.collect, screen, signals, write_report)
            code = exit_code(tally)
            if tally.count == 0 and errand.settings.retry_failed:
                screen.say(f"nothing to do: no file failed the last time in {errand.out}", important=True)
        except Cancelled:
            screen.say(
                "interrupted: what is done is kept, the same command goes on from there", important=True
            )
            code = signals.exit_code
        finally:
            seconds = time.perf_counter() - began
            screen.say(report.summary(tally, seconds))
            if screen.json:
                click.echo(report.totals(tally, seconds))
            write_report()
    if page is not None:
        page.close()
        screen.say(f"report: {errand.report_file}")
    return code


def _watch(
    session: Session,
    collect: Callable[[], Jobs],
    screen: _Screen,
    signals: Signals,
    rested: Callable[[], None],
) -> None:
    from mdrn_plugin.batch.watch import Watcher, watch

    screen.say("watching; Ctrl-C ends it")
    watcher = Watcher(collect, lambda text: screen.say(text, important=True))
    watch(session, watcher, stop=lambda: signals.received > 0, rested=rested)


def _show_plans(jobs: Jobs, settings: Settings) -> int:
    from mdrn_plugin import formats
    from mdrn_plugin.batch.blocks import open_if_large
    from mdrn_plugin.batch.volume_plan import looked_at
    from mdrn_plugin.errors import EXIT_OK, EXIT_SOME_FAILED
    from mdrn_plugin.pipeline import make_plan, measure, prepare

    failed = [f.reason for f in jobs.failures]

    def read(source: str | os.PathLike[str]) -> Picture:
        return formats.read_or_stream(source, max_pixels=settings.max_pixels)

    for job in jobs.jobs:
        try:
            whole = open_if_large(job.source, job.target)
            if whole is not None:
                picture = looked_at(whole, settings.value_range)
            else:
                picture = prepare(job.source, job.target, settings.value_range, read=read)
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
@processing_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(file: Path, limits: str | None, as_json: bool, **wishes: Any) -> None:
    """Show what a file is, how noisy it is, and what would be done to it."""
    import json

    from mdrn_plugin import formats
    from mdrn_plugin.batch.blocks import open_if_large
    from mdrn_plugin.batch.volume_plan import looked_at
    from mdrn_plugin.noise import describe
    from mdrn_plugin.pipeline import make_plan, measure, with_range

    options = options_of(wishes)
    whole = open_if_large(file, Path("volume.zarr")) if file.is_dir() else None
    picture = formats.read_or_stream(file) if whole is None else looked_at(whole)
    axes, lengths = (picture.axes, picture.shape) if whole is None else (whole.axes, whole.shape)
    given = parse_range(limits)
    if given is not None:
        picture = with_range(picture, given)
    profiles = measure(picture, options)
    plan = make_plan(picture, profiles, options)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "file": os.fspath(file),
                    "format": (whole or picture).metadata.format,
                    "axes": axes,
                    "shape": lengths,
                    "dtype": str(picture.pixels.dtype),
                    "alpha": picture.alpha,
                    "range": dataclasses.asdict(picture.range),
                    "raw": facts(picture),
                    "noise": [dataclasses.asdict(p) for p in profiles],
                    "plan": plan.as_dict(),
                }
            )
        )
        return
    shape = " x ".join(f"{n} {a}" for a, n in zip(axes, lengths, strict=True))
    r = picture.range
    click.echo(f"file     {file}")
    click.echo(f"picture  {(whole or picture).metadata.format}, {shape}, {picture.pixels.dtype}")
    click.echo(f"range    black {r.black:g}, white {r.white:g} ({r.reason})")
    for line in lines(picture):
        click.echo(line)
    for k, profile in enumerate(profiles):
        name = f"channel {k}: " if len(profiles) > 1 else ""
        click.echo(f"noise    {name}{describe(told_once(profile), picture.range)}")
    for number, text in enumerate(plan.explain().splitlines()):
        click.echo(f"{'plan' if number == 0 else '':9}{text}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def models(as_json: bool) -> None:
    """List the models, the noise each is for, and what it was measured to reach."""
    import json

    from mdrn_plugin.zoo import available

    descriptors = sorted(available().all(), key=lambda d: (d.tier, d.colours, d.band_255))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(d) for d in descriptors]))
        return
    for d in descriptors:
        low, high = d.band_255
        kind = "mosaic" if d.tier.startswith("raw") else "colour" if d.colours == 3 else "gray"
        scores = ", ".join(f"{key} {value:.2f}" for key, value in list(d.psnr.items())[:4])
        click.echo(f"{d.name:24} {d.tier:9} {kind:7} noise {low:3g} to {high:3g}   {scores}")


@cli.command()
@click.argument("model", metavar="NAME")
@click.option(
    "--onnx",
    "target",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file to write; replaced if it is there.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the weights in the file.",
)
def export(model: str, target: Path, precision: str) -> None:
    """Write a model as an ONNX file, which runs without this program.

    Input "noisy" and output "denoised" are float32, N x C x H x W, white = 1; height and width are
    multiples of the metadata entry "size_multiple". Needs the extra "onnx".
    """
    from mdrn_plugin.export import export_onnx
    from mdrn_plugin.zoo import available

    export_onnx(available(), model, target, precision=precision)
    click.echo(f"{target}: {model}, {precision}")


@cli.command()
@click.option(
    "--tune",
    "tuning",
    type=click.Choice(["measure", "clear"]),
    is_flag=False,
    flag_value="measure",
    help="Measure which backend is the fastest here, for --backend auto from now on; --tune=clear forgets.",
)
def doctor(tuning: str | None) -> None:
    """Check this installation: versions, devices, weights, speed, extras."""
    from mdrn_plugin.doctor import examine, tune

    if tuning == "measure":
        click.echo(f"    backend      {tune().explain()}")
        return
    if tuning == "clear":
        from mdrn_plugin.tuning import clear

        click.echo("    backend      " + ("forgotten" if clear() else "nothing was kept"))
        return
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
