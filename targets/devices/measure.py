"""Latency and memory of model files, each in fresh processes, and in turns with the others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import DeviceError, UsageError
from lrfc.metrics.source import MEASURED, Source
from lrfc.protocols import Artifact
from lrfc.targets.devices.process import LocalTransport, Transport, Worker
from lrfc.text import percent

#: Turns of each file over all of its processes. The ratio of two files is paired turn by turn.
ROUNDS = 20
#: The most and the fewest fresh processes of each file, and the timings that justify one more; with
#: fewer than twice as many there is one process. Where a process puts its memory and its threads
#: changes its speed for as long as it lives, and the machine is busier at one time than at another:
#: benchmarks/repeats.py.
PROCESSES = 5
FEWEST_PROCESSES = 3
TIMINGS = 20
#: Timings that are made even when the time is short.
FEWEST_RUNS = 5
#: Numbers above these are taken for mistakes.
MOST_RUNS, MOST_THREADS = 1_000_000, 1024
#: The shortest timing; a faster model runs several times in each.
SHORTEST_NS = 100_000
#: A timing further than this many IQRs from the quartiles is an outlier (Tukey 1977: far out).
FAR_OUT = 3
#: The smallest change of speed during a measurement that gets a note, as a fraction.
DRIFT = 0.05


@dataclass(frozen=True)
class Measurement:
    """The latency and memory of one file on a device, at batch 1 and on random inputs.

    ``median_ms``, ``p90_ms`` and ``iqr_ms`` (75th minus 25th percentile): latency of one inference
    in milliseconds, over ``n`` timings of ``inner`` inferences each, after a warm-up. ``outliers``:
    the fraction of timings that are far out; none is removed, as median and IQR are robust to them.
    ``rounds_ms``: the median of each turn, in order; ``processes``: the number of these turns in
    each fresh process, in order; empty when nothing was timed. ``drift``: the slowdown of the last
    third of the turns against the first, as a fraction; None for fewer than six turns. ``hz`` and
    ``celsius``: clock and temperature of the processor, before and after, where the system reports
    them. ``notes``: warnings about the conditions. ``cores``: the cores that the processes were
    bound to, each process to as many as threads; None when they were not bound.

    ``cold_start_ms``: loading the file in a fresh process and its first inference (the median over
    the processes), without the start of Python and the import of the runtime.
    ``baseline_rss_bytes``: resident memory of a process with the runtime imported and no model;
    ``peak_rss_bytes``: its peak from then on, of the process with the largest one; both None where
    the system does not report it, or no process ran to its end. ``file_bytes``: size of the file.

    ``source``: whether the figures are measured, estimated or compiled. Estimated and compiled ones
    have no cold start; compiled ones have ``cycles`` of the processor, ``sram_bytes`` and
    ``flash_bytes``. ``arena_head_bytes``, ``arena_tail_bytes``: measured, of a microcontroller; see
    ``lrfc.targets.micro.tflm.Arena``.
    """

    path: Path
    median_ms: float
    p90_ms: float
    iqr_ms: float
    n: int
    inner: int
    rounds_ms: tuple[float, ...]
    threads: int
    cold_start_ms: float | None
    runtime: str
    runtime_version: str
    baseline_rss_bytes: int | None
    peak_rss_bytes: int | None
    source: Source = MEASURED
    processes: tuple[int, ...] = ()
    cycles: int | None = None
    sram_bytes: int | None = None
    flash_bytes: int | None = None
    arena_head_bytes: int | None = None
    arena_tail_bytes: int | None = None
    file_bytes: int | None = None
    outliers: float = 0.0
    drift: float | None = None
    hz: tuple[float, float] | None = None
    celsius: tuple[float, float] | None = None
    cores: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def model_rss_bytes(self) -> int | None:
        """The peak memory that the model adds to its runtime."""
        if self.peak_rss_bytes is None or self.baseline_rss_bytes is None:
            return None
        return self.peak_rss_bytes - self.baseline_rss_bytes

    def to_json(self) -> dict[str, Any]:
        """Every field, for one JSON object."""
        return {**asdict(self), "path": str(self.path), "model_rss_bytes": self.model_rss_bytes}


@dataclass
class _Session:
    """The answers of one fresh process of each file.

    ``loaded``: its answer to the file. ``times``: the nanoseconds of each timing of each turn.
    ``peaks``: its peak memory in bytes; None when it did not run to its end.
    """

    loaded: list[dict[str, Any]]
    times: list[list[list[int]]]
    peaks: list[int | None]

    @property
    def turns(self) -> int:
        """The number of turns that all files have completed."""
        return min(map(len, self.times))


def compare(
    files: Sequence[Artifact],
    *,
    runs: int = 200,
    threads: int = 1,
    timeout: float = 600.0,
    transport: Transport | None = None,
    processes: int = PROCESSES,
) -> tuple[Measurement, ...]:
    """Measure the files side by side, on this machine or through ``transport``.

    Each file has a process of its own. The processes take turns (A B, B A, A B, ...), so that a
    change of the machine's speed affects all files. After a few turns fresh processes take their
    place, up to ``processes`` of each file one after the other (three from 40 runs on, five from
    100), so that the interval of ``speedup`` includes the differences between processes.
    ``runs``: timings of each file; fewer when they would take more than half of ``timeout``
    (seconds, for the whole call). The ``n`` of a Measurement is the actual number.

    DeviceError, in one line, when a file cannot be loaded or run, its runtime is missing, its
    process dies, the device goes away, or the time is up; its ``measured`` holds a Measurement of
    each file when whole turns were completed before. No process is left behind.
    """
    check(runs, threads)
    if processes < 1:
        raise UsageError(f"processes ({processes}) are at least 1")
    comparison = _Comparison(
        files, runs, threads, processes, timeout, transport or LocalTransport()
    )
    try:
        while not comparison.ended:
            comparison.session()
    except DeviceError as error:
        turns = comparison.turns
        if turns:
            note = f"stopped after {turns} of {comparison.rounds} turns"
            error.measured = tuple(
                replace(measurement, notes=(note,), peak_rss_bytes=None)
                for measurement in comparison.measurements()
            )
        raise
    return comparison.with_conditions()


class _Comparison:
    """The state of one comparison: sessions of one fresh process a file, one after the other."""

    def __init__(
        self,
        files: Sequence[Artifact],
        runs: int,
        threads: int,
        processes: int,
        timeout: float,
        transport: Transport,
    ) -> None:
        self._files, self._threads, self._transport = files, threads, transport
        self._timeout, self._deadline = timeout, time.monotonic() + timeout
        self._runs, self._processes = runs, processes
        #: Turns of all sessions together, turns of one session, timings in a turn, and inferences
        #: in a timing of each file. The first session sets them.
        self.rounds = self._session_turns = self._timings = 0
        self._inner: list[int] = []
        #: Seconds of the longest session.
        self._longest = 0.0
        #: Of the processors of all workers, at the start of the first session and the end of the
        #: last one.
        self._conditions: list[list[dict[str, Any]]] = []
        self._sessions: list[_Session] = []
        self._short = False

    @property
    def turns(self) -> int:
        """The number of turns that all files have completed."""
        return sum(session.turns for session in self._sessions)

    @property
    def ended(self) -> bool:
        """Whether all turns were made, or another session would not end in time."""
        return bool(self._sessions) and (
            self.turns >= self.rounds or self._short or self._left() < 2 * self._longest
        )

    def session(self) -> None:
        """Start a fresh process of each file, and time them in turns."""
        began = time.monotonic()
        with ExitStack() as stack:
            workers, loaded = self._start(stack)
            first = not self._sessions
            if first:
                self._plan(workers)
            session = _Session(loaded, [[] for _ in self._files], [None] * len(self._files))
            self._sessions.append(session)
            if first:
                self._conditions.append([worker.ask({"conditions": True}) for worker in workers])
            self._take_turns(workers, session)
            self._conditions[1:] = [[worker.ask({"conditions": True}) for worker in workers]]
            session.peaks = [worker.ask({})["peak_rss"] for worker in workers]
        self._longest = max(self._longest, time.monotonic() - began)

    def _start(self, stack: ExitStack) -> tuple[list[Worker], list[dict[str, Any]]]:
        """A worker for each file, with its answer to the file.

        One after the other: the start of a process would slow the loading of another file.
        """
        workers: list[Worker] = []
        loaded: list[dict[str, Any]] = []
        for file in self._files:
            task = f"measure {file.path.name}"
            worker = Worker(self._transport, task, self._timeout, self._deadline)
            workers.append(stack.enter_context(worker))
            cores = loaded[0]["cores"] if loaded else None
            request = _request(file, self._threads, cores, self._transport, worker.left())
            loaded.append(worker.ask(request))
        return workers, loaded

    def _left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    def _plan(self, workers: Sequence[Worker]) -> None:
        """Set the numbers of turns and timings, after a first look at the speed of the files."""
        single = [min(worker.ask({"runs": 3, "inner": 1})["ns"]) for worker in workers]
        self._inner = [max(1, ceil(SHORTEST_NS / max(ns, 1))) for ns in single]
        whole_run = sum(ns * count for ns, count in zip(single, self._inner, strict=True)) / 1e9
        timings = min(self._runs, max(FEWEST_RUNS, int(self._left() / 2 / whole_run)))
        sessions = min(self._processes, max(FEWEST_PROCESSES, timings // TIMINGS))
        sessions = sessions if timings >= 2 * TIMINGS else 1
        self._session_turns = min(ROUNDS, timings) // sessions
        self.rounds = self._session_turns * sessions
        self._timings = ceil(timings / self.rounds)

    def _take_turns(self, workers: Sequence[Worker], session: _Session) -> None:
        """Time the files in turns, every other one in reverse order."""
        longest = 0.0
        for turn in range(self._session_turns):
            began = time.monotonic()
            if self._left() < 2 * longest and self.turns * self._timings >= FEWEST_RUNS:
                # The device became slower than it was at first: fewer turns, rather than none.
                self._short = True
                return
            order = range(len(workers)) if turn % 2 == 0 else reversed(range(len(workers)))
            for i in order:
                request = {"runs": self._timings, "inner": self._inner[i]}
                session.times[i].append(workers[i].ask(request)["ns"])
            longest = max(longest, time.monotonic() - began)

    def measurements(self) -> tuple[Measurement, ...]:
        """The measurement of each file over its completed turns."""
        sessions = [session for session in self._sessions if session.turns]
        return tuple(
            _measurement(file, i, sessions, self._inner[i], self._threads)
            for i, file in enumerate(self._files)
        )

    def with_conditions(self) -> tuple[Measurement, ...]:
        """The measurement of each file, with the conditions and notes about them."""
        return tuple(map(_with_conditions, self.measurements(), *self._conditions))


def check(runs: int, threads: int) -> None:
    """UsageError unless the numbers of timings and threads are in range."""
    if runs < 1 or threads < 1:
        raise UsageError(f"runs ({runs}) and threads ({threads}) are at least 1")
    if runs > MOST_RUNS or threads > MOST_THREADS:
        raise UsageError(
            f"runs ({runs}) are at most {MOST_RUNS:,}, threads ({threads}) at most {MOST_THREADS:,}"
        )


def profile(
    file: Artifact,
    *,
    runs: int = 50,
    threads: int = 1,
    timeout: float = 600.0,
    transport: Transport | None = None,
) -> dict[str, float]:
    """Microseconds (medians over ``runs``) of each part of a file, by name.

    Parts are the signatures of a .tflite file, timed in turns, and the nodes of an .onnx file.
    onnxruntime counts in whole microseconds, and its nodes are those of the graph after its own
    optimisations. The errors of ``compare``.
    """
    device = transport or LocalTransport()
    deadline = time.monotonic() + timeout
    with Worker(device, f"profile {file.path.name}", timeout, deadline) as worker:
        worker.ask(_request(file, threads, None, device, timeout))
        parts: dict[str, float] = worker.ask({"parts": runs, "scratch": device.folder})["us"]
        return parts


def times(
    files: Sequence[Artifact],
    *,
    turns: int = 12,
    threads: int = 1,
    timeout: float = 600.0,
    transport: Transport | None = None,
) -> list[list[float]]:
    """Milliseconds of one inference of each of many small files of one format, by turn.

    One process runs all files. The errors of ``compare``.
    """
    device = transport or LocalTransport()
    deadline = time.monotonic() + timeout
    with Worker(device, f"measure {len(files)} small networks", timeout, deadline) as worker:
        worker.ask(_request(files[0], threads, None, device, timeout))
        paths = [device.put(file.path, worker.left()) for file in files]
        rows: list[list[float]] = worker.ask({"files": paths, "turns": turns})["ns"]
        return [[nanoseconds / 1e6 for nanoseconds in row] for row in rows]


def onnx_profile(path: Path, runs: int = 50, threads: int = 1) -> dict[str, float]:
    """Node name → median microseconds, on this machine; see ``profile``."""
    return profile(Artifact(path, "onnx", "fp32"), runs=runs, threads=threads)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file that is measured; DeviceError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DeviceError(f"cannot measure {path}: {error.strerror}") from error


def _request(
    file: Artifact, threads: int, cores: list[int] | None, transport: Transport, timeout: float
) -> dict[str, Any]:
    """Send the file; return the request to load it."""
    sha256 = file_digest(file.path)
    return {
        "path": transport.put(file.path, timeout),
        "format": file.format,
        "threads": threads,
        "cores": cores,
        "sha256": sha256,
    }


def _measurement(
    file: Artifact, i: int, sessions: Sequence[_Session], inner: int, threads: int
) -> Measurement:
    """The measurement of the i-th file over all sessions."""
    rounds = (
        np.asarray([times for session in sessions for times in session.times[i][: session.turns]])
        / inner
        / 1e6
    )
    median, p90, iqr, outliers = statistics(rounds)
    loaded = [session.loaded[i] for session in sessions]
    peak, baseline = max(
        ((session.peaks[i] or 0, session.loaded[i]["baseline_rss"]) for session in sessions),
        key=lambda pair: pair[0],
    )
    bound = [answer["cores"] for answer in loaded if answer["cores"] is not None]
    cold_starts = [answer["load_ns"] + answer["first_ns"] for answer in loaded]
    return Measurement(
        path=file.path,
        median_ms=median,
        p90_ms=p90,
        iqr_ms=iqr,
        outliers=outliers,
        n=rounds.size,
        inner=inner,
        rounds_ms=tuple(np.median(rounds, axis=1).tolist()),
        processes=tuple(session.turns for session in sessions),
        threads=threads,
        cold_start_ms=float(np.median(cold_starts)) / 1e6,
        runtime=loaded[0]["runtime"],
        runtime_version=loaded[0]["version"],
        baseline_rss_bytes=baseline,
        peak_rss_bytes=peak or None,
        file_bytes=file.bytes,
        cores=tuple(sorted({core for cores in bound for core in cores})) if bound else None,
    )


def statistics(times: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Median, 90th percentile, IQR and fraction of outliers of timings in milliseconds."""
    low, median, high, p90 = np.percentile(times, [25, 50, 75, 90]).tolist()
    far = FAR_OUT * (high - low)
    outliers = float(np.mean((times > high + far) | (times < low - far)))
    return median, p90, high - low, outliers


def _with_conditions(
    measurement: Measurement, before: dict[str, Any], after: dict[str, Any]
) -> Measurement:
    """The measurement with the conditions before and after, and a note on a change of speed."""
    hz, celsius = _pair("hz", before, after), _pair("celsius", before, after)
    change = drift(measurement.rounds_ms)
    notes = []
    if change is not None and abs(change) > DRIFT:
        cause = "".join(
            f", {name} from {pair[0] / unit:.3g} to {pair[1] / unit:.3g} {symbol}"
            for name, pair, unit, symbol in (
                ("clock", hz, 1e9, "GHz"),
                ("temperature", celsius, 1, "°C"),
            )
            if pair is not None
        )
        word = "slower" if change > 0 else "faster"
        notes.append(
            f"the device became {percent(abs(change), 0)} {word} during the measurement{cause}:"
            " compare files measured together only"
        )
    return replace(measurement, drift=change, notes=tuple(notes), hz=hz, celsius=celsius)


def _pair(
    key: str, before: dict[str, float | None], after: dict[str, float | None]
) -> tuple[float, float] | None:
    """A condition before and after; None unless both are known."""
    first, last = before[key], after[key]
    return None if first is None or last is None else (first, last)


def drift(rounds_ms: Sequence[float]) -> float | None:
    """The slowdown of the last third of the turns against the first third, as a fraction.

    None for fewer than six turns.
    """
    third = len(rounds_ms) // 3
    return (
        float(np.median(rounds_ms[-third:]) / np.median(rounds_ms[:third]) - 1)
        if third >= 2
        else None
    )
