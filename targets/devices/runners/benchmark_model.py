"""An Android device without Python: TensorFlow Lite's own program benchmark_model, brought there, and what it says."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from lrfc.errors import DeviceError
from lrfc.protocols import Artifact
from lrfc.system.reader import contents, shown
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.measure import Measurement, check, drift, statistics
from lrfc.targets.devices.process import Transport
from lrfc.targets.devices.runners.base import Facts

#: Times that the program is started for each file, the files in turns.
TURNS = 8
#: Seconds that a short command gets.
PATIENCE = 60.0
#: Bytes that the program may have.
PROGRAM_BYTES = 1 << 30
_KILOBYTES = re.compile(r"[0-9]{1,15}")
#: A figure of the program's: microseconds, or a number of runs.
_FIGURE = r"[0-9]{1,15}(?:\.[0-9]{1,15})?(?:e[+-]?[0-9]{1,2})?"
NOTE = "benchmark_model tells one figure a turn: median, p90 and IQR are those of the turns"


class Shell(Transport, Protocol):
    """A connection that also runs commands to their end."""

    def run(self, there: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """What the commands said, and their exit code."""
        ...


@dataclass(frozen=True)
class Turn:
    """What one run of the program says: the time of one inference, of loading and of the first one, in microseconds, and the number of inferences."""

    inference: float
    cold: float
    count: int


class BenchmarkRunner:
    """Measures .tflite files; its memory and the version of its runtime the program does not tell."""

    def __init__(self, device: Device, transport: Shell, program: Path) -> None:
        self._device, self._transport, self._program = device, transport, program
        self._version = (
            f"sha256 {hashlib.sha256(contents(program, limit=PROGRAM_BYTES)).hexdigest()[:12]}"
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._transport)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def check(self) -> Facts:
        """The facts, and that the program can be run there."""
        folder = shlex.quote(self._transport.folder)
        asked = "uname -m; getprop ro.build.version.release; df -k "
        said = self._transport.run(f"{asked}{folder} | tail -n 1", PATIENCE).stdout.splitlines()
        if len(said) < 3:
            raise DeviceError(
                f"device '{self._device.name}' does not answer uname, getprop and df:"
                f" {shown(' '.join(said)) or 'nothing'}"
            )
        machine, release, disk = shown(said[0].strip()), shown(said[1].strip()), said[-1].split()
        if self._device.machine not in (None, machine):
            raise DeviceError(
                f"device '{self._device.name}' says that it is {machine}, its profile says"
                f" {self._device.machine}: mend machine there"
            )
        free = next(
            (
                int(disk[i - 2]) * 1024
                for i in range(3, len(disk))
                if disk[i].startswith("/") and _KILOBYTES.fullmatch(disk[i - 2])
            ),
            None,
        )
        self._started(self._transport.run(f"{self._there(PATIENCE)} --help", PATIENCE))
        return Facts(
            machine,
            f"Android {release}",
            None,
            {"tflite": f"benchmark_model {self._version}"},
            free,
        )

    def compare(
        self,
        files: Sequence[Artifact],
        *,
        runs: int = 200,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> tuple[Measurement, ...]:
        """Measure the files side by side, in turns of one process each."""
        check(runs, threads)
        others = [file.path.name for file in files if file.format != "tflite"]
        if others:
            raise DeviceError(
                f"device '{self._device.name}': benchmark_model runs .tflite files, not"
                f" {', '.join(others)}"
            )
        deadline = time.monotonic() + timeout
        turns = min(TURNS, runs)
        sent = [self._sent(file, deadline - time.monotonic()) for file in files]
        program = self._there(deadline - time.monotonic())
        made: list[list[Turn]] = [[] for _ in files]
        try:
            for number in range(turns):
                order = range(len(files)) if number % 2 == 0 else reversed(range(len(files)))
                for i in order:
                    words = (
                        f"--graph={sent[i]} --num_threads={threads} --num_runs={ceil(runs / turns)}"
                        " --min_secs=0 --warmup_min_secs=0.1"
                    )
                    made[i].append(
                        self._turn(
                            files[i], f"{program} {words}", max(deadline - time.monotonic(), 0.0)
                        )
                    )
        except DeviceError as error:
            whole = min(map(len, made))
            if whole:
                note = f"stopped after {whole} of {turns} turns"
                error.measured = tuple(
                    self._measurement(file, own[:whole], threads, note)
                    for file, own in zip(files, made, strict=True)
                )
            raise
        return tuple(
            self._measurement(file, own, threads, NOTE)
            for file, own in zip(files, made, strict=True)
        )

    def _there(self, timeout: float) -> str:
        """The program there, ready to run; exec, so that the number that the connection noted is its own."""
        path = shlex.quote(self._transport.put(self._program, timeout))
        return f"chmod 700 {path}; exec {path}"

    def _sent(self, file: Artifact, timeout: float) -> str:
        try:
            digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
        except OSError as error:
            raise DeviceError(f"cannot measure {file.path}: {error.strerror}") from error
        path = shlex.quote(self._transport.put(file.path, timeout))
        found = self._transport.run(f"sha256sum {path}", PATIENCE).stdout.split()[:1]
        if found != [digest]:
            raise DeviceError(
                f"device '{self._device.name}': {file.path.name} did not arrive whole; send it"
                " again, or look at the connection"
            )
        return path

    def _turn(self, file: Artifact, command: str, timeout: float) -> Turn:
        done = self._transport.run(command, timeout)
        self._started(done)
        said = f"{done.stdout}\n{done.stderr}"
        found = parse(said)
        if done.returncode or found is None:
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            reason = next(
                (line for line in lines if "ERROR" in line),
                lines[-1] if lines else f"exit code {done.returncode}",
            )
            raise DeviceError(
                f"cannot measure {file.path.name}: benchmark_model: {shown(reason, 500)}"
            )
        return found

    def _started(self, done: subprocess.CompletedProcess[str]) -> None:
        said = f"{done.stdout}\n{done.stderr}"
        broken = re.search(
            r"(not executable|exec format error|cannot link executable|no such file).*",
            said,
            re.IGNORECASE,
        )
        if done.returncode in (126, 127) or (done.returncode and broken):
            reason = (
                broken.group()
                if broken
                else (
                    said.strip().splitlines()[-1]
                    if said.strip()
                    else f"exit code {done.returncode}"
                )
            )
            raise DeviceError(
                f"device '{self._device.name}' cannot run {self._program}:"
                f" {shown(' '.join(reason.split()), 500)}; take the benchmark_model built for its"
                " architecture"
            )

    def _measurement(
        self, file: Artifact, turns: Sequence[Turn], threads: int, note: str
    ) -> Measurement:
        times = np.asarray([turn.inference for turn in turns]) / 1e3
        median, p90, iqr, outliers = statistics(times)
        return Measurement(
            path=file.path,
            median_ms=median,
            p90_ms=p90,
            iqr_ms=iqr,
            n=sum(turn.count for turn in turns),
            inner=1,
            rounds_ms=tuple(times.tolist()),
            processes=(1,) * len(times),  # the program is started for each turn
            threads=threads,
            cold_start_ms=float(np.median([turn.cold for turn in turns])) / 1e3,
            runtime="benchmark_model",
            runtime_version=self._version,
            baseline_rss_bytes=None,
            peak_rss_bytes=None,
            file_bytes=file.bytes,
            outliers=outliers,
            drift=drift(times.tolist()),
            notes=(note,),
        )


def parse(said: str) -> Turn | None:
    """The figures in the output of benchmark_model; None when it is not such.

    Of the line of the timed runs (``count=50 first=… curr=… min=… max=… avg=… std=…``; the warm-up
    has one before it) the median where there is one, the average otherwise, and of ``Inference
    timings in us: Init: …, First inference: …`` the cold start.
    """
    counted = [
        dict(re.findall(rf"(\w+)=({_FIGURE})\b", line))
        for line in said.splitlines()
        if re.search(r"\bcount=[0-9]{1,9} ", line)
    ]
    cold = re.search(rf"Init: ({_FIGURE}), First inference: ({_FIGURE})", said)
    if not counted or cold is None:
        return None
    last = counted[-1]
    value = last.get("median") or last.get("avg") or last.get("curr")
    return (
        None
        if value is None or not float(value) > 0
        else Turn(float(value), float(cold.group(1)) + float(cold.group(2)), int(last["count"]))
    )
