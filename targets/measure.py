"""Latency and memory of model files on this machine, each in a fresh process, all of them in turn so that what disturbs one disturbs the others."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lrfc.errors import DeviceError, UsageError
from lrfc.state import Artifact

#: Turns that each file gets; the ratio of two files is paired turn by turn.
ROUNDS = 20
#: Runs that are made even when the time is short.
FEWEST_RUNS = 5
#: A timing is over at least this long; a faster model runs several times for each.
SHORTEST_NS = 100_000


@dataclass(frozen=True)
class Measurement:
    """What one file takes on this machine, at batch 1 and on random inputs.

    ``median_ms``, ``p90_ms`` and ``iqr_ms`` (75th minus 25th percentile): latency of one inference in milliseconds, over ``n`` timings of ``inner``
    inferences each, after a warm-up. ``rounds_ms``: the median of each turn, in order. ``cold_start_ms``: loading the file in a fresh process and
    its first inference, without the start of Python and the import of the runtime. ``baseline_rss_bytes``: resident memory of the process with the
    runtime imported and no model; ``peak_rss_bytes``: its peak from there to the end; both None where the system does not tell it.
    ``estimated``: no device was timed, a compiler computed the figures; then ``cycles`` of the processor, ``sram_bytes`` and ``flash_bytes`` are known.
    """

    path: Path
    median_ms: float
    p90_ms: float
    iqr_ms: float
    n: int
    inner: int
    rounds_ms: tuple[float, ...]
    threads: int
    cold_start_ms: float
    runtime: str
    runtime_version: str
    baseline_rss_bytes: int | None
    peak_rss_bytes: int | None
    estimated: bool = False
    cycles: int | None = None
    sram_bytes: int | None = None
    flash_bytes: int | None = None

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


def compare(files: Sequence[Artifact], *, runs: int = 200, threads: int = 1, timeout: float = 600.0) -> tuple[Measurement, ...]:
    """Measure the files side by side.

    Each file lives in a process of its own. The processes take turns (A B, B A, A B, ...), so that a change of the machine's speed meets all files.
    ``runs`` timings are made of each file, fewer when they would take more than half of ``timeout`` (seconds, for the whole call); ``n`` says how many.
    DeviceError, in one line, when a file cannot be loaded or run, its runtime is missing, its process dies, or the time is up. No process is left behind.
    """
    if runs < 1 or threads < 1:
        raise UsageError(f"runs ({runs}) and threads ({threads}) are at least 1")
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        workers, loaded = [], []
        for file in files:  # one after the other: the start of a process would slow the loading of another file
            workers.append(stack.enter_context(_Worker(file, timeout, deadline)))
            loaded.append(workers[-1].ask({"path": str(file.path), "format": file.format, "threads": threads}))
        single = [min(worker.ask({"runs": 3, "inner": 1})["ns"]) for worker in workers]
        inner = [max(1, ceil(SHORTEST_NS / max(ns, 1))) for ns in single]
        whole_run = sum(ns * count for ns, count in zip(single, inner, strict=True)) / 1e9
        wanted = min(runs, max(FEWEST_RUNS, int((deadline - time.monotonic()) / 2 / whole_run)))
        rounds = min(ROUNDS, wanted)
        each = ceil(wanted / rounds)
        times: list[list[list[int]]] = [[] for _ in files]
        for turn in range(rounds):
            order = range(len(files)) if turn % 2 == 0 else reversed(range(len(files)))
            for i in order:
                times[i].append(workers[i].ask({"runs": each, "inner": inner[i]})["ns"])
        peaks = [worker.ask({})["peak_rss"] for worker in workers]
    return tuple(_measurement(*values, threads) for values in zip(files, loaded, times, inner, peaks, strict=True))


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


def _measurement(file: Artifact, loaded: dict[str, Any], times: list[list[int]], inner: int, peak: int | None, threads: int) -> Measurement:
    rounds = np.asarray(times) / inner / 1e6
    low, median, high, p90 = np.percentile(rounds, [25, 50, 75, 90])
    return Measurement(
        path=file.path,
        median_ms=float(median),
        p90_ms=float(p90),
        iqr_ms=float(high - low),
        n=rounds.size,
        inner=inner,
        rounds_ms=tuple(np.median(rounds, axis=1).tolist()),
        threads=threads,
        cold_start_ms=(loaded["load_ns"] + loaded["first_ns"]) / 1e6,
        runtime=loaded["runtime"],
        runtime_version=loaded["version"],
        baseline_rss_bytes=loaded["baseline_rss"],
        peak_rss_bytes=peak,
    )


class _Worker:
    """A process that runs targets/worker.py; killed and waited for when the block ends, however it ends."""

    def __init__(self, file: Artifact, timeout: float, deadline: float) -> None:
        self._file, self._timeout, self._deadline = file, timeout, deadline
        self._answers: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> _Worker:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        # -P: the folder of the script holds modules named like the packages that it imports. A session of its own: Ctrl-C comes to this process alone.
        command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py"))]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, bufsize=1, start_new_session=True
            )
        except OSError as error:
            self._errors.close()
            raise DeviceError(f"no process can be started to measure {self._file.path.name}: {error}") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # the process is gone

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The process's answer; DeviceError when it is an error, does not come in time, or cannot come."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            line = self._answers.get(timeout=max(self._deadline - time.monotonic(), 0.0))
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            raise DeviceError(
                f"measuring took more than {self._timeout:g} s, stopped at {self._file.path.name}; allow more time or fewer runs"
            ) from None
        if not line:
            raise DeviceError(f"the process that ran {self._file.path.name} {self._death()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise DeviceError(f"{self._file.path} cannot be measured: {answer['error']}")
        return answer

    def _death(self) -> str:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        return f"{how}: {said[-1]}" if said else how

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # an unsent request is of no use to a dead process
                continue
