"""Files by TensorFlow Lite Micro (TFLM) on this machine: its arena, and its outputs.

Each request has a process of its own, because TFLM aborts on files that it does not like, and
prints. Its kernels are the portable ones: those of CMSIS-NN may take more scratch memory.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lrfc.ir.batch import Batch
from lrfc.system import scratch
from lrfc.system.reader import shown
from lrfc.targets.devices.measure import file_digest
from lrfc.targets.devices.process import LocalTransport, Worker
from lrfc.targets.imports import place
from lrfc.targets.samples import checked
from lrfc.targets.tflite.ports import ports

SCRIPT = Path(__file__).with_name("worker.py")
#: The distribution, and the argument of pip install that brings it.
PACKAGE, EXTRA = "tflite-micro", "'lrfc[micro]'"
#: What is said where memory is planned because the package is missing.
REMEDY = f"pip install {EXTRA} measures it"
#: Seconds that TFLM gets for a file.
PATIENCE = 600.0


@dataclass(frozen=True)
class Arena:
    """The arena that TFLM takes for a file, by its own account.

    ``head_bytes``: activations and scratch memory of the kernels. ``tail_bytes``: the structures
    that live as long as the interpreter; their pointers have 64 bits on this machine, so that a
    microcontroller with 32 bits takes less.
    """

    head_bytes: int
    tail_bytes: int

    @property
    def total_bytes(self) -> int:
        """Head and tail."""
        return self.head_bytes + self.tail_bytes


class _Here(LocalTransport):
    """Processes of worker.py in this folder."""

    def command(self, timeout: float) -> list[str]:
        """The command of a Python process."""
        return [sys.executable, "-W", "ignore", str(SCRIPT)]

    def death(self, code: int, stderr: str) -> str:
        """The signal or the exit code; an abort is that of a check in TFLM, without a word."""
        end = super().death(code, stderr)
        aborted = code == -signal.SIGABRT
        return f"{end}: a check of TensorFlow Lite Micro failed" if aborted else end


class Micro:
    """A ``.tflite`` file under TFLM, as in ``lrfc.protocols.Runner``.

    ModelError when LiteRT, which reads its inputs and outputs, refuses the file. DeviceError, in
    one line, on a call that TFLM refuses or dies of. DependencyError without the package.
    """

    def __init__(self, path: Path) -> None:
        _installed()
        self._path = path
        self._inputs, self._outputs = ports(path)

    def __call__(self, batch: Batch) -> Batch:
        """The outputs of samples, one after the other."""
        samples = checked(batch, [port.spec for port in self._inputs], self._path.name)
        arrays = [port.quantised(x) for port, x in zip(self._inputs, samples, strict=True)]
        with scratch.folder() as folder:
            inputs, outputs = folder / "inputs.npz", folder / "outputs.npz"
            np.savez(inputs, *arrays)
            request = {"run": str(self._path), "inputs": str(inputs), "outputs": str(outputs)}
            _asked(request, self._path)
            with np.load(outputs) as file:
                results = [file[name] for name in file.files]
        return tuple(port.dequantised(y) for port, y in zip(self._outputs, results, strict=True))


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("tflite_micro") is not None


def version() -> str:
    """The version of the package."""
    return importlib.metadata.version(PACKAGE)


def arena(path: Path) -> Arena:
    """The arena of a file.

    DeviceError, in one line, when TFLM lacks operators, which it names, or refuses or does not
    survive the file. DependencyError without the package.
    """
    _installed()
    return _arena(path, file_digest(path))


@lru_cache(maxsize=64)
def _arena(path: Path, digest: str) -> Arena:
    """The arena of a file with these contents."""
    answer = _asked({"arena": str(path)}, path)
    return Arena(answer["head"], answer["tail"])


def _installed() -> None:
    place("tflite_micro", f"{EXTRA} (CPython 3.10 to 3.14 on Linux and macOS)")


def _asked(request: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The answer of a process."""
    task = f"run {shown(path.name)} by TensorFlow Lite Micro"
    deadline = time.monotonic() + PATIENCE
    with Worker(_Here(), task, PATIENCE, deadline) as worker:
        return worker.ask(dict(request))
