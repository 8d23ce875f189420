"""Latency and memory of model files, each in a fresh process, all of them in turn so that what disturbs one disturbs the others."""

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
from lrfc.state import Artifact
from lrfc.targets.process import Connection, Here, Worker

#: Turns that each file gets; the ratio of two files is paired turn by turn.
ROUNDS = 20
#: Runs that are made even when the time is short.
FEWEST_RUNS = 5
#: What nobody asks for on purpose.
MOST_RUNS, MOST_THREADS = 1_000_000, 1024
#: A timing is over at least this long; a faster model runs several times for each.
SHORTEST_NS = 100_000
#: A timing further than this many IQRs outside of the quartiles is an outlier (Tukey 1977: far out).
FAR_OUT = 3
#: A change of speed during the measurement that is worth a note.
DRIFT = 0.05


@dataclass(frozen=True)
class Measurement:
    """What one file takes on a device, at batch 1 and on random inputs.

    ``median_ms``, ``p90_ms`` and ``iqr_ms`` (75th minus 25th percentile): latency of one inference in milliseconds, over ``n`` timings of ``inner``
    inferences each, after a warm-up. ``outliers``: the share of timings far out; all of them count in the figures, which do not mind.
    ``rounds_ms``: the median of each turn, in order. ``drift``: how much slower the last third of the turns was than the first, as a fraction; None for
    fewer than six. ``hz`` and ``celsius``: clock of the processor and its temperature, before and after, where the system tells them.
    ``notes``: what of this is worth a word. ``cores``: those that the process was bound to; None when it was not.

    ``cold_start_ms``: loading the file in a fresh process and its first inference, without the start of Python and the import of the runtime.
    ``baseline_rss_bytes``: resident memory of the process with the runtime imported and no model; ``peak_rss_bytes``: its peak from there to the end;
    both None where the system does not tell it, or the process did not come to its end. ``file_bytes``: size of the file.

    ``estimated``: no device was timed, a compiler computed the figures; then there is no cold start, and ``cycles`` of the processor, ``sram_bytes``
    and ``flash_bytes`` are known.
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
    estimated: bool = False
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


@dataclass(frozen=True)
class Ratio:
    """Median of a ratio over the turns, with its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


def compare(
    files: Sequence[Artifact], *, runs: int = 200, threads: int = 1, timeout: float = 600.0, connection: Connection | None = None
) -> tuple[Measurement, ...]:
    """Measure the files side by side, on this machine or where ``connection`` leads.

    Each file lives in a process of its own. The processes take turns (A B, B A, A B, ...), so that a change of the machine's speed meets all files.
    ``runs`` timings are made of each file, fewer when they would take more than half of ``timeout`` (seconds, for the whole call); ``n`` says how many.
    DeviceError, in one line, when a file cannot be loaded or run, its runtime is missing, its process dies, the device goes away, or the time is up;
    its ``measured`` holds a Measurement of each file when whole turns were made before. No process is left behind.
    """
    check(runs, threads)
    there = connection or Here()
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        workers, loaded, cores = [], [], None
        for file in files:  # one after the other: the start of a process would slow the loading of another file
            workers.append(stack.enter_context(Worker(there, f"measure {file.path.name}", timeout, deadline)))
            loaded.append(workers[-1].ask(_request(file, threads, cores, there, workers[-1].left())))
            cores = loaded[0]["cores"]
        single = [min(worker.ask({"runs": 3, "inner": 1})["ns"]) for worker in workers]
        inner = [max(1, ceil(SHORTEST_NS / max(ns, 1))) for ns in single]
        whole_run = sum(ns * count for ns, count in zip(single, inner, strict=True)) / 1e9
        wanted = min(runs, max(FEWEST_RUNS, int((deadline - time.monotonic()) / 2 / whole_run)))
        rounds = min(ROUNDS, wanted)
        each = ceil(wanted / rounds)
        before = [worker.ask({"conditions": True}) for worker in workers]
        times: list[list[list[int]]] = [[] for _ in files]
        try:
            began = longest = 0.0
            for turn in range(rounds):
                longest = max(longest, time.monotonic() - began) if turn else 0.0
                began = time.monotonic()
                if deadline - began < 2 * longest and turn * each >= FEWEST_RUNS:
                    break  # the device became slower than it was at first: fewer turns, rather than none
                order = range(len(files)) if turn % 2 == 0 else reversed(range(len(files)))
                for i in order:
                    times[i].append(workers[i].ask({"runs": each, "inner": inner[i]})["ns"])
            after = [worker.ask({"conditions": True}) for worker in workers]
            peaks = [worker.ask({})["peak_rss"] for worker in workers]
        except DeviceError as error:
            whole = min(map(len, times))
            if whole:
                rows = zip(files, loaded, (rows[:whole] for rows in times), inner, strict=True)
                note = f"stopped after {whole} of {rounds} turns"
                error.measured = tuple(replace(_measurement(*row, threads), notes=(note,)) for row in rows)
            raise
    measured = tuple(_measurement(*values, threads) for values in zip(files, loaded, times, inner, strict=True))
    return tuple(map(_noted, measured, before, after, peaks))


def check(runs: int, threads: int) -> None:
    """Raise UsageError unless so many timings can be made, on so many threads."""
    if runs < 1 or threads < 1:
        raise UsageError(f"runs ({runs}) and threads ({threads}) are at least 1")
    if runs > MOST_RUNS or threads > MOST_THREADS:
        raise UsageError(f"runs ({runs}) are at most {MOST_RUNS:,}, threads ({threads}) at most {MOST_THREADS:,}")


def profile(
    file: Artifact, *, runs: int = 50, threads: int = 1, timeout: float = 600.0, connection: Connection | None = None
) -> dict[str, float]:  # fmt: skip
    """Microseconds (medians over ``runs``) of each part of a file: of a .tflite file its signatures, of an .onnx file its nodes, as onnxruntime names them.

    Signatures are timed in turns. onnxruntime counts in whole microseconds, and the nodes are those of the graph that it made of the file's.
    The errors of ``compare``.
    """
    there = connection or Here()
    with Worker(there, f"profile {file.path.name}", timeout, time.monotonic() + timeout) as worker:
        worker.ask(_request(file, threads, None, there, timeout))
        found: dict[str, float] = worker.ask({"parts": runs, "scratch": there.folder})["us"]
        return found


def times(
    files: Sequence[Artifact], *, turns: int = 12, threads: int = 1, timeout: float = 600.0, connection: Connection | None = None
) -> list[list[float]]:
    """Milliseconds of an inference of each of many small files of one format, in each turn of ``turns``. All of them live in one process.

    The errors of ``compare``.
    """
    there = connection or Here()
    deadline = time.monotonic() + timeout
    with Worker(there, f"measure {len(files)} small networks", timeout, deadline) as worker:
        worker.ask(_request(files[0], threads, None, there, timeout))
        paths = [there.put(file.path, worker.left()) for file in files]
        found: list[list[float]] = worker.ask({"files": paths, "turns": turns})["ns"]
        return [[nanoseconds / 1e6 for nanoseconds in each] for each in found]


def onnx_profile(path: Path, runs: int = 50, threads: int = 1) -> dict[str, float]:
    """Node name → median microseconds, on this machine (see ``profile``)."""
    return profile(Artifact(path, "onnx", "fp32"), runs=runs, threads=threads)


def speedup(before: Measurement, after: Measurement) -> Ratio:
    """How many times faster ``after`` is, from two measurements of one ``compare`` call: the ratio of each turn's medians, above 1 when it is faster.

    The interval is the percentile bootstrap of the median over the turns (Efron and Tibshirani 1993, ch. 13), with 2,000 resamples.
    """
    if len(before.rounds_ms) != len(after.rounds_ms):
        raise UsageError(
            f"{before.path.name} and {after.path.name} were not measured side by side: {len(before.rounds_ms)} and {len(after.rounds_ms)} turns"
        )
    ratios = np.asarray(before.rounds_ms) / np.asarray(after.rounds_ms)
    resampled = np.median(np.random.default_rng(0).choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def _request(file: Artifact, threads: int, cores: list[int] | None, there: Connection, timeout: float) -> dict[str, Any]:
    """The file is there, and to be loaded."""
    try:
        sha256 = hashlib.sha256(file.path.read_bytes()).hexdigest()
    except OSError as error:
        raise DeviceError(f"cannot measure {file.path}: {error.strerror}") from error
    return {"path": there.put(file.path, timeout), "format": file.format, "threads": threads, "cores": cores, "sha256": sha256}


def _measurement(file: Artifact, loaded: dict[str, Any], times: list[list[int]], inner: int, threads: int) -> Measurement:
    rounds = np.asarray(times) / inner / 1e6
    median, p90, iqr, outliers = statistics(rounds)
    return Measurement(
        path=file.path,
        median_ms=median,
        p90_ms=p90,
        iqr_ms=iqr,
        outliers=outliers,
        n=rounds.size,
        inner=inner,
        rounds_ms=tuple(np.median(rounds, axis=1).tolist()),
        threads=threads,
        cold_start_ms=(loaded["load_ns"] + loaded["first_ns"]) / 1e6,
        runtime=loaded["runtime"],
        runtime_version=loaded["version"],
        baseline_rss_bytes=loaded["baseline_rss"],
        peak_rss_bytes=None,
        file_bytes=file.bytes,
        cores=None if loaded["cores"] is None else tuple(loaded["cores"]),
    )


def statistics(times: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Median, 90th percentile, IQR and the share of outliers of timings in milliseconds."""
    low, median, high, p90 = np.percentile(times, [25, 50, 75, 90]).tolist()
    far = FAR_OUT * (high - low)
    outliers = float(np.mean((times > high + far) | (times < low - far)))
    return median, p90, high - low, outliers


def _noted(found: Measurement, before: dict[str, Any], after: dict[str, Any], peak: int | None) -> Measurement:
    """With all that is known at the end, and what of it is worth a word."""
    pairs = {key: None if None in (before[key], after[key]) else (before[key], after[key]) for key in ("hz", "celsius")}
    change = drift(found.rounds_ms)
    notes = []
    if change is not None and abs(change) > DRIFT:
        cause = "".join(
            f", {name} from {pair[0] / unit:.3g} to {pair[1] / unit:.3g} {symbol}"
            for name, pair, unit, symbol in (("clock", pairs["hz"], 1e9, "GHz"), ("temperature", pairs["celsius"], 1, "°C"))
            if pair is not None
        )
        word = "slower" if change > 0 else "faster"
        notes.append(f"the device became {100 * abs(change):.0f} % {word} during the measurement{cause}: compare files measured together only")
    return replace(found, drift=change, notes=tuple(notes), peak_rss_bytes=peak, hz=pairs["hz"], celsius=pairs["celsius"])


def drift(rounds_ms: Sequence[float]) -> float | None:
    """How much slower the last third of the turns was than the first, as a fraction of the first; None for fewer than six."""
    third = len(rounds_ms) // 3
    return float(np.median(rounds_ms[-third:]) / np.median(rounds_ms[:third]) - 1) if third >= 2 else None
