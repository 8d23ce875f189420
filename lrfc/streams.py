"""Sets of samples that need not fit in memory: files are mapped, streams are read once into unnamed temporary files that are mapped."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast
from zipfile import ZIP_STORED, ZipFile

import numpy as np
from numpy.typing import NDArray

from lrfc import scratch
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph, Shape

#: Arrays of fewer bytes are held in memory.
LARGE = 256 << 20
#: Bytes of a stream that are kept at most; half of the free space of the temporary folder where that is less.
KEPT = 16 << 30
_ROWS = 4096  # samples that are copied at once


# -- arrays ------------------------------------------------------------------------------------------------------------------------


def is_mapped(array: Any) -> bool:
    """Whether the array's values lie in a mapped file."""
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


def blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The array in runs of rows, to compute with one at a time."""
    return (array[start : start + _ROWS] for start in range(0, max(len(array), 1), _ROWS))


def rows(array: NDArray[Any], index: NDArray[np.intp]) -> NDArray[Any]:
    """``array[index]``. Many rows of a mapped array become a mapped array too: they are copied to an unnamed temporary file (folder: TMPDIR)."""
    if not is_mapped(array) or len(index) * _row_bytes(array) < LARGE:
        return array[index]
    return written((array[index[start : start + _ROWS]] for start in range(0, len(index), _ROWS)), array.dtype, array.shape[1:])


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """The array in float32, mapped when it was mapped and is large."""
    if not is_mapped(array) or array.size * 4 < LARGE:
        return np.asarray(array, np.float32)
    return written((np.asarray(block, np.float32) for block in blocks(array)), np.dtype(np.float32), array.shape[1:])


def written(parts: Iterable[NDArray[Any]], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
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
            f"the data do not fit into the temporary folder {scratch.root().parent}: {error.strerror}; set TMPDIR to a larger one"
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
    """The arrays of an .npz file. Large ones are mapped: in place where they are stored as they are (numpy.savez), otherwise unpacked first.

    Raises what numpy and zipfile raise when the file cannot be read.
    """
    arrays = {}
    with path.open("rb") as raw, ZipFile(raw) as archive, np.load(path, allow_pickle=False) as whole:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if entry.file_size < LARGE:
                arrays[name] = whole[name]
                continue
            with archive.open(entry) as member:
                shape, fortran, dtype = _header(member)
                start = member.tell()
                if fortran or dtype.hasobject:
                    arrays[name] = whole[name]
                elif entry.compress_type == ZIP_STORED:
                    raw.seek(entry.header_offset + 26)  # the local header: lengths of name and extra field, then these, then the file itself
                    lengths = np.frombuffer(raw.read(4), "<u2")
                    arrays[name] = np.memmap(path, dtype, "r", entry.header_offset + 30 + int(lengths.sum()) + start, shape)
                else:
                    pieces = iter(lambda member=member: member.read(16 << 20), b"")  # type: ignore[misc]
                    arrays[name] = written((np.frombuffer(piece, np.uint8) for piece in pieces), np.dtype(np.uint8), ()).view(dtype).reshape(shape)
    return arrays


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return tuple(shape), bool(fortran), dtype


# -- streams -----------------------------------------------------------------------------------------------------------------------


def is_stream(given: Any) -> bool:
    """Whether samples come from it one after the other: a tf.data.Dataset, a keras.utils.PyDataset, a generator or another iterable that is no array."""
    if isinstance(given, np.ndarray | list | tuple | Mapping | str | bytes | Path) or hasattr(given, "__array__"):
        return False
    return hasattr(given, "__iter__") or (hasattr(given, "__getitem__") and hasattr(given, "__len__"))


def read(stream: Any, graph: Graph, where: str, limit: int | None = None) -> tuple[Any, Any, tuple[str, ...]]:
    """All samples of a stream: inputs, targets (None without) and notes, with arrays, tuples or mappings of arrays as the stream packs them.

    Its elements are inputs, (inputs, targets) or (inputs, targets, weights), one sample or one batch each: which, follows from the model's input shape.
    Mappings go by the names of the model's inputs and outputs; one mapping may hold both. Read once, up to ``limit`` samples and ``KEPT`` bytes.
    """
    if getattr(stream, "element_spec", None) is not None and int(stream.cardinality()) == -1 and limit is None:
        raise UsageError(f"{where} repeats for ever: take a number of elements from it, dataset.take(n)")
    elements = iter(_elements(stream, where))
    try:
        first = next(elements, None)
    except UsageError:
        raise
    except Exception as error:  # whatever the user's code raises is the user's to see, in one line
        raise UsageError(f"{where} failed with {type(error).__name__}: {' '.join(str(error).split())}") from error
    if first is None:
        raise UsageError(f"{where}: there are no samples")
    x, y, weighted = _parts(first, graph)
    notes: tuple[str, ...] = (f"{where}: the samples' weights are not used",) if weighted else ()
    single = _is_single(_leaves(x)[0], graph.tensors(graph.inputs[0])[0].shape[1:])
    allowed = min(KEPT, scratch.free() // 2)
    with ExitStack() as stack:
        leaves = [_shaped(leaf, single) for leaf in _leaves((x, y))]
        files = [stack.enter_context(scratch.unnamed()) for _ in leaves]
        count = used = 0
        try:
            for element in chain([first], elements):
                arrays = [_shaped(leaf, single) for leaf in _leaves(_parts(element, graph)[:2])]
                if [a.shape[1:] for a in arrays] != [a.shape[1:] for a in leaves]:
                    raise UsageError(f"{where}: the samples have different shapes, {_shapes(leaves)} and {_shapes(arrays)}; bring them to one")
                kept = arrays if limit is None else [a[: limit - count] for a in arrays]
                for file, array, known in zip(files, kept, leaves, strict=True):
                    _write(file, array.astype(known.dtype, copy=False))
                count, used = count + len(kept[0]), used + sum(a.nbytes for a in kept)
                if limit is not None and count >= limit:
                    break
                if used >= allowed:
                    notes += (f"{where}: only the first {count:,} samples ({used / 2**30:.3g} GiB) are read",)
                    break
        except UsageError:
            raise
        except Exception as error:  # as above
            raise UsageError(f"{where} failed with {type(error).__name__}: {' '.join(str(error).split())}") from error
        found = iter([_mapped(file, leaf.dtype, leaf.shape[1:]) for file, leaf in zip(files, leaves, strict=True)])
    return _packed(x, found), _packed(y, found), notes


def _elements(stream: Any, where: str) -> Iterable[Any]:
    if hasattr(stream, "as_numpy_iterator"):
        return cast("Iterable[Any]", stream.as_numpy_iterator())
    if hasattr(stream, "__getitem__") and hasattr(stream, "__len__"):  # a PyDataset goes round and round when it is iterated
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
        labels = {name: value for name, value in element.items() if name in outputs} or ({"y": element["y"]} if "y" in element else None)
        return {name: element[name] for name in graph.inputs}, labels.get("y", labels) if labels else None, False
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
        return len(shape) == len(wanted) and all(b in (None, a) for a, b in zip(shape, wanted, strict=True))

    if x.ndim and (fits(x.shape[1:]) or (fits((*x.shape[1:], 1)) and not fits(x.shape))):
        return False
    return fits(x.shape) or fits((*x.shape, 1)) or x.ndim <= len(wanted)


def _shaped(leaf: NDArray[Any], single: bool) -> NDArray[Any]:
    leaf = leaf[None] if single else leaf
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf


def _shapes(arrays: list[NDArray[Any]]) -> str:
    return ", ".join(str(a.shape[1:]) for a in arrays)
