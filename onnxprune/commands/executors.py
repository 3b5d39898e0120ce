"""Where the tasks of a sweep are done: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from typing import TYPE_CHECKING, Any

import click

from onnxprune.errors import ExecutorError, OptionError, one_line

if TYPE_CHECKING:
    from onnxprune.tasks import Executor

PATIENCE = 5  # seconds in which a cluster has to answer
KINDS = ("process", "dask")


def check(kind: str | None, workers: int | None, address: str | None) -> None:
    """Refuse options that do not go together, and a cluster without the package for it.

    Raises:
        UsageError, OptionError: with what to change.
    """
    if workers is not None and kind != "process":
        raise click.UsageError("--workers is the number of processes: give --executor process, too")
    if address is not None and kind != "dask":
        raise click.UsageError("--address is a cluster's: give --executor dask, too")
    if kind == "dask" and address is None:
        raise click.UsageError("--executor dask needs the cluster's scheduler: give --address tcp://HOST:8786")
    if kind == "dask" and find_spec("distributed") is None:
        raise OptionError("--executor dask needs the package distributed, which is missing; pip install distributed")


@contextmanager
def opened(kind: str | None, workers: int | None, address: str | None) -> Iterator[dict[str, Any]]:
    """The executor, and how many tasks it does at once, as `sweep` takes them; nothing for this process.

    Raises:
        ExecutorError: there is no cluster, or it has no workers.
    """
    if kind == "process":
        count = workers or os.cpu_count() or 1
        with _processes(count) as executor:
            yield {"executor": executor, "workers": count}
    elif kind == "dask":
        with _cluster(str(address)) as given:
            yield given
    else:
        yield {}


@contextmanager
def _processes(count: int) -> Iterator[Executor]:
    """New processes, which hold no locks of this one's threads; they end at once where something goes wrong."""
    others = set(active_children())
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_obedient)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(active_children()) - others:
            child.terminate()
        raise
    pool.shutdown()


def _obedient() -> None:
    """Let a worker work and end without a word, and remove its temporary files."""
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr  # what a metric prints is not part of a record
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it gets that, too, and ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


@contextmanager
def _cluster(address: str) -> Iterator[dict[str, Any]]:
    from distributed import Client, KilledWorker

    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised, too
    try:
        asyncio.run(_greet(address))
    except Exception as error:  # whatever listens there may answer anything
        said = one_line(error, 120) or type(error).__name__
        raise ExecutorError(f"--address {address}: no Dask scheduler answers ({said}); check the address") from error
    with Client(address, timeout=PATIENCE, set_as_default=False) as client:
        if not (count := sum(client.nthreads().values())):
            raise ExecutorError(f"--address {address}: the cluster has no workers; start one: dask worker {address}")
        executor = client.get_executor()
        try:
            yield {"executor": executor, "workers": count}
        except KilledWorker as error:
            said = one_line(error, 120)
            raise ExecutorError(f"workers of {address} died on a task ({said}); give them more memory") from error
        finally:
            executor.shutdown(wait=False)


async def _greet(address: str) -> None:
    """Connect once, since a client that does not get through is slow to give up."""
    from distributed.comm.core import connect

    comm = await connect(address, timeout=PATIENCE)
    await comm.close()
