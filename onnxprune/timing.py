"""The latency protocol: how long a run takes, and how two models compare, each with a confidence interval.

Two models take turns, and the order of the turns alternates, so that a busy neighbour or a warming processor
hits both. What a session does once, compiling or building an engine, comes before: every feed is run before the clock
starts. A turn is one run, or for fast models several, of which the first (it finds the caches as the other
model left them) is thrown away. Turns go on until the 95 % interval is within 2 % of its value, or the time
is up. Everything is in milliseconds of wall time, measured around `InferenceSession.run`; on a GPU around a
run with inputs and outputs bound to the device, waiting for it to end.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from onnxprune.batches import batch_shapes, of_batch
from onnxprune.calls import DEVICES, placement, quiet, runner, timed
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.feeds import Feed, InputSpec, Shapes, choose_shapes, input_specs, random_feeds, suited
from onnxprune.runtime import Model, model_name, plain, run, session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PRECISION = 0.02  # half-width of the interval, relative to its value, at which measuring stops
TURN_MS, MAX_BURST = 40.0, 32  # runs are repeated until a turn lasts this long, at most so often
MAX_FEEDS = 16  # feeds kept in memory; turns go round them
MIN_TURNS = 6  # fewer give no 95 % interval


@dataclass(frozen=True)
class Interval:
    """A median and the 95 % confidence interval around it, from order statistics."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the value."""
        return (self.high - self.low) / 2 / self.value if self.value else math.inf


@dataclass(frozen=True)
class Latency:
    """How long one model takes, in milliseconds a run, and on which providers its nodes were placed."""

    model: str
    median: Interval
    q1: float
    q3: float
    fastest: float
    nodes: dict[str, int]  # provider -> nodes placed on it, before fusion; empty where unknown
    fallback: int | None = None  # of these on other providers than the wanted one; None where unknown

    def to_dict(self) -> dict[str, Any]:
        """For JSON; times in milliseconds, `spread` from first to third quartile."""
        return {
            "model": self.model,
            "median": self.median.value,
            "median_ci95": [self.median.low, self.median.high],
            "spread": [self.q1, self.q3],
            "fastest": self.fastest,
            "nodes": self.nodes,
            "fallback": self.fallback,
        }


@dataclass(frozen=True)
class Bench:
    """One model's latency, or two models' and their ratio, with the conditions they were measured under."""

    a: Latency
    b: Latency | None
    ratio: Interval | None  # median over the pairs of turns of b / a: below 1, b is faster
    provider: str
    device: str  # where inputs and outputs are: on "cpu", their way to an accelerator is in the times
    threads: int | None  # None: ONNX Runtime's choice
    cpus: int | None
    others: float | None  # processors that other processes kept busy meanwhile; None where unknown
    onnxruntime: str
    inputs: dict[str, list[int]]
    assumed: tuple[str, ...]  # what was assumed about free axes
    turns: int
    burst: int  # timed runs in a turn
    seconds: float
    converged: bool  # the interval got narrow enough before the time was up
    batch: int | None = None  # samples in a run, where that was asked for

    @property
    def busy(self) -> bool:
        """Whether other processes left fewer processors than threads.

        The threads then wait for each other, and one session may be several times slower than its twin, which
        no interval shows. Measure with one thread, or later.
        """
        threads, cpus = self.threads or self.cpus or 1, self.cpus or 1
        return threads > 1 and (self.others or 0.0) + threads > cpus + 0.5

    @property
    def speedup(self) -> Interval | None:
        """How many times faster b is than a."""
        r = self.ratio
        return Interval(1 / r.value, 1 / r.high, 1 / r.low) if r else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        result: dict[str, Any] = plain(self)
        result["a"] = self.a.to_dict()
        result["b"] = self.b.to_dict() if self.b else None
        return result | {"speedup": plain(self.speedup), "busy": self.busy}


def median_interval(samples: Sequence[float]) -> Interval:
    """Median and its 95 % interval from order statistics, for any distribution.

    Fewer than 6 samples give their range, which covers less than 95 %.

    The samples are in order of time. Neighbours that resemble each other (a busy minute) say less than
    independent ones, so the interval widens with the correlation of adjacent samples being above the median.
    """
    ordered, n = sorted(samples), len(samples)
    median = statistics.median(ordered)
    above = [1 if sample > median else -1 for sample in samples]
    alike = min(max(sum(x * y for x, y in pairwise(above)) / max(n - 1, 1), 0.0), 0.9)
    reach = 0.98 * math.sqrt(n * (1 + alike) / (1 - alike))
    rank = max(math.floor(n / 2 - reach), 0)
    return Interval(median, ordered[rank], ordered[n - 1 - rank])


def bench(
    a: Model,
    b: Model | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    feeds: Iterable[Feed] | None = None,
    shapes: Shapes | None = None,
    warmup: int = 5,
    runs: int = 20,
    min_seconds: float = 0.5,
    max_seconds: float = 10.0,
    batch: int | None = None,
) -> Bench:
    """Measure the latency of `a`, or of `a` and `b` in turns.

    Args:
        a: a model.
        b: another with the same inputs.
        provider: short name.
        threads: inside one node; ONNX Runtime's choice if None.
        feeds: what both are run on (up to 16, in rotation); one random feed if None.
        shapes: input name -> shape for the random feed (see `choose_shapes`).
        warmup: runs of each model before measuring.
        runs: the least number of turns.
        min_seconds: the least time to measure.
        max_seconds: when to stop even so, after at least one turn; warming up comes on top.
        batch: samples in a run; None: as the feeds have them, else 1.

    Raises:
        ModelError, ProviderError: a model does not load or run, is out of memory, or `b` has other inputs.
        DataError, ShapeError: the feeds or shapes do not fit.
        OptionError: a number is out of range.
    """
    import onnxruntime

    if min(runs, warmup) < 1 or not 0 <= min_seconds <= max_seconds:
        raise OptionError(
            f"bench: warmup ({warmup}) and runs ({runs}) must be at least 1 and min_seconds ({min_seconds}) "
            f"between 0 and max_seconds ({max_seconds}); change them"
        )
    models = [a] if b is None else [a, b]
    sessions = [session(model, provider, threads, config=quiet(threads)) for model in models]
    specs = input_specs(sessions[0])
    for model, other in zip(models[1:], sessions[1:], strict=True):
        if set(input_specs(other)) != set(specs):
            raise ModelError(f"{model_name(model)}: its inputs are not those of {model_name(a)}; bench it alone")
    if batch is not None:
        kept = [of_batch(specs, batch, feeds, shapes)]
    else:
        kept = random_feeds(specs, shapes=shapes) if feeds is None else list(islice(feeds, MAX_FEEDS))
    if not kept:
        raise DataError("bench needs at least one feed and got none; leave `feeds` out for a random one")
    fed = [(s, [suited(feed, input_specs(s)) for feed in kept]) for s in sessions]
    for s, feed in ((s, feed) for s, own in fed for feed in own):
        run(s, feed)  # so that what does not run says so, by name
    clock = _Clock([[runner(s, feed, provider) for feed in own] for s, own in fed], warmup, max_seconds)
    started, before = time.perf_counter(), _others_cpu()
    times, converged = clock.measure(runs, min_seconds, max_seconds)
    seconds, after = time.perf_counter() - started, _others_cpu()
    results = [_latency(*pair) for pair in zip(models, times, sessions, strict=True)]
    return Bench(
        a=results[0],
        b=results[1] if b is not None else None,
        ratio=_ratio(times) if b is not None else None,
        provider=provider,
        device=DEVICES.get(provider, "cpu"),
        threads=threads,
        cpus=os.cpu_count(),
        others=None if before is None or after is None else max(0.0, after - before) / seconds,
        onnxruntime=onnxruntime.__version__,
        inputs={name: list(value.shape) for name, value in kept[0].items()},
        assumed=_assumed(specs, shapes, batch) if feeds is None else (),
        turns=len(times[0]),
        burst=clock.burst,
        seconds=seconds,
        converged=converged,
        batch=batch,
    )


def _assumed(specs: dict[str, InputSpec], shapes: Shapes | None, batch: int | None) -> tuple[str, ...]:
    return (choose_shapes(specs, shapes) if batch is None else batch_shapes(specs, batch, shapes)).assumed


class _Clock:
    """Takes turns between models; `runners[model][feed]` runs a model once."""

    def __init__(self, runners: list[list[Callable[[], Any]]], warmup: int, max_seconds: float) -> None:
        self.runners = runners
        self.burst = burst_of(min(self._warm_up(calls, warmup, max_seconds) for calls in runners))

    @staticmethod
    def _warm_up(calls: list[Callable[[], Any]], count: int, max_seconds: float) -> float:
        """Milliseconds of the fastest run after the first."""
        times: list[float] = []
        deadline = time.perf_counter() + max_seconds / 4
        while len(times) < count + 1 and (not times or time.perf_counter() < deadline):
            times.append(timed(calls[len(times) % len(calls)]))
        return min(times[1:] or times)

    def _turn(self, model: int, index: int) -> float:
        return steady(self.runners[model][index % len(self.runners[model])], self.burst)

    def measure(self, least: int, min_seconds: float, max_seconds: float) -> tuple[list[list[float]], bool]:
        """Milliseconds a run, by model and turn, and whether the interval became narrow enough."""
        times: list[list[float]] = [[] for _ in self.runners]
        started, check = time.perf_counter(), max(least, MIN_TURNS)
        while True:
            turn = len(times[0])
            order = range(len(times)) if turn % 2 == 0 else reversed(range(len(times)))
            for model in order:
                times[model].append(self._turn(model, turn))
            elapsed = time.perf_counter() - started
            if elapsed >= max_seconds:
                return times, _settled(times)
            if turn + 1 >= check and elapsed >= min_seconds:
                if _settled(times):
                    return times, True
                check = turn + 1 + max(1, turn // 10)


def burst_of(ms: float) -> int:
    """Runs in a turn of a model that takes so many milliseconds."""
    return min(MAX_BURST, max(1, math.ceil(TURN_MS / max(ms, 1e-6))))


def steady(call: Callable[[], Any], burst: int) -> float:
    """Milliseconds of a call, from so many; of several, after some more that are not counted."""
    first = math.ceil(burst / 3) if burst > 1 else 0
    return statistics.median([timed(call) for _ in range(first + burst)][first:])


def _others_cpu() -> float | None:
    """Processor seconds that everything but this process has used since the machine started (Linux)."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [
                int(word) for word in file.readline().split()[1:9]
            ]  # user nice system idle iowait irq softirq steal
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK") - time.process_time()
    except (OSError, ValueError, IndexError):
        return None


def _settled(times: list[list[float]]) -> bool:
    if len(times[0]) < MIN_TURNS:
        return False
    interval = _ratio(times) if len(times) > 1 else median_interval(times[0])
    return interval.half_width < PRECISION


def _ratio(times: list[list[float]]) -> Interval:
    return median_interval([b / a for a, b in zip(*times, strict=True)])


def _latency(model: Model, times: Sequence[float], session: InferenceSession) -> Latency:
    q1, _, q3 = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    nodes, wanted = placement(session), session.get_providers()[0]
    elsewhere = sum(number for name, number in nodes.items() if name != wanted) if nodes else None
    return Latency(model_name(model), median_interval(times), q1, q3, min(times), nodes, elsewhere)
