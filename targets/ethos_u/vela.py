"""Arm's Vela compiler: cycles and memory of an int8 file on an Ethos-U, and the compiled file.

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

#: Operators at the edges of a file with float inputs and outputs. They run on the CPU, and keep no
#: other operator from the NPU.
EDGES = frozenset({"Quantize", "Dequantize"})
#: Vela's names of the operators that multiply and accumulate.
_LINEAR = frozenset({"Conv2D", "DepthwiseConv2D", "FullyConnected", "TransposeConv2D", "MatMul"})


@dataclass(frozen=True)
class Layer:
    """One operator of the compiled network.

    ``name``: of the operator's output in the file, the fused ops' names joined by ';'.
    ``operator``: the TFLite operator that it comes from. ``kind``: the operator that Vela replaced
    it by. ``on_npu``: False when the CPU has to run it, which Vela does not count. ``cycles``: the
    maximum of the cycles of the NPU (``npu_cycles``) and of its memories (``sram_cycles``, and
    ``flash_cycles`` of the external memory). ``sram_bytes``: alive while it runs. ``flash_bytes``:
    its encoded weights with scales, and its constants, such as lookup tables; a tensor that several
    operators read counts for the first, one that the CPU reads for none.
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
    """The result of compiling a file.

    ``cycles``: of one inference on the NPU, ``ms`` at ``clock_hz``, without operators that fall
    back to the CPU. ``sram_bytes``: the peak of activations and buffered weights. ``flash_bytes``:
    the bytes outside the SRAM, that is the ``flash_bytes`` of all layers (and activations in memory
    modes that store them there); Vela does not count the commands. ``content``: the compiled
    .tflite file, with commands, for TFLite Micro with the Ethos-U driver.
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
        """The layers that run on the CPU, without the conversion of float inputs and outputs."""
        return tuple(
            layer for layer in self.layers if not layer.on_npu and layer.operator not in EDGES
        )


def compiled(file: Artifact, connection: Vela, *, timeout: float = 600.0) -> Compiled:
    """Compile an int8 .tflite file for the accelerator.

    DependencyError when Vela is not installed; UsageError when the file is no .tflite or holds
    floats only; DeviceError, with the last line of Vela's output, when it fails or takes longer
    than ``timeout`` seconds, and when the NPU can run nothing in the file.
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
            result = _result(source, log)
        except (
            OSError,
            LookupError,
            ArithmeticError,
            ValueError,
            StopIteration,
            csv.Error,
        ) as error:
            # Numbers that come from an unusual vela.ini, or files of another version.
            reason = f"{type(error).__name__}: {shown(error)}"
            raise DeviceError(
                f"Vela's figures of {file.path.name} for {connection.accelerator} cannot be read:"
                f" {reason}"
            ) from error
        if not any(layer.on_npu for layer in result.layers):
            if probe.is_float(source.read_bytes()):
                raise UsageError(
                    f"{file.path.name} is a float file and an Ethos-U runs integers: build it with"
                    " --precision int8"
                )
            operators = ", ".join(sorted({layer.operator for layer in result.layers})) or "none"
            raise DeviceError(
                f"nothing in {file.path.name} can run on {connection.accelerator}: its operators"
                f" are {operators}"
            )
    return result


def _result(source: Path, log: str) -> Compiled:
    """Read the files that Vela wrote next to its source, and its output."""
    summary = _table(next(iter(source.parent.glob("model_summary_*.csv"))))[0]
    flash_bytes = flash.by_row(log, source.with_name("model_debug.xml").read_text(encoding="utf-8"))
    layers = tuple(
        _layer(row, size)
        for row, size in zip(
            _table(source.with_name("model_per-layer.csv")), flash_bytes, strict=True
        )
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
    """Cycles of each op of the graph that the file was emitted from.

    The converter names an operator after the layers that it fuses into it, and Vela keeps the name:
    the cycles of a convolution are attributed to the convolution, those of an addition with its
    ReLU to the addition, and those of inseparable ops to the last one. An operator of unknown name
    stays under that name.
    """
    cycles = {
        name: sum(layer.cycles for layer in layers if layer.on_npu)
        for name, layers in owners(result, graph).items()
    }
    return {name: total for name, total in cycles.items() if total}


def owners(result: Compiled, graph: Graph) -> dict[str, list[Layer]]:
    """The operators of each op of the graph, attributed as in ``by_op``.

    With those on the CPU, without the conversions at the edges of the file.
    """
    layers: dict[str, list[Layer]] = defaultdict(list)
    outputs = [ref.op for ref in graph.outputs]
    for layer in result.layers:
        if layer.on_npu or layer.operator not in EDGES:
            layers[_owner(layer, graph, outputs)].append(layer)
    return dict(layers)


def _owner(layer: Layer, graph: Graph, outputs: Sequence[str]) -> str:
    """The op that an operator is attributed to; the operator's own name when it is unknown."""
    label = re.sub(r"_(softmax|intermediate).*$", "", layer.name)
    parts = [plain(part, graph.name).split("/")[0] for part in label.split(";")]
    # Layers keep their names; an op of keras.ops has that of TensorFlow's op, in another case.
    named = [graph.op(name) for part in parts for name in (part, part.lower()) if name in graph]
    if not named:
        # The result has the name of the converted function, and its number: 'PartitionedCall:0',
        # then '1' where it is dequantised.
        result = re.match(r"(?:Stateful)?PartitionedCall:(\d+)", label)
        if result is None:
            return label
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
    # Only the name of an op that it fuses may be left.
    while not _is_linear(op) and len(graph.operands(op.name)) == 1:
        op = graph.op(graph.operands(op.name)[0].op)
    return op.name


def _is_linear(op: Op) -> bool:
    """Whether a linear operator may come from the op. A custom layer is judged by its name."""
    return op.info.has_kernel or "Conv" in op.kind


def version() -> str:
    """Vela's version; DependencyError when it is not installed."""
    need("ethosu.vela", "'lrfc[npu]'")
    return importlib.metadata.version("ethos-u-vela")


def _run(path: Path, source: Path, connection: Vela, timeout: float) -> str:
    """Run Vela and return its output. It writes its files next to ``source``.

    ``path``: the original file, for messages.
    """
    command = _command(source, connection)
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
            f"Vela took more than {timeout:g} s to compile {path.name} for"
            f" {connection.accelerator}; allow more time"
        ) from error
    except OSError as error:
        raise DeviceError(f"Vela cannot be started: {error}") from error
    if done.returncode != 0:
        raise _failure(f"{path.name} for {connection.accelerator}", done)
    return done.stdout


def _command(source: Path, connection: Vela) -> list[str]:
    """The command that runs Vela on ``source`` in a process of its own.

    Vela's core is native, and a file that it cannot read takes the process down. With -P nothing is
    imported from the working folder.
    """
    options = {
        "--accelerator-config": connection.accelerator,
        "--system-config": connection.system_config,
        "--memory-mode": connection.memory_mode,
        "--optimise": connection.optimise,
    }
    if connection.arena_cache_bytes is not None:
        options["--arena-cache-size"] = str(connection.arena_cache_bytes)
    if connection.config_file is not None:
        # A copy: Vela would wait for a pipe, and read a device to its end.
        config = source.with_name("vela.ini")
        config.write_bytes(contents(connection.config_file, limit=INI_BYTES, error=DeviceError))
        options["--config"] = str(config)
    return [
        sys.executable,
        "-W",
        "ignore",
        "-P",
        "-m",
        "ethosu.vela",
        str(source),
        "--output-dir",
        str(source.parent),
        "--verbose-performance",
        "--verbose-allocation",
        "--enable-debug-db",
        *(part for option in options.items() for part in option),
    ]


def _failure(task: str, done: subprocess.CompletedProcess[str]) -> DeviceError:
    """The error of a run of Vela that failed, with its output in the notes."""
    lines = [
        line.strip()
        for line in done.stdout.splitlines()
        if line.strip() and not line.startswith(("Warning", "Info"))
    ]
    end = (
        f"was killed by {signal.Signals(-done.returncode).name}"
        if done.returncode < 0
        else f"ended with exit code {done.returncode}"
    )
    failure = DeviceError(f"Vela {end} on {task}: {lines[-1] if lines else 'it printed nothing'}")
    failure.add_note(done.stdout)
    return failure


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _layer(row: Mapping[str, str], flash_bytes: int) -> Layer:
    """The layer in a row of Vela's table."""
    columns = ("Op Cycles", "NPU", "SRAM AC", "DRAM AC", "OnFlash AC", "OffFlash AC", "MAC Count")
    cycles = {key: round(float(row[key])) for key in columns}
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
