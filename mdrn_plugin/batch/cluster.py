"""The blocks of a volume on workers of dask.distributed.

A block is a task that says the plan's path and a number: what is computed is in the plan, which all
workers read from the disk they share. A worker that is lost costs the block it was at; the scheduler
gives it to another one, and two that do the same block write the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdrn_plugin.batch import blocks
from mdrn_plugin.errors import BadOption, Cancelled, MdrnError, NotSupported

if TYPE_CHECKING:
    from mdrn_plugin.batch.blocks import Volume
    from mdrn_plugin.engine.run import Stop

_RETRIES = 3  # of a block that failed, such as on a disk that was away for a moment
_POLL_S = 0.5  # how often a request to stop is looked at
# Blocks that the scheduler knows of at once, per thread of a worker: a volume may have millions.
_AHEAD = 4
_LOCAL = "local:"


def run_on(
    cluster: str,
    volume: Volume,
    *,
    progress: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
) -> int:
    """Do the missing blocks of the full resolution on a cluster; see `blocks.run`.

    Parameters
    ----------
    cluster : str
        ``tcp://host:port`` or ``tls://host:port`` of a scheduler whose workers have this package and
        see the same paths; ``local:N`` starts N processes on this computer, which listen on the loopback
        interface only, for the time of the call.
    volume : Volume
        From `blocks.open_volume`.
    progress, stop : callable, optional
        As of `blocks.run`.

    Returns
    -------
    int
        Blocks done.
    """
    with _client(cluster) as client:
        return _work_on(client, volume, 0, volume.missing(0), progress, stop)


def levels_on(cluster: str, volume: Volume, *, stop: Stop | None = None) -> Callable[[int, list[int]], None]:
    """Return what does the blocks of the pyramid on a cluster, for `blocks.merge`."""

    def do(level: int, numbers: list[int]) -> None:
        with _client(cluster) as client:
            _work_on(client, volume, level, numbers, None, stop)

    return do


def library() -> Any:
    """Import dask.distributed.

    Raises
    ------
    NotSupported
        It is not installed.
    """
    try:
        import distributed
    except ImportError as error:
        raise NotSupported("--cluster needs the extra: pip install 'mdrn-plugin[cluster]'") from error
    return distributed


@contextlib.contextmanager
def _client(cluster: str) -> Iterator[Any]:
    distributed = library()
    if cluster.startswith(_LOCAL):
        count = cluster.removeprefix(_LOCAL)
        if not count.isdigit() or int(count) < 1:
            raise BadOption(f"cluster {cluster!r}: expected local:N such as local:4")
        with (
            distributed.LocalCluster(
                n_workers=int(count),
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs=logging.ERROR,
            ) as local,
            distributed.Client(local) as client,
        ):
            yield client
        return
    if not cluster.startswith(("tcp://", "tls://")):
        raise BadOption(f"cluster {cluster!r}: expected tcp://HOST:PORT, tls://HOST:PORT or local:N")
    try:
        client = distributed.Client(cluster, timeout=30)
    except (OSError, TimeoutError) as error:
        raise BadOption(f"cluster {cluster}: no scheduler answers; check its address") from error
    with client:
        yield client


def _work_on(
    client: Any,
    volume: Volume,
    level: int,
    numbers: list[int],
    progress: Callable[[int, int], None] | None,
    stop: Stop | None,
) -> int:
    wait = library().wait
    plan_file = os.path.abspath(volume.folder / "plan.json")
    waiting, count, done = iter(numbers), len(numbers), 0
    running: set[Any] = set()
    try:
        while True:
            room = _AHEAD * max(1, sum(client.nthreads().values())) - len(running)
            for _, number in zip(range(room), waiting, strict=False):
                running.add(client.submit(do_block, plan_file, level, number, pure=False, retries=_RETRIES))
            if not running:
                return done
            with contextlib.suppress(TimeoutError):
                wait(running, timeout=_POLL_S, return_when="FIRST_COMPLETED")
            if stop is not None and stop():
                raise Cancelled("stopped on request; what is done is kept")
            for future in [f for f in running if f.done()]:
                running.remove(future)
                _result(future)
                done += 1
                if progress is not None:
                    progress(done, count)
    finally:
        client.cancel(list(running))


def _result(future: Any) -> None:
    from distributed.scheduler import KilledWorker

    try:
        future.result()
    except KilledWorker as error:
        raise NotSupported(
            f"a block ended several workers, most likely for want of memory ({error}); "
            "give workers more, or plan with a smaller --tile"
        ) from error
    except MdrnError:
        raise


def do_block(plan_file: str, level: int, number: int) -> int:
    """Do one block in a worker; what the scheduler sends is this name and these arguments."""
    _opened(plan_file, os.stat(plan_file).st_mtime_ns).do(level, number)
    return number


@functools.lru_cache(maxsize=2)
def _opened(plan_file: str, changed: int) -> Volume:
    return blocks.open_volume(Path(plan_file))
