"""What several commands of ``mdrn-batch`` share: options of processing, and signals."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import click

from mdrn_plugin.cli_raw import chroma_option
from mdrn_plugin.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, BadOption

if TYPE_CHECKING:
    from mdrn_plugin.options import Options
    from mdrn_plugin.picture import ValueRange


def processing_options(command: Any) -> Any:
    """Add to a command what `denoise`, `info` and `plan` have in common."""
    for option in reversed(
        (
            click.option(
                "--noise",
                default="auto",
                show_default=True,
                metavar="auto|25|25dn|A,B",
                help="Measure it, or a standard deviation: 25 means 25/255 of white, 25dn units of the file. "
                "A,B: gain and offset of the variance, A * signal + B with signal 0..1; A,Bdn in units of "
                "the file.",
            ),
            click.option(
                "--noise-model",
                type=click.Choice(["auto", "gaussian", "poisson-gaussian", "correlated"]),
                default="auto",
                show_default=True,
                help="Kind of noise: what is measured decides, or white of one level, growing with the "
                "signal, alike between neighbours.",
            ),
            click.option(
                "--quality",
                type=click.Choice(["fast", "balanced", "best", "best+"]),
                default="balanced",
                show_default=True,
                help="best looks for what the picture repeats as well, best+ averages eight symmetries.",
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
            click.option(
                "--backend",
                type=click.Choice(["auto", "torch", "onnxruntime"]),
                default="auto",
                show_default=True,
                help="What computes: torch, or onnxruntime (CPU, fp32; extra onnx). auto is torch, unless "
                "`mdrn-batch doctor --tune` found onnxruntime to be faster here.",
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
            chroma_option,
            click.option("--exact", is_flag=True, help="fp32 and the full halo: tiled equals whole."),
            click.option(
                "--along",
                type=click.Choice(["Z", "T"]),
                help="Of stacks: average denoised planes with two neighbours to each side, where they show "
                "the same.",
            ),
            click.option("--range", "limits", metavar="LOW,HIGH", help="The values of black and white."),
        )
    ):
        command = option(command)
    return command


def options_of(wishes: dict[str, Any]) -> Options:
    """Return what the options of `processing_options` say; the model is looked up."""
    from mdrn_plugin.options import Options

    options = Options(**wishes)
    if options.model is not None:
        from mdrn_plugin.zoo import available

        available().get(options.model)
    return options


def parse_range(text: str | None) -> ValueRange | None:
    """Parse the two numbers of ``--range``."""
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


def deaf() -> None:
    """Hear no more signals to end: the process is about to."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Signals:
    """SIGINT and SIGTERM ask for the end; a second SIGINT ends at once.

    Once one has come, the handlers stay: the command is on its way out, and one more signal must
    not reach Python's own handler, which would end it with another exit code.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Signals:
        self._previous = {s: signal.signal(s, self._on) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        if not self.received:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _on(self, number: int, frame: object) -> None:
        if self.received:
            deaf()
            raise KeyboardInterrupt
        self.received = number

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return EXIT_TERMINATED if self.received == signal.SIGTERM else EXIT_INTERRUPTED
