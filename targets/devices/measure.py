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
from lrfc.targets.devices.process import Here, Transport, Worker

#: Turns that each file gets over all of its processes; the ratio of two files is paired turn by
#: turn.
ROUNDS = 20
#: Fresh processes that each file gets at most and at least, and the timings that are worth one
#: more; with fewer than twice as many there is one process. Where a process puts its memory and its
#: threads changes its speed for as long as it lives, and the machine is busier at one time than at
#: another: benchmarks/repeats.py.
PROCESSES = 5
FEWEST_PROCESSES = 3
TIMINGS = 20
#: Runs that are made even when the time is short.
FEWEST_RUNS = 5
#: What nobody asks for on purpose.
MOST_RUNS, MOST_THREADS = 1_000_000, 1024
#: A timing is over at least this long; a faster model runs several times for each.
SHORTEST_NS = 100_000
#: A timing further than this many IQRs outside of the quartiles is an outlier (Tukey 1977: far
#: out).
FAR_OUT = 3
#: A change of speed during the measurement that is worth a note.
DRIFT = 0.05


@dataclass(frozen=True)
class Measurement:
    """What one file takes on a device, at batch 1 and on random inputs.

    ``median_ms``, ``p90_ms`` and ``iqr_ms`` (75th minus 25th percentile): latency of one inference
    in milliseconds, over ``n`` timings of ``inner`` inferences each, after a warm-up. ``outliers``:
    the share of timings far out; all of them count in the figures, which do not mind.
    ``rounds_ms``: the median of each turn, in order; ``processes``: how many of these turns each
    fresh process made, in order; empty for what was not measured. ``drift``: how much slower the
    last third of the turns was than the first, as a fraction; None for fewer than six. ``hz`` and
    ``celsius``: clock of the processor and its temperature, before and after, where the system
    tells them. ``notes``: what of this is worth a word. ``cores``: those that the processes were
    bound to, each to as many as threads; None when they were not.

    ``cold_start_ms``: loading the file in a fresh process and its first inference (the median over
    the processes), without the start of Python and the import of the runtime.
    ``baseline_rss_bytes``: resident memory of a process with the runtime imported and no model;
    ``peak_rss_bytes``: its peak from there to the end, of the process with the largest one; both
    None where the system does not tell it, or no process came to its end. ``file_bytes``: size of
    the file.

    ``source``: where the figures come from. Of what is estimated or compiled there is no cold
    start; what is compiled has ``cycles`` of the processor, ``sram_bytes`` and ``flash_bytes``.
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
    """What one fresh process of each file said.

    On loading, the nanoseconds of each turn's timings, and the peak of its memory (None: it did not
    come to its end).
    """

    loaded: list[dict[str, Any]]
    times: list[list[list[int]]]
    peaks: list[int | None]

    @property
    def turns(self) -> int:
        """The turns that every file has made."""
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
    """Measure the files side by side, on this machine or where ``transport`` leads.

    Each file lives in a process of its own. The processes take turns (A B, B A, A B, ...), so that
    a change of the machine's speed meets all files. After a few turns fresh processes take their
    place, up to ``processes`` of each file one after the other (three from 40 runs on, five from
    100): what differs from process to process is then part of the interval that ``speedup`` gives.
    ``runs`` timings are made of each file, fewer when they would take more than half of ``timeout``
    (seconds, for the whole call); ``n`` says how many. DeviceError, in one line, when a file cannot
    be loaded or run, its runtime is missing, its process dies, the device goes away, or the time is
    up; its ``measured`` holds a Measurement of each file when whole turns were made before. No
    process is left behind.
    """
    check(runs, threads)
    if processes < 1:
        raise UsageError(f"processes ({processes}) are at least 1")
    course = _Course(files, runs, threads, processes, timeout, transport or Here())
    try:
        while not course.ended:
            course.session()
    except DeviceError as error:
        made = sum(session.turns for session in course.sessions)
        if made:
            note = f"stopped after {made} of {course.rounds} turns"
            error.measured = tuple(
                replace(each, notes=(note,), peak_rss_bytes=None) for each in course.measurements()
            )
        raise
    return course.noted()


class _Course:
    """The course of one comparison: sessions of one fresh process a file, one after the other."""

    def __init__(
        self,
        files: Sequence[Artifact],
        runs: int,
        threads: int,
        processes: int,
        timeout: float,
        there: Transport,
    ) -> None:
        self._files, self._threads, self._timeout, self._there = files, threads, timeout, there
        self._deadline = time.monotonic() + timeout
        self._runs, self._most = runs, processes
        #: Turns of all sessions together, how many a session makes, timings in a turn, and
        #: inferences in a timing of each file; the first session knows.
        self.rounds = self._turns = self._each = 0
        self._inner: list[int] = []
        self._longest = 0.0
        self._conditions: list[list[dict[str, Any]]] = []
        self.sessions: list[_Session] = []
        self._short = False

    @property
    def ended(self) -> bool:
        """Whether all turns were made, or another session would not end in time."""
        made = sum(session.turns for session in self.sessions)
        return bool(self.sessions) and (
            made >= self.rounds or self._short or self._left() < 2 * self._longest
        )

    def session(self) -> None:
        """A fresh process of each file, and turns of them."""
        began = time.monotonic()
        with ExitStack() as stack:
            workers, loaded, cores = [], [], None
            for file in (
                self._files
            ):  # one after the other: the start of a process would slow the loading of another file
                workers.append(
                    stack.enter_context(
                        Worker(
                            self._there, f"measure {file.path.name}", self._timeout, self._deadline
                        )
                    )
                )
                loaded.append(
                    workers[-1].ask(
                        _request(file, self._threads, cores, self._there, workers[-1].left())
                    )
                )
                cores = loaded[0]["cores"]
            first = not self.sessions
            if first:
                self._plan(workers)
            made = _Session(loaded, [[] for _ in self._files], [None] * len(self._files))
            self.sessions.append(made)
            if first:
                self._conditions.append([worker.ask({"conditions": True}) for worker in workers])
            self._take_turns(workers, made)
            self._conditions[1:] = [[worker.ask({"conditions": True}) for worker in workers]]
            made.peaks = [worker.ask({})["peak_rss"] for worker in workers]
        self._longest = max(self._longest, time.monotonic() - began)

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _plan(self, workers: Sequence[Worker]) -> None:
        """Turns and timings that there are to be, from a first look at the speed of the files."""
        single = [min(worker.ask({"runs": 3, "inner": 1})["ns"]) for worker in workers]
        self._inner = [max(1, ceil(SHORTEST_NS / max(ns, 1))) for ns in single]
        whole_run = sum(ns * count for ns, count in zip(single, self._inner, strict=True)) / 1e9
        wanted = min(self._runs, max(FEWEST_RUNS, int(self._left() / 2 / whole_run)))
        sessions = min(self._most, max(FEWEST_PROCESSES, wanted // TIMINGS))
        sessions = sessions if wanted >= 2 * TIMINGS else 1
        self._turns = min(ROUNDS, wanted) // sessions
        self.rounds = self._turns * sessions
        self._each = ceil(wanted / self.rounds)

    def _take_turns(self, workers: Sequence[Worker], made: _Session) -> None:
        longest = 0.0
        for turn in range(self._turns):
            began = time.monotonic()
            if (
                self._left() < 2 * longest
                and sum(session.turns for session in self.sessions) * self._each >= FEWEST_RUNS
            ):
                self._short = True  # the device became slower than it was at first: fewer turns, rather than none
                return
            order = range(len(workers)) if turn % 2 == 0 else reversed(range(len(workers)))
            for i in order:
                made.times[i].append(
                    workers[i].ask({"runs": self._each, "inner": self._inner[i]})["ns"]
                )
            longest = max(longest, time.monotonic() - began)

    def measurements(self) -> tuple[Measurement, ...]:
        """What whole turns say of each file."""
        sessions = [session for session in self.sessions if session.turns]
        return tuple(
            _measurement(file, i, sessions, self._inner[i], self._threads)
            for i, file in enumerate(self._files)
        )

    def noted(self) -> tuple[Measurement, ...]:
        """With what of the conditions is worth a word."""
        return tuple(map(_noted, self.measurements(), *self._conditions))


def check(runs: int, threads: int) -> None:
    """Raise UsageError unless so many timings can be made, on so many threads."""
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
    """Microseconds (medians over ``runs``) of each part of a file: of a .tflite file its signatures, of an .onnx file its nodes, as onnxruntime names them.

    Signatures are timed in turns. onnxruntime counts in whole microseconds, and the nodes are those
    of the graph that it made of the file's. The errors of ``compare``.
    """
    there = transport or Here()
    with Worker(there, f"profile {file.path.name}", timeout, time.monotonic() + timeout) as worker:
        worker.ask(_request(file, threads, None, there, timeout))
        found: dict[str, float] = worker.ask({"parts": runs, "scratch": there.folder})["us"]
        return found


def times(
    files: Sequence[Artifact],
    *,
    turns: int = 12,
    threads: int = 1,
    timeout: float = 600.0,
    transport: Transport | None = None,
) -> list[list[float]]:
    """Milliseconds of an inference of each of many small files of one format, in each turn of ``turns``.

    All of them live in one process.

    The errors of ``compare``.
    """
    there = transport or Here()
    deadline = time.monotonic() + timeout
    with Worker(there, f"measure {len(files)} small networks", timeout, deadline) as worker:
        worker.ask(_request(files[0], threads, None, there, timeout))
        paths = [there.put(file.path, worker.left()) for file in files]
        found: list[list[float]] = worker.ask({"files": paths, "turns": turns})["ns"]
        return [[nanoseconds / 1e6 for nanoseconds in each] for each in found]


def onnx_profile(path: Path, runs: int = 50, threads: int = 1) -> dict[str, float]:
    """Node name → median microseconds, on this machine (see ``profile``)."""
    return profile(Artifact(path, "onnx", "fp32"), runs=runs, threads=threads)


def _request(
    file: Artifact, threads: int, cores: list[int] | None, there: Transport, timeout: float
) -> dict[str, Any]:
    """The file is there, and to be loaded."""
    try:
        sha256 = hashlib.sha256(file.path.read_bytes()).hexdigest()
    except OSError as error:
        raise DeviceError(f"cannot measure {file.path}: {error.strerror}") from error
    return {
        "path": there.put(file.path, timeout),
        "format": file.format,
        "threads": threads,
        "cores": cores,
        "sha256": sha256,
    }


def _measurement(
    file: Artifact, i: int, sessions: Sequence[_Session], inner: int, threads: int
) -> Measurement:
    """What the sessions say of the i-th file."""
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
    bound = [session["cores"] for session in loaded if session["cores"] is not None]
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
        cold_start_ms=float(np.median([each["load_ns"] + each["first_ns"] for each in loaded]))
        / 1e6,
        runtime=loaded[0]["runtime"],
        runtime_version=loaded[0]["version"],
        baseline_rss_bytes=baseline,
        peak_rss_bytes=peak or None,
        file_bytes=file.bytes,
        cores=tuple(sorted({core for cores in bound for core in cores})) if bound else None,
    )


def statistics(times: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Median, 90th percentile, IQR and the share of outliers of timings in milliseconds."""
    low, median, high, p90 = np.percentile(times, [25, 50, 75, 90]).tolist()
    far = FAR_OUT * (high - low)
    outliers = float(np.mean((times > high + far) | (times < low - far)))
    return median, p90, high - low, outliers


def _noted(found: Measurement, before: dict[str, Any], after: dict[str, Any]) -> Measurement:
    """With the conditions before and after, and what of them is worth a word."""
    pairs = {
        key: None if None in (before[key], after[key]) else (before[key], after[key])
        for key in ("hz", "celsius")
    }
    change = drift(found.rounds_ms)
    notes = []
    if change is not None and abs(change) > DRIFT:
        cause = "".join(
            f", {name} from {pair[0] / unit:.3g} to {pair[1] / unit:.3g} {symbol}"
            for name, pair, unit, symbol in (
                ("clock", pairs["hz"], 1e9, "GHz"),
                ("temperature", pairs["celsius"], 1, "°C"),
            )
            if pair is not None
        )
        word = "slower" if change > 0 else "faster"
        notes.append(
            f"the device became {100 * abs(change):.0f} % {word} during the measurement{cause}:"
            " compare files measured together only"
        )
    return replace(
        found, drift=change, notes=tuple(notes), hz=pairs["hz"], celsius=pairs["celsius"]
    )


def drift(rounds_ms: Sequence[float]) -> float | None:
    """How much slower the last third of the turns was than the first, as a fraction of the first; None for fewer than six."""
    third = len(rounds_ms) // 3
    return (
        float(np.median(rounds_ms[-third:]) / np.median(rounds_ms[:third]) - 1)
        if third >= 2
        else None
    )
