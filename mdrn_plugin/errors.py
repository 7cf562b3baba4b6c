"""Every error a user can act on, in one tree.

::

    MdrnError
    ├── CannotRead            the file is damaged, unreadable or not a picture
    ├── NotSupported          a valid request that this program does not do
    ├── BadOption             a value given by the user is impossible
    │   └── UnknownModel      no model of that name; the message lists those there are
    ├── OutputExists          the result is there already and overwriting was not asked for
    ├── OutputUnusable        folder missing, read-only, full, or the same as the input
    ├── CannotHold            the output format cannot store this picture
    ├── WeightsDamaged        a weight file fails its checks
    ├── OutOfMemory           no tile small enough, or the tile the user set is too large
    └── Cancelled             the user asked to stop

A message reads ``<what>: expected <X>, got <Y>; <what to do>`` and names the file. ``exit_code``
is what ``mdrn-batch`` returns when the error stops the whole run (an error of one file in a batch
is listed, and the run ends with `EXIT_SOME_FAILED`).
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_NOTHING_MATCHED = 4
EXIT_OUTPUT_UNUSABLE = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class MdrnError(Exception):
    """Base of all errors with a remedy; anything else that escapes is a bug of ours."""

    exit_code = EXIT_SOME_FAILED


class CannotRead(MdrnError):
    """The file is damaged, unreadable or not a picture."""


class NotSupported(MdrnError):
    """A valid request that this program does not do."""


class BadOption(MdrnError):
    """A value given by the user is impossible."""

    exit_code = EXIT_USAGE


class UnknownModel(BadOption):
    """No model of that name."""


class OutputExists(MdrnError):
    """The result is there already and overwriting was not asked for."""


class OutputUnusable(MdrnError):
    """The output folder is missing, read-only, full, or the same as the input."""

    exit_code = EXIT_OUTPUT_UNUSABLE


class CannotHold(MdrnError):
    """The output format cannot store this picture."""


class WeightsDamaged(MdrnError):
    """A weight file fails its checks."""


class OutOfMemory(MdrnError):
    """No tile is small enough, or the tile that the user set is too large."""


class Cancelled(MdrnError):
    """The user asked to stop."""

    exit_code = EXIT_INTERRUPTED
