"""Flash usage of each operator of a network that Vela compiled: its read-only tensors."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from lrfc.errors import DeviceError

_BLOCK = re.compile(
    r"^Tensor Allocation for read-only NPU tensors:\n.*\n((?: *\d.*\n)*)Allocation Peak Tensor"
    r" Size: (\d+) bytes",
    re.MULTILINE,
)
_TENSOR = re.compile(
    r" *(?P<start>\d+) - +\d+: +(?P<address>0x[0-9a-f]+) - +0x[0-9a-f]+: +(?P<size>\d+): +\d+:"
    r" (?P<format>\w+) *: "
)


class _Tensor(NamedTuple):
    """A read-only tensor.

    ``time``: of the first operator that reads it. ``encoded``: it holds weights and scales in the
    encoding of the NPU, in contrast to plain constants.
    """

    address: int
    time: int
    size: int
    encoded: bool


def by_row(log: str, database: str) -> list[int]:
    """Bytes of read-only tensors of each operator, in the order of Vela's table of layers.

    Their sum is all that Vela allocates for such tensors. A tensor is attributed to the first
    operator that reads it.

    ``log``: Vela's output with --verbose-allocation, the tensors with the time at which each is
    read first, but without operators. ``database``: its file of --enable-debug-db, the operators
    with their times and inputs, but without these tensors. Names do not connect the two, as many
    tensors are Vela's own ('reversed_weights', 'tanh'). Operators that are fused, and those of a
    cascade, have one time; their tensors lie in the order in which they run. DeviceError when
    either text is not as that of Vela 5.
    """
    try:
        readers, rows = _readers(database)
        sizes = [0] * rows
        for tensor in _tensors(log):
            sizes[readers[tensor.time, tensor.encoded].pop(0)] += tensor.size
    except (LookupError, ValueError) as error:
        raise DeviceError(
            f"Vela does not list the contents of flash as version 5.2 does ({error}): pip install"
            " 'ethos-u-vela==5.2.0'"
        ) from error
    return sizes


def _tensors(log: str) -> list[_Tensor]:
    """The read-only tensors by address. ValueError when their sum differs from Vela's."""
    block = _BLOCK.search(log)
    if block is None:
        raise ValueError("no table of read-only tensors")
    tensors: dict[int, _Tensor] = {}
    for parts in map(_TENSOR.match, block[1].split("\n")):
        if parts is not None:
            tensor = _Tensor(
                int(parts["address"], 16),
                int(parts["start"]),
                int(parts["size"]),
                parts["format"] == "Unknown",
            )
            tensors[tensor.address] = min(tensors.get(tensor.address, tensor), tensor)
    total = sum(tensor.size for tensor in tensors.values())
    if total != int(block[2]):
        raise ValueError(f"{total} bytes of tensors in a table of {block[2]}")
    return sorted(tensors.values())


def _readers(database: str) -> tuple[Mapping[tuple[int, bool], list[int]], int]:
    """The rows of the operators that read tensors, and the number of rows.

    Keys are the time of an operator and the ``encoded`` of the tensor; rows are in the order in
    which they run.
    """
    operators = {row["id"]: row["operator"] for row in _table(database, "perf")}
    details = {row["id"]: row for row in _table(database, "perf_debug")}
    inputs: dict[str, list[str]] = defaultdict(list)
    for row in _table(database, "perf_debug_conn"):
        inputs[row["id"]].append(row["input_op_id"])
    readers: dict[tuple[int, bool], list[int]] = defaultdict(list)
    known = {*operators, "-1"}  # any other input is a constant; -1 is the network's
    for number, (name, operator) in enumerate(operators.items()):
        time = int(details[name]["time_index"])
        constants = set(inputs[name]) - known  # one that was read before has its place already
        known |= constants
        readers[time, True] += [number] * bool(details[name]["weight_total_bytes"])
        readers[time, False] += [number] * (len(constants) + (operator == "LUT"))
    return readers, len(operators)


def _table(database: str, name: str) -> list[dict[str, str]]:
    """The rows of a table of the database."""
    text = re.search(rf'<table name="{name}">\s*<!\[CDATA\[\n(.*?)\]\]>', database, re.DOTALL)
    if text is None:
        raise LookupError(f"no table {name}")
    return list(csv.DictReader(text[1].split("\n")))
