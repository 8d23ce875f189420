"""The checks of `lrfc doctor`: package versions, a model in each runtime, the connections."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lrfc.config.formats import FORMATS
from lrfc.errors import DependencyError, UsageError
from lrfc.ir import backend, processor
from lrfc.system import scratch
from lrfc.text import size

if TYPE_CHECKING:
    from lrfc.targets.devices.connections import Connection

PYTHON = (3, 11)
#: Package → its module, and the oldest supported version (the lower bounds of pyproject.toml).
REQUIRED = {
    "numpy": ("numpy", "2"),
    "scipy": ("scipy", "1.13"),
    "threadpoolctl": ("threadpoolctl", "3.5"),
    "networkx": ("networkx", "3.4"),
    "flatbuffers": ("flatbuffers", "24"),
    "h5py": ("h5py", "3.11"),
    "platformdirs": ("platformdirs", "4.2"),
    "jinja2": ("jinja2", "3.1"),
    "pydantic": ("pydantic", "2.10"),
    "pydantic-core": ("pydantic_core", "2.27"),
    "rich": ("rich", "14"),
    "scikit-learn": ("sklearn", "1.5"),
    "typer": ("typer", "0.15"),
    "tensorflow": ("tensorflow", "2.21"),
    "keras": ("keras", "3.12"),
    "tf-keras": ("tf_keras", "2.21"),
    "ai-edge-litert": ("ai_edge_litert.interpreter", "2.1"),
    "onnx": ("onnx", "1.17"),
    "onnxruntime": ("onnxruntime", "1.20"),
    "tf2onnx": ("tf2onnx", "1.17"),
}
#: Package → the extra of lrfc that installs it, and the oldest supported version.
OPTIONAL = {
    "ethos-u-vela": ("npu", "5"),
    "tensorflow-model-optimization": ("qat", "0.8"),
    "tflite-micro": ("micro", "0.dev20261023"),
}


@dataclass(frozen=True)
class Check:
    """The result of one check. ``detail``: the finding or, if not ``ok``, the fault and its fix."""

    name: str
    ok: bool
    detail: str


def run() -> tuple[Check, ...]:
    """Run every check.

    If all packages are in order, each target emits and runs a tiny model. The time is that of the
    import of TensorFlow.
    """
    processor.decide()  # before the packages are imported
    packages = [_python(), *(_package(name) for name in REQUIRED)]
    complete = all(check.ok for check in packages)
    targets = [_target(name) for name in FORMATS] if complete else []
    extras = [_extra(name, complete=complete) for name in OPTIONAL]
    onednn = _attempt(
        "oneDNN", "reinstall lrfc in a fresh environment", lambda: str(processor.onednn())
    )
    return (
        *packages,
        onednn,
        *extras,
        *targets,
        *_devices(),
        Check("CPUs", True, str(_cpus())),
        Check("free memory", True, _free_memory()),
    )


def require(checks: Iterable[Check]) -> None:
    """Raise DependencyError with every failed check and its fix."""
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    if failed:
        raise DependencyError("; ".join(failed))


# -- the checks ------------------------------------------------------------------------------------


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info >= PYTHON:
        return Check("python", True, version)
    least = ".".join(map(str, PYTHON))
    return Check("python", False, f"{version} is too old; install Python {least} or newer")


def _package(name: str) -> Check:
    module, least = REQUIRED[name]
    fix = f"pip install '{name}>={least}'"
    version = _version(name)
    if version is None:
        return Check(name, False, f"not installed; {fix}")
    if _release(version) < _release(least):
        return Check(name, False, f"{version} is too old; {fix}")

    chosen = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if name == "keras" and chosen != "tensorflow":
        # Before the import, which fails on a backend that is not installed.
        return Check(
            name,
            False,
            f"its backend is '{chosen}', but lrfc needs TensorFlow; unset KERAS_BACKEND or set it"
            " to tensorflow",
        )

    def load() -> str:
        with backend.quiet():
            importlib.import_module(module)
        return f"{version}, on {backend.keras().backend.backend()}" if name == "keras" else version

    return _attempt(name, f"pip install --force-reinstall '{name}>={least}'", load)


def _extra(name: str, *, complete: bool = True) -> Check:
    """Check an optional package: it may be missing, but if it is installed it has to work.

    ``complete``: whether all required packages are in order.
    """
    extra, least = OPTIONAL[name]
    fix = f"pip install 'lrfc[{extra}]'"
    version = _version(name)
    if version is None:
        return Check(name, True, f"not installed; {fix}")
    if _release(version) < _release(least):
        return Check(name, False, f"{version} is too old; {fix}")

    def load() -> str:
        if extra == "npu":
            importlib.import_module("ethosu.vela")
        elif extra == "micro":
            importlib.import_module("tflite_micro.python.tflite_micro.runtime")
        elif complete:
            from lrfc.training import annotate

            with annotate.tools():
                pass
        return version

    return _attempt(name, f"pip install --force-reinstall '{name}>={least}'", load)


def _devices() -> list[Check]:
    """Check the connections that the device profiles use, without connecting to a device.

    One check for each kind of connection, and one for each unreadable profile of the user's.
    """
    from lrfc.targets.devices import device

    checks: list[Check] = []
    names: dict[str, list[str]] = {}
    connections: dict[str, type[Connection]] = {}
    needed: set[str] = set()
    shipped = set(device.SHIPPED.glob("*.toml"))
    for path in sorted({*shipped, *device.own_folder().glob("*.toml")}, key=lambda path: path.stem):
        try:
            connection = device.read(path).connection
        except UsageError as error:
            checks.append(Check(f"device {path.stem}", False, str(error)))
            continue
        kind = connection.kind
        connections[kind] = type(connection)
        if path.stem not in names.setdefault(kind, []):
            names[kind].append(path.stem)
        if path not in shipped:
            needed.add(kind)
    return checks + [
        _connection(kind, connections[kind], names[kind], needed=kind in needed)
        for kind in sorted(names)
    ]


def _connection(
    kind: str, connection: type[Connection], names: list[str], *, needed: bool
) -> Check:
    """Check a kind of connection.

    ``names``: the devices that use it. ``needed``: one of them is the user's own, so that a missing
    program or package is a fault.
    """
    title, devices = f"devices: {kind}", ", ".join(names)
    if connection.program is not None:
        name, source = connection.program
        program = shutil.which(name)
        if program is None:
            missing = f"{name} is not installed; it comes with {source}"
            return Check(title, not needed, f"{devices} cannot be reached: {missing}")
        return Check(
            title, True, f"{devices}, with {program}; check one with lrfc devices check NAME"
        )
    if connection.package is not None and _version(connection.package.name) is None:
        fix = f"pip install 'lrfc[{connection.package.source}]'"
        return Check(title, not needed, f"{devices} cannot be built for; {fix}")
    return Check(title, True, f"{devices}; {connection.remark}" if connection.remark else devices)


def _target(name: str) -> Check:
    """Check a target: emit a model with one layer, and run the file."""
    from lrfc.ir.keras import io as keras_io
    from lrfc.targets.catalog import target

    def emit_and_run() -> str:
        keras = backend.keras()
        graph = keras_io.from_keras(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        batch = np.linspace(-1, 1, 4, dtype=np.float32)[None]
        format_ = target(name, "fp32")
        with scratch.folder() as folder:
            file = format_.emit(graph, folder / f"model{format_.suffix}", (batch,))
            output = format_.load(file)((batch,))[0]
        difference = float(np.abs(output - keras_io.predict(graph, (batch,))[0]).max())
        if not difference < 1e-4:
            raise ValueError(
                f"the outputs of a one-layer model differ by {difference:.3g} from those of Keras"
            )
        return "emits and runs a model"

    return _attempt(f"target {name}", "reinstall lrfc in a fresh environment", emit_and_run)


def _attempt(name: str, fix: str, job: Callable[[], str]) -> Check:
    """Check that a job succeeds. ``job`` returns the detail; ``fix``: what to do if it fails."""
    try:
        return Check(name, True, job())
    except DependencyError as error:
        return Check(name, False, str(error))
    except Exception as error:  # noqa: BLE001  a broken package can raise anything
        return Check(name, False, f"{type(error).__name__}: {backend.reason(error)}; {fix}")


# -- facts -----------------------------------------------------------------------------------------


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers before any suffix, without trailing zeros: 2.21.0rc1 → (2, 21)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_memory() -> str:
    """The memory that is available without swapping; known on Linux only."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return "unknown on this system"
    available = next(
        (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None
    )
    return "unknown on this system" if available is None else size(1024 * available)
