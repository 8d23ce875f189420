"""Load samples: read a source, check it against the model, and split it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrfc.data import checks as plausibility
from lrfc.data import mapped as streams
from lrfc.data import readers as sources
from lrfc.data.dataset import FEW, Data, Split
from lrfc.errors import UsageError
from lrfc.ir.graph import Graph
from lrfc.ir.op import Shape, Tensor
from lrfc.system import reader


def load_data(
    spec: Any, graph: Graph, *, test: Any = None, seed: int, limit: int | None = None
) -> Data:
    """The data that ``spec`` names, fit for that model.

    ``spec``: 'digits', an .npz file, a folder of .npy files (x.npy, y.npy, ...) or of class
    folders, 'package.module:function', or (from Python) such a function or what it returns
    (sources.from_object): arrays, a tf.data.Dataset, a keras.utils.PyDataset, a generator; None
    makes up calibration inputs from the model (lrfc.data.synthetic). Without validation samples 10
    % of the training samples, at most 5,000, are set aside by ``seed``, in proportion of the
    classes; of a handful (``FEW``) none are, and they validate too. ``test`` is a second one, used
    for the reported accuracies only. ``limit``: at most that many samples in each split. UsageError
    says what does not fit; what looks strange is a note.

    Sets larger than memory: .npy files, what numpy.savez wrote and numpy.memmap are mapped; a
    stream is read once into a temporary file; the shuffled splits of a large set are temporary
    files too (folder: TMPDIR). Labels are held in memory. The same seed splits the same arrays in
    the same way; a stream that gives its samples in another order each time is split in another way
    each time.
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
        raw["train"], raw["val"] = _synthetic(graph, seed, limit)
    elif "val" not in raw and len(raw["train"]) <= FEW:
        raw["train"] = raw["val"] = raw["train"].take(_order(raw["train"], rng)[:limit])
        if len(raw["train"]) < 2:
            raise UsageError(
                f"data '{_name(spec)}' has 1 training sample, which is too few: give at least 16,"
                " better some hundred"
            )
    elif "val" not in raw:
        raw["train"], raw["val"] = _halves(raw["train"], rng, limit)
    else:
        raw |= {part: raw[part].take(_order(raw[part], rng)[:limit]) for part in ("train", "val")}
    if "test" in raw:
        raw["test"] = raw["test"].take(np.sort(_order(raw["test"], rng)[:limit]))
    notes += _overlaps(raw)
    if spec is not None:
        notes += plausibility.doubts(graph, raw["train"])
    source = "synthetic" if spec is None else _name(spec)
    data = Data(
        source,
        raw["train"],
        raw["val"],
        raw.get("test", raw["val"]),
        synthetic=spec is None,
        notes=notes,
        preprocessing=preprocessing,
    )
    if not data.few:
        return data
    known = (
        f"only {len(data.train)} training samples: BatchNorm statistics and closed-form refits are"
        " all that they are enough for, nothing is trained"
    )
    both = "; they are the validation samples too" if data.validation is data.train else ""
    return replace(data, notes=(*notes, known + both))


def _name(spec: Any) -> str:
    if callable(spec):
        return getattr(spec, "__qualname__", type(spec).__name__)
    if isinstance(spec, str | Path):
        return str(spec)
    return (
        "tf.data.Dataset"
        if hasattr(spec, "element_spec")
        else type(spec).__name__
        if streams.is_stream(spec)
        else "arrays"
    )


def _read(spec: Any, graph: Graph, seed: int, limit: int | None) -> dict[str, Any]:
    where = _name(spec)
    if isinstance(spec, str | Path):
        raw = sources.read(str(spec), graph, seed=seed, limit=limit)
    else:
        given = spec
        if callable(spec):
            with reader.user_code(f"data '{where}'"):
                given = spec()
        raw = sources.from_object(given, graph, f"data '{where}'", limit)
        raw = replace(
            raw, preprocessing=f"as given by {where}" if callable(spec) else "as given from Python"
        )
    return {
        "notes": raw.notes,
        "preprocessing": raw.preprocessing,
        **{part: _split(x, y, graph, f"{where} ({part})") for part, (x, y) in raw.parts.items()},
    }


def _split(x: Any, y: Any, graph: Graph, where: str) -> Split:
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
    return Split(inputs, targets)


def _paired(given: Any, names: tuple[str, ...], where: str) -> list[tuple[NDArray[Any], str]]:
    if isinstance(given, Mapping):
        if set(given) != set(names):
            raise UsageError(
                f"{where} are named {', '.join(map(str, given))}, the model has {', '.join(names)}"
            )
        given = [given[name] for name in names]
    elif not (isinstance(given, list | tuple) and len(names) > 1):
        given = [given]
    if len(given) != len(names):
        raise UsageError(
            f"{where}: {len(given)} arrays for {', '.join(names)}; name the arrays like these"
        )
    try:
        arrays = [np.asarray(a) for a in given]
    except ValueError as error:
        raise UsageError(f"{where} are not arrays of samples of one shape: {error}") from error
    if any(a.ndim == 0 for a in arrays):
        raise UsageError(f"{where}: a single value is no array of samples")
    return list(zip(arrays, names, strict=True))


def _plain(array: NDArray[Any], where: str) -> NDArray[Any]:
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{where} has dtype {array.dtype}; give numbers")
    array = streams.as_float32(array) if array.dtype == np.float64 else array
    if array.dtype.kind == "f" and not all(
        np.isfinite(block).all() for block in streams.blocks(array)
    ):
        bad = np.flatnonzero(
            np.concatenate(
                [
                    ~np.isfinite(block.reshape(len(block), -1)).all(axis=1)
                    for block in streams.blocks(array)
                ]
            )
        )
        raise UsageError(
            f"{where} has NaN or infinite values in {len(bad):,} samples, the first is number"
            f" {bad[0]}; clean the data"
        )
    return array


def _input(array: NDArray[Any], tensor: Tensor, where: str) -> NDArray[Any]:
    shape, wanted = array.shape[1:], tensor.shape[1:]
    if _fits((*shape, 1), wanted):  # the channel axis of grey images
        array = array[..., None]
    elif not _fits(shape, wanted):
        raise UsageError(
            f"{where} has samples of shape {shape}, the model wants"
            f" {_shown(wanted)}{_remedy(shape, wanted)}"
        )
    if tensor.dtype.startswith("int") and array.dtype.kind == "f":
        raise UsageError(f"{where} has dtype {array.dtype}, the model wants {tensor.dtype}")
    return _plain(array, where)


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        b in (None, a) for a, b in zip(shape, wanted, strict=True)
    )


def _shown(shape: Shape) -> str:
    return (
        "("
        + ", ".join("any" if n is None else str(n) for n in shape)
        + ("," if len(shape) == 1 else "")
        + ")"
    )


def _remedy(shape: tuple[int, ...], wanted: Shape) -> str:
    """How samples of one shape become samples of the other, when nothing but that is missing."""
    if len(shape) == len(wanted) == 3:
        if _fits((*shape[1:], shape[0]), wanted):
            return "; the channels come first: x.transpose(0, 2, 3, 1)"
        if _fits((shape[2], *shape[:2]), wanted):
            return "; the channels come last: x.transpose(0, 3, 1, 2)"
        if shape[2] == wanted[2]:
            return f"; resize the images: keras.ops.image.resize(x, ({wanted[0]}, {wanted[1]}))"
        if {shape[2], wanted[2]} == {1, 3} and _fits(shape[:2], wanted[:2]):
            return (
                "; grey and colour: numpy.repeat(x, 3, axis=-1)"
                if wanted[2] == 3
                else "; colour and grey: x.mean(axis=-1, keepdims=True)"
            )
    if len(shape) == len(wanted) == 2 and _fits(shape[::-1], wanted):
        return "; the axes are swapped: x.transpose(0, 2, 1)"
    if None not in wanted and np.prod(shape) == np.prod([n or 0 for n in wanted]):
        return f"; only a reshape is missing: x.reshape(-1, {', '.join(map(str, wanted))})"
    return ""


def _target(array: NDArray[Any], tensor: Tensor, where: str) -> NDArray[Any]:
    """Class indices or values for that output (the rule of ``Split``).

    One-hot labels become indices.
    """
    array, wanted = _plain(array, where), tensor.shape[1:]
    classes: int | None = wanted[-1] if wanted else 1
    if wanted and classes != 1 and _fits(array.shape[1:], wanted):
        if np.isin(array, (0, 1)).all() and (array.sum(axis=-1) == 1).all():
            return np.asarray(array.argmax(axis=-1), np.int32)
        return array.astype(np.float32)
    if array.ndim == len(wanted) + 1 > 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if not _fits(array.shape[1:], wanted[:-1]):
        raise UsageError(
            f"{where} have shape {array.shape[1:]} a sample; the output {_shown(wanted)} takes"
            " class numbers, one-hot labels or values of its shape"
        )
    if classes == 1 and not np.isin(array, (0, 1)).all():
        return array.astype(np.float32)[..., None] if wanted else array.astype(np.float32)
    if (array != np.round(array)).any():
        raise UsageError(
            f"{where} are not whole numbers; the output {_shown(wanted)} takes class numbers,"
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
    """One class number a sample, where the samples have one."""
    found = [y for y in split.targets or () if y.ndim == 1 and y.dtype == np.int32]
    return found[0] if found else None


def _order(split: Split, rng: np.random.Generator) -> NDArray[np.intp]:
    return sources.stratified(_labels(split), len(split), rng)


def _halves(split: Split, rng: np.random.Generator, limit: int | None) -> tuple[Split, Split]:
    count = min(max(1, round(0.1 * len(split))), 5000)
    order = _order(split, rng)
    return split.take(order[count:][:limit]), split.take(order[:count][:limit])


def _synthetic(graph: Graph, seed: int, limit: int | None) -> tuple[Split, Split]:
    from lrfc.data.synthetic import samples_for, synthesise

    count = samples_for(graph) if limit is None else min(samples_for(graph), limit)
    batch = synthesise(graph, count + -(-count // 4), seed)
    return Split(tuple(x[:count] for x in batch)), Split(tuple(x[count:] for x in batch))


def _overlaps(parts: Mapping[str, Split]) -> tuple[str, ...]:
    """A note for each two splits that share samples; UsageError when the test set is not new.

    Real sets hold a few exact duplicates (CIFAR-10 some dozen, ModelNet's voxels 5 %), so test
    samples may be known as often as training samples are duplicates of each other, and always in
    0.1 % of the cases.
    """
    same = len({x.dtype for split in parts.values() for x in split.inputs}) == 1
    keys = {part: _hashes(split.inputs, raw=same) for part, split in parts.items()}
    usual = 1 - len(set(keys["train"])) / len(keys["train"])
    notes = []
    pairs = (
        ("train", "val"),
        ("train", "test"),
        *((("val", "test"),) if parts["val"] is not parts["train"] else ()),
    )
    for one, other in pairs:
        if one not in keys or other not in keys or parts[one] is parts[other]:
            continue
        known = set(keys[one])
        count = sum(key in known for key in keys[other])
        share = count / len(keys[other])
        names = {"train": "training", "val": "validation", "test": "test"}
        fact = (
            f"{count:,} of {len(keys[other]):,} {names[other]} samples ({100 * share:.3g} %) are"
            f" {names[one]} samples too"
        )
        if other == "test" and share > max(0.001, 2 * usual):
            raise UsageError(
                f"{fact}, so the accuracy on them would mean nothing; give a test set that is not"
                " part of the training data"
            )
        if count:
            notes.append(fact)
    return tuple(notes)


def _hashes(inputs: Sequence[NDArray[Any]], *, raw: bool) -> list[bytes]:
    """A digest of each sample; values are compared as float32 unless all have one dtype (``raw``)."""
    rows = []
    for i in range(len(inputs[0])):
        digest = hashlib.blake2b(digest_size=16)
        for x in inputs:
            digest.update(np.ascontiguousarray(x[i] if raw else x[i].astype(np.float32)).tobytes())
        rows.append(digest.digest())
    return rows
