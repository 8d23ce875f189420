"""Sets of samples that need not fit in memory: files are mapped, streams are read once into unnamed temporary files that are mapped."""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

from lrfc.errors import LrfcError, UsageError
from lrfc.system import scratch
from lrfc.system.reader import opened, shown, user_code
from lrfc.text import size

if TYPE_CHECKING:
    from lrfc.ir.graph import Graph
    from lrfc.ir.op import Shape

#: Arrays of fewer bytes are held in memory.
LARGE = 256 << 20
#: Bytes of a stream that are kept at most; half of the free space of the temporary folder where
#: that is less.
KEPT = 16 << 30
#: Arrays that a file may hold.
MEMBERS = 10_000
_ROWS = 4096  # samples that are copied at once


# -- arrays ----------------------------------------------------------------------------------------


def is_mapped(array: Any) -> bool:
    """Whether the array's values lie in a mapped file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The array in runs of rows, to compute with one at a time."""
    return (array[start : start + _ROWS] for start in range(0, max(len(array), 1), _ROWS))


def rows(array: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
    """``array[index]``.

    Many rows of a mapped array become a mapped array too: they are copied to an unnamed temporary
    file (folder: TMPDIR).
    """
    if not is_mapped(array) or len(index) * _row_bytes(array) < LARGE:
        return array[index]
    return written(
        (array[index[start : start + _ROWS]] for start in range(0, len(index), _ROWS)),
        array.dtype,
        array.shape[1:],
    )


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """The array in float32, mapped when it was mapped and is large."""
    if not is_mapped(array) or array.size * 4 < LARGE:
        return np.asarray(array, np.float32)
    return written(
        (np.asarray(block, np.float32) for block in blocks(array)),
        np.dtype(np.float32),
        array.shape[1:],
    )


def written(
    parts: Iterable[NDArray[Any]], dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """The parts (any, *shape) one after the other, as a read-only array over an unnamed temporary file, which goes when the array goes."""
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
    return array if array.nbytes >= LARGE else np.array(array)


def _row_bytes(array: NDArray[Any]) -> int:
    return array.dtype.itemsize * int(np.prod(array.shape[1:]))


def npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file, by name.

    Large ones are mapped: in place where they are stored as they are (numpy.savez), otherwise
    unpacked first.

    UsageError when the file cannot be read, or its arrays do not fit into memory and the temporary
    folder; a member that is no .npy is passed over.
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
        total, allowed = (
            sum(entry.file_size for entry in entries if entry.compress_type != ZIP_STORED),
            _room(),
        )
        if total > allowed:
            raise UsageError(
                f"{what} unpacks to {total:,} bytes; at most {allowed:,} fit here: save it with"
                " numpy.savez, which is mapped"
            )
        held = 0
        for entry in entries:
            held += entry.file_size
            with archive.open(entry) as member:
                header = _header(member, entry.file_size)
                start = member.tell()
                if held < LARGE:
                    array = header.array(np.frombuffer(member.read(), np.uint8))
                elif entry.compress_type == ZIP_STORED:
                    raw.seek(
                        entry.header_offset + 26
                    )  # the local header: lengths of name and extra field, then these, then the file itself
                    lengths = np.frombuffer(raw.read(4), "<u2")
                    array = header.mapped(
                        raw, entry.header_offset + 30 + int(lengths.sum()) + start
                    )
                else:
                    pieces = iter(lambda member=member: member.read(16 << 20), b"")  # type: ignore[misc]
                    array = header.array(
                        written(
                            (np.frombuffer(piece, np.uint8) for piece in pieces),
                            np.dtype(np.uint8),
                            (),
                        )
                    )
            arrays[entry.filename.removesuffix(".npy")] = array
    return arrays


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of an .npz file, by name, from their headers alone.

    UsageError as from ``npz``.
    """
    what = f"data file '{shown(path)}' cannot be read as .npz"
    found: dict[str, tuple[int, ...]] = {}
    with (
        opened(path, limit=sys.maxsize) as raw,
        _readable(what, "write it with numpy.savez(path, x=..., y=...)"),
        ZipFile(raw) as archive,
    ):
        for entry in archive.infolist()[:MEMBERS]:
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as member:
                    found[entry.filename.removesuffix(".npy")] = _header(
                        member, entry.file_size
                    ).shape
    return found


def npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped. UsageError when the file cannot be read."""
    with (
        opened(path, limit=sys.maxsize) as raw,
        _readable(
            f"data file '{shown(path)}' cannot be read as .npy",
            "write it with numpy.save(path, array) from plain numbers",
        ),
    ):
        return _header(raw, os.fstat(raw.fileno()).st_size).mapped(raw, raw.tell())


class _NumbersError(Exception):
    """What is wrong with the bytes of an array, for the user."""


@contextmanager
def _readable(start: str, way_out: str) -> Iterator[None]:
    """What a damaged file raises becomes UsageError."""
    try:
        yield
    except LrfcError:
        raise
    except _NumbersError as error:
        raise UsageError(f"{start}: {error}; {way_out}") from error
    except Exception as error:  # numpy, zipfile and zlib raise whatever the bytes lead them to
        raise UsageError(
            f"{start}: {shown(' '.join(str(error).split())) or type(error).__name__}; {way_out}"
        ) from error


@dataclass(frozen=True)
class _Header:
    """What stands before the values of an .npy file."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]

    def array(self, values: NDArray[np.uint8]) -> NDArray[Any]:
        """From its bytes."""
        return values.view(self.dtype).reshape(self.shape, order=self.order)

    def mapped(self, file: IO[bytes], offset: int) -> NDArray[Any]:
        """From its place in a file."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(cast("Any", file), self.dtype, "r", offset, self.shape, self.order)


def _header(stream: IO[bytes], size: int) -> _Header:
    """Read the header. _NumbersError unless plain numbers follow, just as many as the rest of so many bytes holds."""
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise _NumbersError("it holds Python objects: save plain numeric arrays")
    if (
        dtype.kind not in "biufcSU"
        or not dtype.itemsize
        or any(isinstance(n, bool) or n < 0 for n in shape)
    ):
        raise _NumbersError(
            f"it holds {shown(dtype, 60)} of shape {shown(shape, 60)}, not plain numbers"
        )
    wanted, there = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if wanted != there:
        raise _NumbersError(
            f"an array of shape {shown(shape, 60)} takes {wanted:,} bytes, and there are {there:,}"
        )
    return _Header(tuple(shape), "F" if fortran else "C", dtype)


def _room() -> int:
    """Bytes that may come into temporary files."""
    return min(KEPT, scratch.free() // 2)


# -- streams ---------------------------------------------------------------------------------------


def is_stream(given: Any) -> bool:
    """Whether samples come from it one after the other: a tf.data.Dataset, a keras.utils.PyDataset, a generator or another iterable that is no array."""
    if isinstance(given, np.ndarray | list | tuple | Mapping | str | bytes | Path) or hasattr(
        given, "__array__"
    ):
        return False
    return hasattr(given, "__iter__") or (
        hasattr(given, "__getitem__") and hasattr(given, "__len__")
    )


def read(
    stream: Any, graph: Graph, where: str, limit: int | None = None
) -> tuple[Any, Any, tuple[str, ...]]:
    """All samples of a stream: inputs, targets (None without) and notes, with arrays, tuples or mappings of arrays as the stream packs them.

    Its elements are inputs, (inputs, targets) or (inputs, targets, weights), one sample or one
    batch each: which, follows from the model's input shape. Mappings go by the names of the model's
    inputs and outputs; one mapping may hold both. Read once, up to ``limit`` samples and ``KEPT``
    bytes.
    """
    if (
        getattr(stream, "element_spec", None) is not None
        and int(stream.cardinality()) == -1
        and limit is None
    ):
        raise UsageError(
            f"{where} repeats for ever: take a number of elements from it, dataset.take(n)"
        )
    with user_code(where):
        elements = iter(_elements(stream, where))
        first = next(elements, None)
        if first is None:
            raise UsageError(f"{where}: there are no samples")
        x, y, weighted = _parts(first, graph)
        heads = [_leaves(x), _leaves((x, y))]
    if not heads[0]:
        raise UsageError(
            f"{where}: an element holds no inputs, only {type(first).__name__}; give (x, y) or x"
        )
    notes: tuple[str, ...] = (f"{where}: the samples' weights are not used",) if weighted else ()
    single = _is_single(heads[0][0], graph.tensors(graph.inputs[0])[0].shape[1:])
    allowed = _room()
    with ExitStack() as stack:
        leaves = [_shaped(leaf, single, where) for leaf in heads[1]]
        files = [stack.enter_context(scratch.unnamed()) for _ in leaves]
        count = used = 0
        with user_code(where):
            for element in chain([first], elements):
                arrays = [
                    _shaped(leaf, single, where) for leaf in _leaves(_parts(element, graph)[:2])
                ]
                if [a.shape[1:] for a in arrays] != [a.shape[1:] for a in leaves]:
                    raise UsageError(
                        f"{where}: the samples have different shapes, {_shapes(leaves)} and"
                        f" {_shapes(arrays)}; bring them to one"
                    )
                kept = arrays if limit is None else [a[: limit - count] for a in arrays]
                for file, array, known in zip(files, kept, leaves, strict=True):
                    _write(file, array.astype(known.dtype, copy=False))
                count, used = count + len(kept[0]), used + sum(a.nbytes for a in kept)
                if limit is not None and count >= limit:
                    break
                if used >= allowed:
                    notes += (
                        (f"{where}: only the first {count:,} samples ({size(used)}) are read"),
                    )
                    break
        found = iter(
            [
                _mapped(file, leaf.dtype, leaf.shape[1:])
                for file, leaf in zip(files, leaves, strict=True)
            ]
        )
    return _packed(x, found), _packed(y, found), notes


def _elements(stream: Any, where: str) -> Iterable[Any]:
    if hasattr(stream, "as_numpy_iterator"):
        return cast("Iterable[Any]", stream.as_numpy_iterator())
    if hasattr(stream, "__getitem__") and hasattr(
        stream, "__len__"
    ):  # a PyDataset goes round and round when it is iterated
        count = getattr(stream, "num_batches", None) or len(stream)
        return (stream[i] for i in range(count))
    return cast("Iterable[Any]", islice(stream, None))


def _parts(element: Any, graph: Graph) -> tuple[Any, Any, bool]:
    """Inputs, targets and whether there are weights."""
    if isinstance(element, tuple) and len(element) <= 3:
        x, y, weights = (*element, None, None)[:3]
        return x, y, weights is not None
    if isinstance(element, Mapping) and set(graph.inputs) < set(element):
        outputs = {ref.op for ref in graph.outputs}
        labels = {name: value for name, value in element.items() if name in outputs} or (
            {"y": element["y"]} if "y" in element else None
        )
        return (
            {name: element[name] for name in graph.inputs},
            labels.get("y", labels) if labels else None,
            False,
        )
    if isinstance(element, Mapping) and "x" in element:
        return element["x"], element.get("y"), False
    return element, None, False


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


def _is_single(x: NDArray[Any], wanted: Shape) -> bool:
    """Whether the first input of an element is one sample, not a batch of them."""

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(wanted) and all(
            b in (None, a) for a, b in zip(shape, wanted, strict=True)
        )

    if x.ndim and (fits(x.shape[1:]) or (fits((*x.shape[1:], 1)) and not fits(x.shape))):
        return False
    return fits(x.shape) or fits((*x.shape, 1)) or x.ndim <= len(wanted)


def _shaped(leaf: NDArray[Any], single: bool, where: str) -> NDArray[Any]:
    if leaf.dtype.kind not in "biuf":
        raise UsageError(f"{where}: a sample holds {shown(leaf.dtype, 60)}; give numbers")
    leaf = leaf[None] if single or not leaf.ndim else leaf
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf


def _shapes(arrays: list[NDArray[Any]]) -> str:
    return ", ".join(str(a.shape[1:]) for a in arrays)
