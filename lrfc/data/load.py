"""Load samples: read a source, check it against the model, and split it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.data import checks, mapped, readers
from lrfc.data.dataset import FEW, Data, Split
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.op import Shape, Tensor
from lrfc.system import reader
from lrfc.system.spans import span


@span("data")
def load_data(
    spec: Any,
    graph: Graph,
    *,
    test: Any = None,
    seed: int,
    limit: int | None = None,
    stage: Callable[[str, int], Callable[[int], None]] = lambda title, total: lambda steps: None,
) -> Data:
    """Load the data that ``spec`` names, check them against the model, and split them.

    ``spec``: 'digits', an .npz file, a folder of .npy files (x.npy, y.npy, ...) or of class
    folders, 'package.module:function', or (from Python) such a function or its result
    (readers.from_object): arrays, a tf.data.Dataset, a keras.utils.PyDataset, a generator; None
    for synthetic inputs (lrfc.data.synthetic). ``test``: a second source, used for the reported
    scores only. ``limit``: the largest number of samples in each split. ``stage``: shows the
    progress of synthetic inputs, as in ``lrfc.state.Progress``.

    Without validation samples, 10 % of the training samples (at most 5,000) are set aside by
    ``seed``, in proportion of the classes. Of at most ``FEW`` samples none are set aside: they are
    the validation samples too. UsageError for data that do not fit the model; implausible data are
    a note.

    Sets may be larger than memory: .npy files, files of numpy.savez and numpy.memmap are mapped; a
    stream is read once into a temporary file; the shuffled splits of a large set are temporary
    files too (folder: TMPDIR). Labels are held in memory. The same seed splits the same arrays in
    the same way; a stream whose order changes is split differently each time.
    """
    raw = {} if spec is None else _read(spec, graph, seed, limit)
    notes, preprocessing = raw.pop("notes", ()), raw.pop("preprocessing", None)
    if spec is not None and "train" not in raw:
        raise UsageError(
            f"data '{_name(spec)}' has test samples only: give 'x' (and 'y') to calibrate on"
        )
    if test is not None:
        other = _read(test, graph, seed, limit)
        notes += other.pop("notes")
        other.pop("preprocessing")
        raw["test"] = other.get("test") or other["train"]
    rng = np.random.default_rng(seed)
    if spec is None:
        raw["train"], raw["val"] = _synthetic(graph, seed, limit, stage)
    else:
        raw |= _training_and_validation(raw, _name(spec), rng, limit)
    if "test" in raw:
        raw["test"] = raw["test"].take(np.sort(_order(raw["test"], rng)[:limit]))
    notes += _overlaps(raw)
    for part in raw.values():
        checks.check_tokens(graph, part)
    if spec is not None:
        notes += checks.doubts(graph, raw["train"])
    data = Data(
        "synthetic" if spec is None else _name(spec),
        raw["train"],
        raw["val"],
        raw.get("test", raw["val"]),
        synthetic=spec is None,
        notes=notes,
        preprocessing=preprocessing,
    )
    return _with_note_on_few(data)


def _training_and_validation(
    raw: Mapping[str, Split], name: str, rng: np.random.Generator, limit: int | None
) -> dict[str, Split]:
    """Return the training and validation splits, in random order."""
    if "val" in raw:
        return {part: raw[part].take(_order(raw[part], rng)[:limit]) for part in ("train", "val")}
    train = raw["train"]
    if len(train) > FEW:
        training, validation = _halves(train, rng, limit)
        return {"train": training, "val": validation}
    both = train.take(_order(train, rng)[:limit])
    if len(both) < 2:
        raise UsageError(
            f"data '{name}' has 1 training sample, which is too few: give at least 16,"
            " better some hundred"
        )
    return {"train": both, "val": both}


def _with_note_on_few(data: Data) -> Data:
    if not data.few:
        return data
    note = (
        f"only {len(data.train)} training samples: BatchNorm statistics are re-estimated and layers"
        " reconstructed in closed form, but nothing is trained"
    )
    both = "; they are the validation samples too" if data.validation is data.train else ""
    return replace(data, notes=(*data.notes, note + both))


def _name(spec: Any) -> str:
    if callable(spec):
        return getattr(spec, "__qualname__", type(spec).__name__)
    if isinstance(spec, str | Path):
        return str(spec)
    if hasattr(spec, "element_spec"):
        return "tf.data.Dataset"
    return type(spec).__name__ if mapped.is_stream(spec) else "arrays"


def _read(spec: Any, graph: Graph, seed: int, limit: int | None) -> dict[str, Any]:
    """Return the checked splits by part, with the notes and the preprocessing of the source."""
    where = _name(spec)
    if isinstance(spec, str | Path):
        raw = readers.read(str(spec), graph, seed=seed, limit=limit)
    else:
        result = spec
        if callable(spec):
            with reader.user_code(f"data '{where}'"):
                result = spec()
        raw = readers.from_object(result, graph, f"data '{where}'", limit)
        raw = replace(
            raw, preprocessing=f"as given by {where}" if callable(spec) else "as given from Python"
        )
    return {
        "notes": raw.notes,
        "preprocessing": raw.preprocessing,
        **{name: _split(part, graph, f"{where} ({name})") for name, part in raw.parts.items()},
    }


def _split(part: readers.Part, graph: Graph, where: str) -> Split:
    x, y, weights = part
    inputs = tuple(
        _input(a, graph.tensors(name)[0], f"{where}: input '{name}'")
        for a, name in _paired(x, graph.inputs, f"{where}: the inputs")
    )
    outputs = tuple(ref.op for ref in graph.outputs)
    targets = None
    if y is not None:
        tensors = [graph.tensor(ref) for ref in graph.outputs]
        paired = zip(_paired(y, outputs, f"{where}: the labels"), tensors, strict=True)
        targets = tuple(
            _target(a, tensor, f"{where}: labels of '{name}'") for (a, name), tensor in paired
        )
    lengths = [len(a) for a in (*inputs, *(targets or ()))]
    if len(set(lengths)) > 1:
        raise UsageError(
            f"{where}: the arrays hold {', '.join(map(str, lengths))} samples; inputs and labels"
            " must have the same number"
        )
    if lengths[0] == 0:
        raise UsageError(f"{where}: there are no samples")
    if weights is None:
        return Split(inputs, targets)
    if targets is None:
        raise UsageError(f"{where}: the samples have weights, but no labels that these are for")
    return Split(inputs, targets, _weights(weights, lengths[0], where))


def _weights(values: Any, count: int, where: str) -> NDArray[np.float32]:
    """Return the weights of the samples; UsageError where they cannot be."""
    where = f"{where}: the weights of the samples"
    weights = _finite(np.asarray(values), where).astype(np.float32)
    if weights.size == count:
        weights = weights.reshape(count)
    if weights.shape != (count,):
        raise UsageError(f"{where} have shape {weights.shape}; give one for each of {count:,}")
    if (weights < 0).any() or not weights.any():
        raise UsageError(f"{where} are negative or all 0; give positive numbers")
    return weights


def _paired(values: Any, names: tuple[str, ...], where: str) -> list[tuple[NDArray[Any], str]]:
    """Return an array for each name, from a mapping, a sequence or a single array."""
    if isinstance(values, Mapping):
        if set(values) != set(names):
            raise UsageError(
                f"{where} are named {', '.join(map(str, values))}, the model has {', '.join(names)}"
            )
        values = [values[name] for name in names]
    elif not (isinstance(values, list | tuple) and len(names) > 1):
        values = [values]
    if len(values) != len(names):
        raise UsageError(
            f"{where}: {len(values)} arrays for {', '.join(names)}; name the arrays like these"
        )
    try:
        arrays = [np.asarray(value) for value in values]
    except ValueError as error:
        raise UsageError(f"{where} are not arrays of samples of one shape: {error}") from error
    if any(a.ndim == 0 for a in arrays):
        raise UsageError(f"{where}: a single value is no array of samples")
    return list(zip(arrays, names, strict=True))


def _finite(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Return the array, float64 as float32; UsageError unless all values are finite numbers."""
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{where} has dtype {array.dtype}; give numbers")
    array = mapped.as_float32(array) if array.dtype == np.float64 else array
    if array.dtype.kind == "f" and not all(
        np.isfinite(block).all() for block in mapped.blocks(array)
    ):
        finite = [
            np.isfinite(block.reshape(len(block), -1)).all(axis=1) for block in mapped.blocks(array)
        ]
        bad = np.flatnonzero(~np.concatenate(finite))
        raise UsageError(
            f"{where} has NaN or infinite values in {len(bad):,} samples, the first is number"
            f" {bad[0]}; clean the data"
        )
    return array


def _input(array: NDArray[Any], tensor: Tensor, where: str) -> NDArray[Any]:
    """Return the array as samples for an input of the model; UsageError where it does not fit."""
    shape, expected = array.shape[1:], tensor.shape[1:]
    if _fits((*shape, 1), expected):  # the channel axis of grey images
        array = array[..., None]
    elif not _fits(shape, expected):
        raise UsageError(
            f"{where} has samples of shape {shape}, the model expects"
            f" {_shown(expected)}{_remedy(shape, expected)}"
        )
    if tensor.dtype.startswith("int") and array.dtype.kind == "f":
        raise UsageError(f"{where} has dtype {array.dtype}, the model expects {tensor.dtype}")
    return _finite(array, where)


def _fits(shape: Shape, expected: Shape) -> bool:
    return len(shape) == len(expected) and all(
        b in (None, a) for a, b in zip(shape, expected, strict=True)
    )


def _shown(shape: Shape) -> str:
    sizes = ", ".join("any" if n is None else str(n) for n in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _remedy(shape: tuple[int, ...], expected: Shape) -> str:
    """Return the expression that brings samples to the expected shape; "" where there is none."""
    if len(shape) == len(expected) == 3:
        if _fits((*shape[1:], shape[0]), expected):
            return "; the channels come first: x.transpose(0, 2, 3, 1)"
        if _fits((shape[2], *shape[:2]), expected):
            return "; the channels come last: x.transpose(0, 3, 1, 2)"
        if shape[2] == expected[2]:
            return f"; resize the images: keras.ops.image.resize(x, ({expected[0]}, {expected[1]}))"
        if {shape[2], expected[2]} == {1, 3} and _fits(shape[:2], expected[:2]):
            return (
                "; grey and colour: numpy.repeat(x, 3, axis=-1)"
                if expected[2] == 3
                else "; colour and grey: x.mean(axis=-1, keepdims=True)"
            )
    if len(shape) == len(expected) == 2 and _fits(shape[::-1], expected):
        return "; the axes are swapped: x.transpose(0, 2, 1)"
    if None not in expected and np.prod(shape) == np.prod([n or 0 for n in expected]):
        return f"; only a reshape is missing: x.reshape(-1, {', '.join(map(str, expected))})"
    return ""


def _target(array: NDArray[Any], tensor: Tensor, where: str) -> NDArray[Any]:
    """Return labels for an output as class indices or values, as ``Split`` defines them.

    One-hot labels become indices.
    """
    array, expected = _finite(array, where), tensor.shape[1:]
    classes: int | None = expected[-1] if expected else 1
    if expected and classes != 1 and _fits(array.shape[1:], expected):
        if np.isin(array, (0, 1)).all() and (array.sum(axis=-1) == 1).all():
            return np.asarray(array.argmax(axis=-1), np.int32)
        return array.astype(np.float32)
    if array.ndim == len(expected) + 1 > 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if not _fits(array.shape[1:], expected[:-1]):
        raise UsageError(
            f"{where} have shape {array.shape[1:]} for each sample; the output {_shown(expected)}"
            " takes class numbers, one-hot labels or values of its shape"
        )
    if classes == 1 and not np.isin(array, (0, 1)).all():
        return array.astype(np.float32)[..., None] if expected else array.astype(np.float32)
    if (array != np.round(array)).any():
        raise UsageError(
            f"{where} are not whole numbers; the output {_shown(expected)} takes class numbers,"
            " one-hot labels or values of its shape"
        )
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low < 0 or (classes is not None and high >= max(classes, 2)):
        shift = "; they start at 1: subtract 1" if high == classes and array.min() == 1 else ""
        raise UsageError(
            f"{where} go from {low} to {high}, the model has {classes} outputs (0 to"
            f" {(classes or 0) - 1}){shift}"
        )
    return array.astype(np.int32)


def _labels(split: Split) -> NDArray[Any] | None:
    """Return the class number of each sample; None where the labels are no class numbers."""
    labels = [y for y in split.targets or () if y.ndim == 1 and y.dtype == np.int32]
    return labels[0] if labels else None


def _order(split: Split, rng: np.random.Generator) -> NDArray[np.intp]:
    return readers.stratified(_labels(split), len(split), rng)


def _halves(split: Split, rng: np.random.Generator, limit: int | None) -> tuple[Split, Split]:
    count = min(max(1, round(0.1 * len(split))), 5000)
    order = _order(split, rng)
    return split.take(order[count:][:limit]), split.take(order[:count][:limit])


def _synthetic(
    graph: Graph,
    seed: int,
    limit: int | None,
    stage: Callable[[str, int], Callable[[int], None]],
) -> tuple[Split, Split]:
    from lrfc.data.synthetic import samples_for, synthesise

    count = samples_for(graph) if limit is None else min(samples_for(graph), limit)
    batch = synthesise(graph, count + -(-count // 4), seed, stage)
    return Split(tuple(x[:count] for x in batch)), Split(tuple(x[count:] for x in batch))


def _overlaps(parts: Mapping[str, Split]) -> tuple[str, ...]:
    """Return a note for each pair of splits that share samples.

    UsageError when too many test samples are in another split. Real sets hold a few exact
    duplicates (CIFAR-10 some dozen, ModelNet's voxels 5 %), so the allowed share is twice that of
    duplicates among the training samples, and at least 0.1 %.
    """
    same_dtype = len({x.dtype for split in parts.values() for x in split.inputs}) == 1
    keys = {part: _hashes(split.inputs, raw=same_dtype) for part, split in parts.items()}
    duplicates = 1 - len(set(keys["train"])) / len(keys["train"])
    notes = []
    pairs = (
        ("train", "val"),
        ("train", "test"),
        *((("val", "test"),) if parts["val"] is not parts["train"] else ()),
    )
    for one, other in pairs:
        if one not in keys or other not in keys or parts[one] is parts[other]:
            continue
        first = set(keys[one])
        count = sum(key in first for key in keys[other])
        share = count / len(keys[other])
        names = {"train": "training", "val": "validation", "test": "test"}
        fact = (
            f"{count:,} of {len(keys[other]):,} {names[other]} samples ({100 * share:.3g} %) are"
            f" {names[one]} samples too"
        )
        if other == "test" and share > max(0.001, 2 * duplicates):
            raise UsageError(
                f"{fact}, so the accuracy on them would mean nothing; give a test set that is not"
                " part of the training data"
            )
        if count:
            notes.append(fact)
    return tuple(notes)


def _hashes(inputs: Sequence[NDArray[Any]], *, raw: bool) -> list[bytes]:
    """Return a digest of each sample: of its bytes if ``raw``, else of its values as float32."""
    digests = []
    for i in range(len(inputs[0])):
        digest = hashlib.blake2b(digest_size=16)
        for x in inputs:
            digest.update(np.ascontiguousarray(x[i] if raw else x[i].astype(np.float32)).tobytes())
        digests.append(digest.digest())
    return digests
