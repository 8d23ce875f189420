"""Arm Ethos-U: cycles and memory of an int8 file as Arm's Vela compiler computes them, and the file that it compiles.

Nothing is timed.
"""

from __future__ import annotations

import csv
import importlib.metadata
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrfc.errors import DeviceError, UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op
from lrfc.protocols import Artifact
from lrfc.system import scratch
from lrfc.system.reader import contents, shown
from lrfc.targets.devices.device import INI_BYTES, Vela
from lrfc.targets.ethos_u import flash
from lrfc.targets.imports import need
from lrfc.targets.tflite import probe
from lrfc.targets.trace import plain

#: Operators at the edges of a file whose inputs and outputs are float: they run on the CPU and hold
#: back nothing else.
EDGES = frozenset({"Quantize", "Dequantize"})
#: What Vela calls the operators that multiply and accumulate.
_LINEAR = frozenset({"Conv2D", "DepthwiseConv2D", "FullyConnected", "TransposeConv2D", "MatMul"})


@dataclass(frozen=True)
class Layer:
    """One operator of the compiled network.

    ``name``: of the operator's output in the file, the fused ops' names joined by ';'.
    ``operator``: the TFLite operator it came from. ``kind``: what Vela made of it. ``on_npu``:
    False when the CPU has to run it, which Vela does not count. ``cycles``: the largest of what the
    NPU computes (``npu_cycles``) and what the memories take to deliver (``sram_cycles``, and
    ``flash_cycles`` of the memory outside). ``sram_bytes``: alive meanwhile. ``flash_bytes``: its
    weights as Vela encodes them, with scales, and its constants, such as lookup tables; what
    several operators read counts for the first alone, what the CPU reads for none.
    """

    name: str
    operator: str
    kind: str
    on_npu: bool
    cycles: int
    npu_cycles: int
    sram_cycles: int
    flash_cycles: int
    macs: int
    sram_bytes: int
    flash_bytes: int


@dataclass(frozen=True)
class Compiled:
    """What Vela makes of a file.

    ``cycles``: of one inference on the NPU, ``ms`` at ``clock_hz``; operators that fall back to the
    CPU are not in it. ``sram_bytes``: the peak of activations and buffered weights.
    ``flash_bytes``: what lies outside the SRAM, that is the ``flash_bytes`` of all layers (in
    memory modes that keep activations there, those too); Vela does not count the commands.
    ``content``: the compiled .tflite file, commands included, for TFLite Micro with the Ethos-U
    driver.
    """

    layers: tuple[Layer, ...]
    cycles: int
    clock_hz: float
    sram_bytes: int
    flash_bytes: int
    content: bytes

    @property
    def ms(self) -> float:
        """Milliseconds of one inference."""
        return 1e3 * self.cycles / self.clock_hz

    @property
    def fallbacks(self) -> tuple[Layer, ...]:
        """What the CPU has to run, without the conversion of float inputs and outputs."""
        return tuple(
            layer for layer in self.layers if not layer.on_npu and layer.operator not in EDGES
        )


def compiled(file: Artifact, connection: Vela, *, timeout: float = 600.0) -> Compiled:
    """Compile an int8 .tflite file for the accelerator.

    DependencyError when Vela is not installed; UsageError when the file is no .tflite or holds
    floats only; DeviceError, with the last line that Vela wrote, when it fails or takes longer than
    ``timeout`` seconds, and when it finds nothing in the file that the NPU can run.
    """
    need("ethosu.vela", "'lrfc[npu]'")
    if file.format != "tflite":
        raise UsageError(
            f"{file.path} is an {file.format} file: an Ethos-U takes --target tflite --precision"
            " int8"
        )
    with scratch.folder() as folder:
        source = folder / "model.tflite"
        try:
            shutil.copyfile(file.path, source)
        except OSError as error:
            raise DeviceError(f"{file.path} cannot be read: {error.strerror}") from error
        log = _run(file.path, source, connection, timeout)
        try:
            found = _outcome(source, log)
        except (
            OSError,
            LookupError,
            ArithmeticError,
            ValueError,
            StopIteration,
            csv.Error,
        ) as error:
            # Numbers that its vela.ini leads it to, or files of another version.
            reason = f"{type(error).__name__}: {shown(error)}"
            raise DeviceError(
                f"Vela's figures of {file.path.name} for {connection.accelerator} cannot be read:"
                f" {reason}"
            ) from error
        if not any(layer.on_npu for layer in found.layers):
            if probe.is_float(source.read_bytes()):
                raise UsageError(
                    f"{file.path.name} is a float file and an Ethos-U runs integers: build it with"
                    " --precision int8"
                )
            operators = ", ".join(sorted({layer.operator for layer in found.layers})) or "none"
            raise DeviceError(
                f"nothing in {file.path.name} can run on {connection.accelerator}: its operators are"
                f" {operators}"
            )
    return found


def _outcome(source: Path, log: str) -> Compiled:
    """What Vela wrote beside its source, and printed."""
    summary = _table(next(iter(source.parent.glob("model_summary_*.csv"))))[0]
    shares = flash.by_row(log, source.with_name("model_debug.xml").read_text(encoding="utf-8"))
    layers = tuple(
        _layer(row, share)
        for row, share in zip(_table(source.with_name("model_per-layer.csv")), shares, strict=True)
    )
    kib = {
        key.removesuffix("_memory_used"): float(value)
        for key, value in summary.items()
        if key.endswith("_memory_used")
    }
    clock = float(summary["core_clock"])
    if not 0 < clock < math.inf:
        raise ValueError(f"a clock of {clock:g} Hz")
    return Compiled(
        layers=layers,
        cycles=round(float(summary["cycles_total"])),
        clock_hz=clock,
        sram_bytes=round(1024 * kib["sram"]),
        flash_bytes=round(1024 * sum(value for memory, value in kib.items() if memory != "sram")),
        content=source.with_name("model_vela.tflite").read_bytes(),
    )


def by_op(result: Compiled, graph: Graph) -> dict[str, int]:
    """Cycles of each op of the graph that the file was emitted from; what cannot be told apart goes to the op that gives the result.

    The converter names an operator after the layers that it fuses into it, and Vela keeps the name:
    a convolution's cycles are booked to the convolution, those of an addition with its ReLU to the
    addition. An operator of unknown name is booked under that name.
    """
    cycles = {
        name: sum(layer.cycles for layer in own if layer.on_npu)
        for name, own in owners(result, graph).items()
    }
    return {name: total for name, total in cycles.items() if total}


def owners(result: Compiled, graph: Graph) -> dict[str, list[Layer]]:
    """The operators of each op of the graph, as ``by_op`` books them, those on the CPU among them; without the conversions at the file's edges."""
    found: dict[str, list[Layer]] = defaultdict(list)
    outputs = [ref.op for ref in graph.outputs]
    for layer in result.layers:
        if layer.on_npu or layer.operator not in EDGES:
            found[_owner(layer, graph, outputs)].append(layer)
    return dict(found)


def _owner(layer: Layer, graph: Graph, outputs: Sequence[str]) -> str:
    own = re.sub(r"_(softmax|intermediate).*$", "", layer.name)
    parts = [plain(part, graph.name).split("/")[0] for part in own.split(";")]
    # Layers keep their names; an op of keras.ops has that of TensorFlow's op, which differs in
    # capitals.
    named = [graph.op(name) for part in parts for name in (part, part.lower()) if name in graph]
    if not named:
        # The result carries the name of the function that was converted, and its number:
        # 'PartitionedCall:0', then '1' where it is dequantised.
        result = re.match(r"(?:Stateful)?PartitionedCall:(\d+)", own)
        if result is None:
            return own
        number = result[1] if len(result[1]) == 1 else result[1][:-1]
        named = [graph.op(outputs[min(int(number), len(outputs) - 1)])]
    if layer.operator == "Softmax":
        reader = graph.only_consumer(named[0].name)
        return (
            reader.name
            if reader is not None and reader.kind in ("Activation", "Softmax")
            else named[0].name
        )
    if layer.kind not in _LINEAR or layer.operator not in _LINEAR:
        return named[-1].name
    op = next((op for op in named if _is_linear(op)), named[0])
    while (
        not _is_linear(op) and len(graph.operands(op.name)) == 1
    ):  # the name of what it fuses alone is left
        op = graph.op(graph.operands(op.name)[0].op)
    return op.name


def _is_linear(op: Op) -> bool:
    """Whether such an operator may come from the op; a custom layer or function has only its name."""
    return op.info.has_kernel or "Conv" in op.kind


def version() -> str:
    """Vela's version; DependencyError when it is not installed."""
    need("ethosu.vela", "'lrfc[npu]'")
    return importlib.metadata.version("ethos-u-vela")


def _run(path: Path, source: Path, connection: Vela, timeout: float) -> str:
    """What Vela prints; its files are put beside ``source``."""
    options = {
        "--accelerator-config": connection.accelerator,
        "--system-config": connection.system_config,
        "--memory-mode": connection.memory_mode,
    }
    if (
        connection.config_file is not None
    ):  # a copy: Vela would wait for a pipe, and read a device to its end
        config = source.with_name("vela.ini")
        config.write_bytes(contents(connection.config_file, limit=INI_BYTES, error=DeviceError))
        options["--config"] = str(config)
    # A process of its own: Vela's core is native, and a file that it cannot read takes the process
    # down. -P: nothing is imported from the working folder.
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-P",
        "-m",
        "ethosu.vela",
        str(source),
        "--output-dir",
        str(source.parent),
    ]
    command += ["--verbose-performance", "--verbose-allocation", "--enable-debug-db"]
    command += [part for option in options.items() for part in option]
    try:
        done = subprocess.run(  # noqa: S603 - the command is ours
            command,
            cwd=source.parent,
            env=os.environ | {"TMPDIR": str(source.parent)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"Vela took more than {timeout:g} s to compile {path.name} for {connection.accelerator};"
            " allow more time"
        ) from error
    except OSError as error:
        raise DeviceError(f"Vela cannot be started: {error}") from error
    if done.returncode != 0:
        lines = [
            line.strip()
            for line in done.stdout.splitlines()
            if line.strip() and not line.startswith(("Warning", "Info"))
        ]
        how = (
            f"was killed by {signal.Signals(-done.returncode).name}"
            if done.returncode < 0
            else f"ended with exit code {done.returncode}"
        )
        failure = DeviceError(
            f"Vela {how} on {path.name} for {connection.accelerator}:"
            f" {lines[-1] if lines else 'it said nothing'}"
        )
        failure.add_note(done.stdout)
        raise failure
    return done.stdout


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _layer(row: Mapping[str, str], flash_bytes: int) -> Layer:
    cycles = {
        key: round(float(row[key]))
        for key in (
            "Op Cycles",
            "NPU",
            "SRAM AC",
            "DRAM AC",
            "OnFlash AC",
            "OffFlash AC",
            "MAC Count",
        )
    }
    return Layer(
        name=row["Name"],
        operator=row["Original Operator"],
        kind=row["NNG Operator"],
        on_npu=row["Target"] == "NPU",
        cycles=cycles["Op Cycles"],
        npu_cycles=cycles["NPU"],
        sram_cycles=cycles["SRAM AC"],
        flash_cycles=max(cycles["DRAM AC"], cycles["OnFlash AC"], cycles["OffFlash AC"]),
        macs=cycles["MAC Count"],
        sram_bytes=round(float(row["Staging Usage"])),
        flash_bytes=flash_bytes,
    )
