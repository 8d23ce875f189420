"""Samples larger than memory: mapped files, and streams copied to mapped temporary files."""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal, cast
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import LrfcError, UsageError
from lrfc.system import memory, scratch
from lrfc.system.reader import opened, shown, user_code
from lrfc.text import size

if TYPE_CHECKING:
    from lrfc.ir.graph import Graph
    from lrfc.ir.op import Shape

#: Arrays of fewer bytes are loaded into memory.
LARGE = 256 << 20
#: Largest number of bytes to read from a stream. Where half of the free space of the temporary
#: folder is less, that is the limit.
KEPT = 16 << 30
#: Largest number of arrays in a file.
MEMBERS = 10_000
_ROWS = 4096  # samples in a block


# -- arrays ----------------------------------------------------------------------------------------


def is_mapped(array: Any) -> bool:
    """Whether the array is a view of a mapped file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the array in blocks of rows."""
    return (array[start : start + _ROWS] for start in range(0, max(len(array), 1), _ROWS))


def rows(array: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
    """Return ``array[index]``.

    Many rows of a mapped array are copied to an unnamed temporary file (folder: TMPDIR), which is
    mapped in turn.
    """
    if not is_mapped(array) or len(index) * _row_bytes(array) < memory.share(LARGE):
        return array[index]
    return written(
        (array[index[start : start + _ROWS]] for start in range(0, len(index), _ROWS)),
        array.dtype,
        array.shape[1:],
    )


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in float32, as a mapped one when it is mapped and large."""
    if not is_mapped(array) or array.size * 4 < memory.share(LARGE):
        return np.asarray(array, np.float32)
    return written(
        (np.asarray(block, np.float32) for block in blocks(array)),
        np.dtype(np.float32),
        array.shape[1:],
    )


def written(
    parts: Iterable[NDArray[Any]], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return the concatenated parts, of shapes (any, *shape), as a read-only array.

    Large ones are mapped from an unnamed temporary file, which vanishes with the array.
    """
    with scratch.unnamed() as file:
        for part in parts:
            _write(file, np.asarray(part, dtype))
        return _mapped(file, dtype, shape)


def _write(file: IO[bytes], part: NDArray[Any]) -> None:
    try:
        file.write(np.ascontiguousarray(part).data)
    except OSError as error:
        raise UsageError(
            f"the data do not fit into the temporary folder {scratch.root().parent}:"
            f" {error.strerror}; set TMPDIR to a larger one"
        ) from error


def _mapped(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    file.flush()
    size = int(np.prod(shape)) * dtype.itemsize
    count = file.tell() // max(size, 1)
    if count == 0:
        return np.empty((0, *shape), dtype)
    array: NDArray[Any] = np.memmap(cast("Any", file), dtype, "r", shape=(count, *shape))
    return array if array.nbytes >= memory.share(LARGE) else np.array(array)


def _row_bytes(array: NDArray[Any]) -> int:
    return array.dtype.itemsize * int(np.prod(array.shape[1:]))


def npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name.

    Large ones are mapped: in place where they are not compressed (numpy.savez), otherwise after
    unpacking them to a temporary file. Members other than .npy are ignored.

    UsageError when the file cannot be read, or its arrays do not fit into memory and the temporary
    folder.
    """
    what = f"data file '{shown(path)}'"
    arrays: dict[str, NDArray[Any]] = {}
    way_out = "write it with numpy.savez(path, x=..., y=...)"
    with (
        opened(path, limit=sys.maxsize) as raw,
        _readable(f"{what} cannot be read as .npz", way_out),
        ZipFile(raw) as archive,
    ):
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        if len(entries) > MEMBERS:
            raise UsageError(f"{what} holds {len(entries):,} arrays; at most {MEMBERS:,} are read")
        total = sum(entry.file_size for entry in entries if entry.compress_type != ZIP_STORED)
        limit = _byte_limit()
        if total > limit:
            raise UsageError(
                f"{what} unpacks to {total:,} bytes; at most {limit:,} fit here: save it with"
                " numpy.savez, which is mapped"
            )
        cumulative = 0  # bytes of the arrays so far
        for entry in entries:
            cumulative += entry.file_size
            with archive.open(entry) as member:
                array = _member(raw, entry, member, in_memory=cumulative < memory.share(LARGE))
            arrays[entry.filename.removesuffix(".npy")] = array
    return arrays


def _member(raw: BinaryIO, entry: ZipInfo, member: IO[bytes], *, in_memory: bool) -> NDArray[Any]:
    """Return one array of an .npz file ``raw``."""
    header = _header(member, entry.file_size)
    if in_memory:
        return header.array(np.frombuffer(member.read(), np.uint8))
    if entry.compress_type == ZIP_STORED:
        start = member.tell()
        # Bytes 26 to 30 of the local header are the lengths of the name and of the extra field,
        # which follow it; behind them lies the .npy file.
        raw.seek(entry.header_offset + 26)
        lengths = np.frombuffer(raw.read(4), "<u2")
        return header.mapped(raw, entry.header_offset + 30 + int(lengths.sum()) + start)
    pieces = iter(partial(member.read, 16 << 20), b"")
    values = (np.frombuffer(piece, np.uint8) for piece in pieces)
    return header.array(written(values, np.dtype(np.uint8), ()))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of an .npz file by name, from their headers alone.

    UsageError as from ``npz``.
    """
    what = f"data file '{shown(path)}' cannot be read as .npz"
    result: dict[str, tuple[int, ...]] = {}
    with (
        opened(path, limit=sys.maxsize) as raw,
        _readable(what, "write it with numpy.savez(path, x=..., y=...)"),
        ZipFile(raw) as archive,
    ):
        for entry in archive.infolist()[:MEMBERS]:
            if entry.filename.endswith(".npy"):
                name = entry.filename.removesuffix(".npy")
                with archive.open(entry) as member:
                    result[name] = _header(member, entry.file_size).shape
    return result


def npy(path: Path) -> NDArray[Any]:
    """Return the array of an .npy file, mapped; UsageError when the file cannot be read."""
    with (
        opened(path, limit=sys.maxsize) as raw,
        _readable(
            f"data file '{shown(path)}' cannot be read as .npy",
            "write it with numpy.save(path, array) from plain numbers",
        ),
    ):
        return _header(raw, os.fstat(raw.fileno()).st_size).mapped(raw, raw.tell())


class _NumbersError(Exception):
    """A fault in the bytes of an array; its text is for the user."""


@contextmanager
def _readable(start: str, way_out: str) -> Iterator[None]:
    """Context manager: turn the errors of reading a damaged file into UsageError."""
    try:
        yield
    except LrfcError:
        raise
    except _NumbersError as error:
        raise UsageError(f"{start}: {error}; {way_out}") from error
    except Exception as error:  # damaged bytes make numpy, zipfile and zlib raise any type
        raise UsageError(
            f"{start}: {shown(' '.join(str(error).split())) or type(error).__name__}; {way_out}"
        ) from error


@dataclass(frozen=True)
class _Header:
    """The header of an .npy file."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]

    def array(self, values: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the array with these bytes."""
        return values.view(self.dtype).reshape(self.shape, order=self.order)

    def mapped(self, file: IO[bytes], offset: int) -> NDArray[Any]:
        """Return the array at an offset of a file, mapped."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(cast("Any", file), self.dtype, "r", offset, self.shape, self.order)


def _header(stream: IO[bytes], size: int) -> _Header:
    """Read the header of a stream of ``size`` bytes.

    _NumbersError unless it is followed by plain numbers that fill the rest of the stream.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise _NumbersError("it holds Python objects: save plain numeric arrays")
    valid_shape = not any(isinstance(n, bool) or n < 0 for n in shape)
    if dtype.kind not in "biufcSU" or not dtype.itemsize or not valid_shape:
        raise _NumbersError(
            f"it holds {shown(dtype, 60)} of shape {shown(shape, 60)}, not plain numbers"
        )
    expected, rest = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if expected != rest:
        raise _NumbersError(
            f"an array of shape {shown(shape, 60)} takes {expected:,} bytes, and there are {rest:,}"
        )
    return _Header(tuple(shape), "F" if fortran else "C", dtype)


def _byte_limit() -> int:
    """Return the largest number of bytes to write to temporary files."""
    return min(KEPT, scratch.free() // 2)


# -- streams ---------------------------------------------------------------------------------------


def is_stream(value: Any) -> bool:
    """Whether the value yields samples: a tf.data.Dataset, a PyDataset, a generator, an iterable.

    Arrays, sequences, mappings and paths are no streams.
    """
    if isinstance(value, np.ndarray | list | tuple | Mapping | str | bytes | Path):
        return False
    if hasattr(value, "__array__"):
        return False
    return hasattr(value, "__iter__") or _is_indexed(value)


def _is_indexed(value: Any) -> bool:
    return hasattr(value, "__getitem__") and hasattr(value, "__len__")


def read(
    stream: Any, graph: Graph, where: str, limit: int | None = None
) -> tuple[Any, Any, Any, tuple[str, ...]]:
    """Return the samples of a stream: inputs, targets and weights (None without), and notes.

    Inputs and targets are arrays, or tuples or mappings of arrays, as in the stream. The elements
    of the stream are inputs, (inputs, targets) or (inputs, targets, weights). Each is one sample or
    one batch, as the input shape of the model shows. Mappings use the names of the model's inputs
    and outputs; one mapping may hold both. The stream is read once, up to ``limit`` samples and
    ``KEPT`` bytes.
    """
    endless = getattr(stream, "element_spec", None) is not None and int(stream.cardinality()) == -1
    if endless and limit is None:
        raise UsageError(
            f"{where} repeats for ever: take a number of elements from it, dataset.take(n)"
        )
    with user_code(where):
        elements = iter(_elements(stream, where))
        first = next(elements, None)
        if first is None:
            raise UsageError(f"{where}: there are no samples")
        parts = _parts(first, graph)
        inputs, leaves = _leaves(parts[0]), _leaves(parts)
    if not inputs:
        raise UsageError(
            f"{where}: an element holds no inputs, only {type(first).__name__}; give (x, y) or x"
        )
    single = _is_single(inputs[0], graph.tensors(graph.inputs[0])[0].shape[1:])
    batches = (
        [_shaped(leaf, single, where) for leaf in _leaves(_parts(element, graph))]
        for element in chain([first], elements)
    )
    templates = [_shaped(leaf, single, where) for leaf in leaves]
    arrays, note = _copied(batches, templates, where, limit)
    remaining = iter(arrays)
    x, y, weights = (_packed(part, remaining) for part in parts)
    return x, y, weights, note


def _copied(
    batches: Iterator[list[NDArray[Any]]],
    templates: list[NDArray[Any]],
    where: str,
    limit: int | None,
) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Copy batches to temporary files; return the mapped arrays, and a note if not all were read.

    ``templates``: arrays with the dtypes and the sample shapes of a batch. UsageError for a batch
    of other shapes.
    """
    notes: tuple[str, ...] = ()
    byte_limit = _byte_limit()
    with ExitStack() as stack:
        files = [stack.enter_context(scratch.unnamed()) for _ in templates]
        count = stored = 0  # samples and bytes
        with user_code(where):
            for batch in batches:
                if [a.shape[1:] for a in batch] != [a.shape[1:] for a in templates]:
                    raise UsageError(
                        f"{where}: the samples have different shapes, {_shapes(templates)} and"
                        f" {_shapes(batch)}; give all of them one shape"
                    )
                arrays = batch if limit is None else [a[: limit - count] for a in batch]
                for file, array, template in zip(files, arrays, templates, strict=True):
                    _write(file, array.astype(template.dtype, copy=False))
                count, stored = count + len(arrays[0]), stored + sum(a.nbytes for a in arrays)
                if limit is not None and count >= limit:
                    break
                if stored >= byte_limit:
                    notes = (
                        f"{where}: only the first {count:,} samples ({size(stored)}) are read",
                    )
                    break
        mapped = [
            _mapped(file, template.dtype, template.shape[1:])
            for file, template in zip(files, templates, strict=True)
        ]
    return mapped, notes


def _elements(stream: Any, where: str) -> Iterable[Any]:
    if hasattr(stream, "as_numpy_iterator"):
        return cast("Iterable[Any]", stream.as_numpy_iterator())
    if _is_indexed(stream):  # iterating over a PyDataset never ends
        count = getattr(stream, "num_batches", None) or len(stream)
        return (stream[i] for i in range(count))
    return cast("Iterable[Any]", islice(stream, None))


def _parts(element: Any, graph: Graph) -> tuple[Any, Any, Any]:
    """Return inputs, targets and weights, None where there are none."""
    if isinstance(element, tuple) and len(element) <= 3:
        x, y, weights = (*element, None, None)[:3]
        return x, y, weights
    if isinstance(element, Mapping) and set(graph.inputs) < set(element):
        outputs = {ref.op for ref in graph.outputs}
        labels: Any = {name: value for name, value in element.items() if name in outputs}
        inputs = {name: element[name] for name in graph.inputs}
        return inputs, labels.get("y", labels) if labels else element.get("y"), None
    if isinstance(element, Mapping) and "x" in element:
        return element["x"], element.get("y"), None
    return element, None, None


def _leaves(structure: Any) -> list[NDArray[Any]]:
    if structure is None:
        return []
    if isinstance(structure, Mapping):
        return [leaf for name in sorted(structure) for leaf in _leaves(structure[name])]
    if isinstance(structure, list | tuple):
        return [leaf for part in structure for leaf in _leaves(part)]
    return [np.asarray(structure)]


def _packed(structure: Any, leaves: Iterator[NDArray[Any]]) -> Any:
    if structure is None:
        return None
    if isinstance(structure, Mapping):
        return {name: _packed(structure[name], leaves) for name in sorted(structure)}
    if isinstance(structure, list | tuple):
        return tuple(_packed(part, leaves) for part in structure)
    return next(leaves)


def _is_single(x: NDArray[Any], expected: Shape) -> bool:
    """Whether the first input of an element is a sample, not a batch of samples."""

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(expected) and all(
            b in (None, a) for a, b in zip(shape, expected, strict=True)
        )

    if x.ndim and (fits(x.shape[1:]) or (fits((*x.shape[1:], 1)) and not fits(x.shape))):
        return False
    return fits(x.shape) or fits((*x.shape, 1)) or x.ndim <= len(expected)


def _shaped(leaf: NDArray[Any], single: bool, where: str) -> NDArray[Any]:
    """Return a leaf of an element as a batch of numbers, float64 as float32."""
    if leaf.dtype.kind not in "biuf":
        raise UsageError(f"{where}: a sample holds {shown(leaf.dtype, 60)}; give numbers")
    leaf = leaf[None] if single or not leaf.ndim else leaf
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf


def _shapes(arrays: list[NDArray[Any]]) -> str:
    return ", ".join(str(a.shape[1:]) for a in arrays)
