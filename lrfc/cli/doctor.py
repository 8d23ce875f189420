"""What `lrfc doctor` looks at: the versions that are installed, whether each runtime really runs a model here, and what the devices need."""

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

if TYPE_CHECKING:
    from lrfc.targets.devices.connections import Connection

PYTHON = (3, 11)
#: Distribution → the module that it brings, and the oldest version that lrfc works with (the lower
#: bounds of pyproject.toml).
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
#: Distribution → the extra of lrfc that brings it, and the oldest version that lrfc works with.
OPTIONAL = {"ethos-u-vela": ("npu", "5"), "tensorflow-model-optimization": ("qat", "0.8")}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    ``detail``: what was found, or, when it is not ok, what is wrong and the way out.
    """

    name: str
    ok: bool
    detail: str


def run() -> tuple[Check, ...]:
    """Every check.

    Runs a tiny model through each target when all packages are in order; takes as long as
    TensorFlow needs to start.
    """
    processor.decide()  # before the packages are imported
    packages = [_python(), *(_package(name) for name in REQUIRED)]
    sound = all(check.ok for check in packages)
    targets = [_target(name) for name in FORMATS] if sound else []
    extras = [_extra(name, sound=sound) for name in OPTIONAL]
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
    """DependencyError that names every failed check and its way out."""
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.ok]
    if failed:
        raise DependencyError("; ".join(failed))


# -- the checks ------------------------------------------------------------------------------------


def _python() -> Check:
    found = platform.python_version()
    wanted = ".".join(map(str, PYTHON))
    ok = sys.version_info >= PYTHON
    return Check(
        "python", ok, found if ok else f"{found} is too old; install Python {wanted} or newer"
    )


def _package(name: str) -> Check:
    module, least = REQUIRED[name]
    way_out = f"pip install '{name}>={least}'"
    found = _version(name)
    if found is None:
        return Check(name, False, f"not installed; {way_out}")
    if _release(found) < _release(least):
        return Check(name, False, f"{found} is too old; {way_out}")

    wanted = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if (
        name == "keras" and wanted != "tensorflow"
    ):  # said before the import, which fails on a backend that is not installed
        return Check(
            name,
            False,
            f"its backend is '{wanted}', lrfc needs TensorFlow; unset KERAS_BACKEND or set it to"
            " tensorflow",
        )

    def load() -> str:
        with backend.quiet():
            importlib.import_module(module)
        return f"{found}, on {backend.keras().backend.backend()}" if name == "keras" else found

    return _attempt(name, f"pip install --force-reinstall '{name}>={least}'", load)


def _extra(name: str, *, sound: bool = True) -> Check:
    """An optional package: it may be missing, but what is there has to work.

    ``sound``: whether what it builds on is in order.
    """
    extra, least = OPTIONAL[name]
    way_out = f"pip install 'lrfc[{extra}]'"
    found = _version(name)
    if found is None:
        return Check(name, True, f"not installed; {way_out}")
    if _release(found) < _release(least):
        return Check(name, False, f"{found} is too old; {way_out}")

    def load() -> str:
        if extra == "npu":
            importlib.import_module("ethosu.vela")
        elif sound:
            from lrfc.training import annotate

            with annotate.tools():
                pass
        return found

    return _attempt(name, f"pip install --force-reinstall '{name}>={least}'", load)


def _devices() -> list[Check]:
    """One check for each way of reaching devices, and one for each profile of the user's that cannot be read.

    No device is reached.
    """
    from lrfc.targets.devices import device

    checks: list[Check] = []
    by_kind: dict[str, list[str]] = {}
    ways: dict[str, type[Connection]] = {}
    own: set[str] = set()
    shipped = set(device.SHIPPED.glob("*.toml"))
    for path in sorted({*shipped, *device.own_folder().glob("*.toml")}, key=lambda path: path.stem):
        try:
            way = device.read(path).connection
        except UsageError as error:
            checks.append(Check(f"device {path.stem}", False, str(error)))
            continue
        kind = way.kind
        ways[kind] = type(way)
        if path.stem not in by_kind.setdefault(kind, []):
            by_kind[kind].append(path.stem)
        own |= set() if path in shipped else {kind}
    for kind, names in sorted(by_kind.items()):
        checks.append(_connection(kind, ways[kind], names, needed=kind in own))
    return checks


def _connection(kind: str, way: type[Connection], names: list[str], *, needed: bool) -> Check:
    """A way of reaching devices.

    ``needed``: by a profile of the user's own, so that what is missing for it is a fault.
    """
    title, told = f"devices: {kind}", ", ".join(names)
    if way.program is not None:
        name, source = way.program
        program = shutil.which(name)
        if program is None:
            missing = f"{name} is not installed; it comes with {source}"
            return Check(title, not needed, f"{told} cannot be reached: {missing}")
        return Check(title, True, f"{told}, through {program}; lrfc devices check NAME reaches one")
    if way.package is not None and _version(way.package.name) is None:
        way_out = f"pip install 'lrfc[{way.package.source}]'"
        return Check(title, not needed, f"{told} cannot be built for; {way_out}")
    return Check(title, True, f"{told}; {way.remark}" if way.remark else told)


def _target(name: str) -> Check:
    """Emit a model of one layer for the target and run the file."""
    from lrfc.ir.keras import io as keras_io
    from lrfc.targets.catalog import target

    def emit_and_run() -> str:
        keras = backend.keras()
        graph = keras_io.from_keras(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        batch = np.linspace(-1, 1, 4, dtype=np.float32)[None]
        chosen = target(name, "fp32")
        with scratch.folder() as folder:
            file = chosen.emit(graph, folder / f"model{chosen.suffix}", (batch,))
            given = chosen.load(file)((batch,))[0]
        difference = float(np.abs(given - keras_io.predict(graph, (batch,))[0]).max())
        if not difference < 1e-4:
            raise ValueError(
                f"a one-layer model gives outputs that differ by {difference:.3g} from Keras'"
            )
        return "emits and runs a model"

    return _attempt(f"target {name}", "reinstall lrfc in a fresh environment", emit_and_run)


def _attempt(name: str, way_out: str, job: Callable[[], str]) -> Check:
    try:
        return Check(name, True, job())
    except Exception as error:  # noqa: BLE001  a broken package can raise anything, and that is what is reported
        told = (
            str(error)
            if isinstance(error, DependencyError)
            else f"{type(error).__name__}: {backend.reason(error)}; {way_out}"
        )
        return Check(name, False, told)


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
    """What the system can give without swapping; Linux tells it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return "unknown on this system"
    available = next(
        (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None
    )
    return "unknown on this system" if available is None else f"{available / 2**20:.1f} GiB"
