"""The conversion of a SavedModel to TFLite, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import ModelError
from lrfc.system import memory
from lrfc.targets.devices.process import kill
from lrfc.targets.tflite import converter

#: Bytes of a SavedModel above which freed memory goes back to the system: that takes up to 1 CPU-s.
LARGE = 4 << 20


class ConverterError(Exception):
    """The converter has failed; its own message."""


@dataclass(frozen=True)
class Conversion:
    """One conversion: the arguments of ``lrfc.targets.tflite.converter.convert``.

    ``name``: of the model, for messages.
    """

    name: str
    precision: str
    inputs: tuple[str, ...]
    samples: Sequence[NDArray[Any]] | None
    int8_io: bool

    def run(self, folder: Path, process: subprocess.Popen[str] | None) -> bytearray:
        """The bytes of the file of the SavedModel in ``folder``.

        ``process``: of the converter, from ``started``, which ends; None to convert in this one.
        ModelError when that process dies. ConverterError, or an exception of TensorFlow's in this
        process, when the converter fails.
        """
        large = sum(file.stat().st_size for file in folder.rglob("*")) >= LARGE
        if large:
            memory.trim()
        if process is not None:
            return self._apart(folder, process)
        content = converter.convert(
            str(folder), self.precision, self.inputs, self.samples, int8_io=self.int8_io
        )
        if large:
            memory.trim()
        return bytearray(content)

    def _apart(self, folder: Path, process: subprocess.Popen[str]) -> bytearray:
        paths = None
        if self.samples is not None:
            paths = [folder / f"samples{number}.npy" for number in range(len(self.samples))]
            for path, x in zip(paths, self.samples, strict=True):
                np.save(path, x)
        task = {
            "folder": str(folder),
            "precision": self.precision,
            "inputs": self.inputs,
            "samples": None if paths is None else list(map(str, paths)),
            "int8_io": self.int8_io,
        }
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead: its exit code says why
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        code = process.wait()
        result = folder / converter.FILE
        if code == 0 and result.is_file():
            return bytearray(result.read_bytes())
        failure = folder / converter.FAILURE
        if code > 0 and failure.is_file():
            raise ConverterError(failure.read_text(encoding="utf-8"))
        raise ModelError(f"'{self.name}' cannot be converted to TFLite: the converter {_end(code)}")


def _end(code: int) -> str:
    """The predicate of a sentence that says how the process of the converter ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    cause = ", as systems do when memory runs out" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{cause}"


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Context manager: a process of the converter; killed and waited for at the end of the block.

    It prints to stdout and stderr of this process, and imports TensorFlow before it is asked.
    ``folder``: for its temporary files.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TMPDIR": str(folder),
    }
    # Without warnings, and without its folder on the path; in a session of its own: Ctrl-C comes to
    # this process alone.
    try:
        process = subprocess.Popen(  # noqa: S603 - the command is ours
            [sys.executable, "-P", "-W", "ignore", converter.__file__],
            stdin=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ConverterError(f"its process cannot be started: {error.strerror}") from error
    try:
        yield process
    finally:
        kill(process)
