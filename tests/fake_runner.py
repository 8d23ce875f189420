"""A runner whose measurements are set by the test, in the registry of connections."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Self

import pytest

from lrfc.protocols import Artifact
from lrfc.targets.devices.connections import CONNECTIONS, Local
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.process import Worker
from lrfc.targets.devices.runners.base import DeviceRunner, Facts

FACTS = Facts("x86_64", "none", None, {"tflite": "fake 1", "onnx": "fake 1"})


@dataclass
class FakeRunner:
    """A device on which the first file of a call takes 1 ms, and all others 1 / ``speedup``.

    ``flash``: bytes of the first file and of the others in the flash of an NPU. ``calls``: the
    files of each call.
    """

    speedup: float = 2.0
    flash: tuple[int | None, int | None] = (None, None)
    facts: Facts = FACTS
    calls: list[tuple[Artifact, ...]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def check(self) -> Facts:
        return self.facts

    def compare(
        self,
        files: Sequence[Artifact],
        *,
        runs: int = 200,
        threads: int = 1,
        timeout: float = 600.0,
    ) -> tuple[Measurement, ...]:
        self.calls.append(tuple(files))
        return tuple(
            measurement(
                file,
                1.0 if first else 1 / self.speedup,
                runs=runs,
                threads=threads,
                flash_bytes=self.flash[0 if first else 1],
            )
            for file, first in zip(files, (True, *[False] * len(files)), strict=False)
        )


def measurement(
    file: Artifact,
    ms: float,
    *,
    runs: int = 200,
    threads: int = 1,
    flash_bytes: int | None = None,
) -> Measurement:
    """A measurement of the file in which every timing is ``ms`` milliseconds."""
    return Measurement(
        path=file.path,
        median_ms=ms,
        p90_ms=ms,
        iqr_ms=0.0,
        n=runs,
        inner=1,
        rounds_ms=(ms,) * 20,
        threads=threads,
        cold_start_ms=1.0,
        runtime="fake",
        runtime_version="1",
        baseline_rss_bytes=1_000_000,
        peak_rss_bytes=2_000_000,
        flash_bytes=flash_bytes,
    )


def connection(runner: DeviceRunner) -> type[Local]:
    """A class of connections whose runner is ``runner``."""
    name = f"opened_{id(runner)}"
    setattr(sys.modules[__name__], name, lambda device: runner)

    class Given(Local):
        runner: ClassVar[str] = f"{__name__}:{name}"

    return Given


def install(monkeypatch: pytest.MonkeyPatch, runner: DeviceRunner) -> None:
    """Let ``runner`` measure on every device whose connection is 'local', such as the host."""
    monkeypatch.setitem(CONNECTIONS, "local", connection(runner))


def before_request(
    monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[Worker], None], kind: str = ""
) -> None:
    """Call ``act`` with the worker before the ``number``-th request with the key ``kind``.

    Without ``kind`` all requests of all workers are counted.
    """
    ask, count = Worker.ask, 0

    def asked(worker: Worker, request: dict[str, object]) -> dict[str, object]:
        nonlocal count
        if not kind or kind in request:
            count += 1
            if count == number:
                act(worker)
        return ask(worker, request)

    monkeypatch.setattr(Worker, "ask", asked)
