"""An Android device without Python: TensorFlow Lite's benchmark_model is sent there and run."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Protocol

import numpy as np

from lrfc.errors import DeviceError
from lrfc.protocols import Artifact
from lrfc.system.reader import contents, shown
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.measure import Measurement, check, drift, file_digest, statistics
from lrfc.targets.devices.process import Transport
from lrfc.targets.devices.runners.base import Facts, TransportRunner

#: Times that the program is started for each file, the files in turns.
TURNS = 8
#: Seconds that a short command gets.
PATIENCE = 60.0
#: Bytes that the program may have.
PROGRAM_BYTES = 1 << 30
_KILOBYTES = re.compile(r"[0-9]{1,15}")
#: A figure in the program's output: microseconds, or a number of runs.
_FIGURE = r"[0-9]{1,15}(?:\.[0-9]{1,15})?(?:e[+-]?[0-9]{1,2})?"
#: Output of a shell or linker that cannot start the program.
_BROKEN = re.compile(
    r"(not executable|exec format error|cannot link executable|no such file).*", re.IGNORECASE
)
NOTE = "benchmark_model reports one figure a turn: median, p90 and IQR are those of the turns"


class Shell(Transport, Protocol):
    """A transport that also runs commands to their end."""

    def run(self, commands: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run commands of a shell there; return their output and exit code."""
        ...


@dataclass(frozen=True)
class Turn:
    """The figures of one run of the program.

    ``inference``: microseconds of one inference. ``cold``: microseconds of loading and the first
    inference. ``count``: the number of inferences.
    """

    inference: float
    cold: float
    count: int


class BenchmarkRunner(TransportRunner[Shell]):
    """Measures .tflite files. The program reports neither memory nor the version of its runtime."""

    def __init__(self, device: Device, transport: Shell, program: Path) -> None:
        super().__init__(device, transport)
        digest = hashlib.sha256(contents(program, limit=PROGRAM_BYTES)).hexdigest()
        self._program, self._version = program, f"sha256 {digest[:12]}"

    def check(self) -> Facts:
        """Ask the device for its facts, and check that the program runs there."""
        folder = shlex.quote(self._transport.folder)
        commands = f"uname -m; getprop ro.build.version.release; df -k {folder} | tail -n 1"
        lines = self._transport.run(commands, PATIENCE).stdout.splitlines()
        if len(lines) < 3:
            raise DeviceError(
                f"device '{self._device.name}' does not answer uname, getprop and df:"
                f" {shown(' '.join(lines)) or 'nothing'}"
            )
        machine, release = shown(lines[0].strip()), shown(lines[1].strip())
        self._check_machine(machine)
        self._check_started(self._transport.run(f"{self._ready(PATIENCE)} --help", PATIENCE))
        return Facts(
            machine,
            f"Android {release}",
            None,
            {"tflite": f"benchmark_model {self._version}"},
            _free_bytes(lines[-1]),
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
        paths = [self._sent(file, deadline - time.monotonic()) for file in files]
        program = self._ready(deadline - time.monotonic())
        options = (
            f"--num_threads={threads} --num_runs={ceil(runs / turns)} --min_secs=0"
            " --warmup_min_secs=0.1"
        )
        commands = [f"{program} --graph={path} {options}" for path in paths]
        results: list[list[Turn]] = [[] for _ in files]
        try:
            for number in range(turns):
                order = range(len(files)) if number % 2 == 0 else reversed(range(len(files)))
                for i in order:
                    left = max(deadline - time.monotonic(), 0.0)
                    results[i].append(self._turn(files[i], commands[i], left))
        except DeviceError as error:
            whole = min(map(len, results))
            if whole:
                note = f"stopped after {whole} of {turns} turns"
                error.measured = self._measurements(
                    files, [own[:whole] for own in results], threads, note
                )
            raise
        return self._measurements(files, results, threads, NOTE)

    def _ready(self, timeout: float) -> str:
        """Send the program; return the shell command that becomes it.

        With exec, so that the process number that the transport noted is the program's own.
        """
        path = shlex.quote(self._transport.put(self._program, timeout))
        return f"chmod 700 {path}; exec {path}"

    def _sent(self, file: Artifact, timeout: float) -> str:
        """Send a file; return its path there, quoted. DeviceError unless it arrives whole."""
        digest = file_digest(file.path)
        path = shlex.quote(self._transport.put(file.path, timeout))
        arrived = self._transport.run(f"sha256sum {path}", PATIENCE).stdout.split()[:1]
        if arrived != [digest]:
            raise DeviceError(
                f"device '{self._device.name}': {file.path.name} did not arrive whole; send it"
                " again, or look at the connection"
            )
        return path

    def _turn(self, file: Artifact, command: str, timeout: float) -> Turn:
        """Run the program once on a file; DeviceError when it reports no figures."""
        done = self._transport.run(command, timeout)
        self._check_started(done)
        output = f"{done.stdout}\n{done.stderr}"
        turn = parse(output)
        if done.returncode or turn is None:
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            reason = next(
                (line for line in lines if "ERROR" in line),
                lines[-1] if lines else f"exit code {done.returncode}",
            )
            raise DeviceError(
                f"cannot measure {file.path.name}: benchmark_model: {shown(reason, 500)}"
            )
        return turn

    def _check_started(self, done: subprocess.CompletedProcess[str]) -> None:
        """DeviceError when the program could not be started there."""
        output = f"{done.stdout}\n{done.stderr}"
        broken = _BROKEN.search(output)
        if done.returncode not in (126, 127) and not (done.returncode and broken):
            return
        lines = output.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = broken.group() if broken else lines[-1]
        raise DeviceError(
            f"device '{self._device.name}' cannot run {self._program}:"
            f" {shown(' '.join(reason.split()), 500)}; take the benchmark_model built for its"
            " architecture"
        )

    def _measurements(
        self,
        files: Sequence[Artifact],
        results: Sequence[Sequence[Turn]],
        threads: int,
        note: str,
    ) -> tuple[Measurement, ...]:
        return tuple(
            self._measurement(file, turns, threads, note)
            for file, turns in zip(files, results, strict=True)
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


def _free_bytes(line: str) -> int | None:
    """The free bytes in a line of ``df -k``; None when it cannot be read.

    They stand two columns before the mount point.
    """
    columns = line.split()
    for i in range(3, len(columns)):
        if columns[i].startswith("/") and _KILOBYTES.fullmatch(columns[i - 2]):
            return int(columns[i - 2]) * 1024
    return None


def parse(output: str) -> Turn | None:
    """The figures in the output of benchmark_model; None when there are none.

    Of the line of the timed runs (``count=50 first=… curr=… min=… max=… avg=… std=…``; the warm-up
    has one before it) the median where there is one, the average otherwise, and of ``Inference
    timings in us: Init: …, First inference: …`` the cold start.
    """
    counts = [
        dict(re.findall(rf"(\w+)=({_FIGURE})\b", line))
        for line in output.splitlines()
        if re.search(r"\bcount=[0-9]{1,9} ", line)
    ]
    cold = re.search(rf"Init: ({_FIGURE}), First inference: ({_FIGURE})", output)
    if not counts or cold is None:
        return None
    last = counts[-1]
    value = last.get("median") or last.get("avg") or last.get("curr")
    if value is None or not float(value) > 0:
        return None
    return Turn(float(value), float(cold.group(1)) + float(cold.group(2)), int(last["count"]))
