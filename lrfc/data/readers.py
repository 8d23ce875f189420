"""Where samples come from: the built-in digits, .npz and .npy files, a folder of class folders, a Python function, a stream."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lrfc.config.trust import FUNCTION
from lrfc.data import mapped as streams
from lrfc.errors import DependencyError, UsageError
from lrfc.system import reader

if TYPE_CHECKING:
    from lrfc.ir.graph import Graph

#: The name of a part of the data → the suffixes that its arrays may have in a file.
PARTS = {"train": ("", "_train"), "val": ("_val",), "test": ("_test",)}
_FORMS = (
    "give 'digits', an .npz file, a folder of .npy files or of class folders, or"
    " package.module:function"
)
DIGITS_NEED = "data 'digits' need scikit-learn: pip install scikit-learn"
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


@dataclass(frozen=True)
class Raw:
    """What a source holds, unchecked: part → (x, y), with x and y an array, a sequence, or a mapping by input or output name; y None without labels.

    ``notes`` are worth a line in the log. ``preprocessing``: what was done to the samples before
    the model sees them, and must be done on the device.
    """

    parts: Mapping[str, tuple[Any, Any]]
    notes: tuple[str, ...] = field(default=())
    preprocessing: str | None = None


def read(spec: str, graph: Graph, *, seed: int, limit: int | None = None) -> Raw:
    """The data behind a ``--data`` specification for that model; UsageError when there are none.

    ``limit``: read no more images of a folder than a training split of that size needs.
    """
    match form(spec):
        case "digits":
            return digits(graph.tensors(graph.inputs[0])[0].shape[1:])
        case "arrays":
            return _arrays(reader.located(spec), graph)
        case "folder":
            return _folder(reader.located(spec), graph, seed, limit)
        case "npz":
            return _npz(reader.located(spec), graph)
        case "function":
            return _function(spec, graph, limit)


def form(spec: str) -> Literal["digits", "arrays", "folder", "npz", "function"]:
    """What kind of source a ``--data`` specification names; UsageError when there is none of that name."""
    if spec == "digits":
        return "digits"
    path = reader.located(spec)
    there = reader.kind(path) if spec else None
    if there == "a folder":
        if any(file.suffix == ".npy" for file in _listed(path)):
            return "arrays"
        if not _classes(path):
            raise UsageError(
                f"data folder '{path}' has no class folders: put the images of each class into a"
                " folder of its own"
            )
        return "folder"
    if path.suffix == ".npz":
        if there is None:
            raise UsageError(f"data file '{path}' does not exist: {_FORMS}")
        return "npz"
    if there == "a file":
        raise UsageError(f"data '{spec}' is a {path.suffix or 'plain'} file: {_FORMS}")
    if there is not None:
        raise UsageError(f"data '{spec}' is {there}: {_FORMS}")
    if FUNCTION.fullmatch(spec):
        return "function"
    raise UsageError(f"data '{spec}' does not exist: {_FORMS}")


# -- the built-in digits ---------------------------------------------------------------------------


def digits(shape: tuple[int | None, ...] = (8, 8, 1)) -> Raw:
    """scikit-learn's 1,797 handwritten digits, scaled from 0–16 to 0–1: 60 % training, 15 % validation, 25 % test.

    The split is always the same one, whatever the build's seed, so that a model that was trained on
    its training part (examples/train_digits.py) never meets its test part before the last reading.
    ``shape``: of one sample, (8, 8, 1) or (64,).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError(DIGITS_NEED) from error
    bunch = load_digits()
    x = (bunch.data / 16).astype(np.float32).reshape(-1, *(shape if shape == (64,) else (8, 8, 1)))
    y = bunch.target.astype(np.int32)
    order = stratified(y, len(y), np.random.default_rng(0))
    test, val = len(y) // 4, len(y) * 15 // 100
    cut = {"test": order[:test], "val": order[test : test + val], "train": order[test + val :]}
    return Raw(
        {part: (x[rows], y[rows]) for part, rows in cut.items()}, (), "digits 0–16 scaled to 0–1"
    )


def stratified(
    labels: NDArray[Any] | None, count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """All indices below ``count`` in a random order of which every head holds the classes in proportion (no ``labels``: any random order)."""
    order = rng.permutation(count)
    if labels is None:
        return order
    _, classes, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    place = np.empty(count)
    for number, size in enumerate(sizes):
        place[classes == number] = (np.arange(size) + 0.5) / size
    return order[np.argsort(place, kind="stable")]


# -- arrays by name --------------------------------------------------------------------------------


def _npz(path: Path, graph: Graph) -> Raw:
    return from_arrays(streams.npz(path), graph, f"data file '{path}'", f"as stored in {path.name}")


def _arrays(root: Path, graph: Graph) -> Raw:
    """A folder with x.npy, y.npy, x_val.npy, …: the arrays are mapped, not read."""
    arrays = {file.stem: streams.npy(file) for file in _listed(root) if file.suffix == ".npy"}
    return from_arrays(arrays, graph, f"data folder '{root}'", f"as stored in {root.name}/*.npy")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"data folder '{folder}' cannot be read: {error.strerror}") from error


def from_arrays(
    arrays: Mapping[str, Any], graph: Graph, where: str, preprocessing: str | None = None
) -> Raw:
    """Arrays by name: x, y, and with the suffixes _val and _test; or by the names of the model's inputs and outputs when it has several of them."""
    outputs = tuple(ref.op for ref in graph.outputs)
    parts, used = {}, set()
    for part, suffixes in PARTS.items():
        for suffix in suffixes:
            x, x_names = _named(arrays, "x", graph.inputs, suffix, where)
            y, y_names = _named(arrays, "y", outputs, suffix, where)
            if x is not None and part not in parts:
                parts[part] = (x, y)
                used |= x_names | y_names
            elif y is not None and x is None:
                raise UsageError(
                    f"{where} has labels {_list(y_names)} but no inputs 'x{suffix}' for them"
                )
    if not parts:
        names = (
            "'x'"
            if len(graph.inputs) == 1
            else f"'x' and no arrays named like the inputs {_list(graph.inputs)}"
        )
        raise UsageError(f"{where} has no array {names}; it holds {_list(arrays) or 'nothing'}")
    unused = set(arrays) - used
    return Raw(
        parts, (f"{where}: not used: {_list(sorted(unused))}",) if unused else (), preprocessing
    )


def _named(
    arrays: Mapping[str, Any], letter: str, names: tuple[str, ...], suffix: str, where: str
) -> tuple[Any, set[str]]:
    if letter + suffix in arrays:
        return arrays[letter + suffix], {letter + suffix}
    found = {name: arrays[name + suffix] for name in names if name + suffix in arrays}
    if found and len(found) < len(set(names)):
        raise UsageError(
            f"{where} has '{next(iter(found))}{suffix}' but lacks"
            f" {_list(name + suffix for name in names if name not in found)}"
        )
    return (found, {name + suffix for name in found}) if found else (None, set())


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)


# -- Python ----------------------------------------------------------------------------------------


def imported(spec: str, what: str) -> Any:
    """The function that 'package.module:function' names, looked up in the current folder too; UsageError when there is none."""
    module_name, name = spec.split(":")
    with _current_folder(), reader.user_code(f"{what} '{spec}'"):
        return getattr(importlib.import_module(module_name), name)


def _function(spec: str, graph: Graph, limit: int | None) -> Raw:
    function = imported(spec, "data")
    with (
        _current_folder(),
        reader.user_code(f"data '{spec}'"),
    ):  # also for what the function itself imports
        result = function()
    return replace(
        from_object(result, graph, f"data '{spec}'", limit), preprocessing=f"as given by {spec}"
    )


@contextmanager
def _current_folder() -> Iterator[None]:
    """Modules are looked up in the current folder too, into which the console script does not look."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # which the user's code may change
            sys.path.remove(folder)


def from_object(result: Any, graph: Graph, where: str, limit: int | None = None) -> Raw:
    """What a function may return, or data from Python may be.

    (x, y); x alone; a mapping of arrays as in an .npz; a stream (lrfc.data.mapped: tf.data.Dataset,
    PyDataset, generator); pairs (x, y) or streams, two of them (train, test), three (train,
    validation, test), or in a mapping by 'train', 'val' and 'test'. At most ``limit`` samples of a
    split are needed.
    """
    if (
        isinstance(result, Mapping)
        and result
        and set(result) <= set(PARTS)
        and all(_is_part(part) for part in result.values())
    ):
        return _parts(result, graph, where, limit)
    if isinstance(result, Mapping):
        return from_arrays(result, graph, where)
    if isinstance(result, np.ndarray):
        return Raw({"train": (result, None)})
    if streams.is_stream(result):
        return _parts({"train": result}, graph, where, limit)
    if (
        isinstance(result, tuple)
        and len(result) in (2, 3)
        and all(_is_part(part) for part in result)
    ):
        return _parts(
            dict(
                zip(
                    ("train", "test") if len(result) == 2 else ("train", "val", "test"),
                    result,
                    strict=True,
                )
            ),
            graph,
            where,
            limit,
        )
    if isinstance(result, tuple) and len(result) == 2:
        return Raw({"train": result})
    raise UsageError(
        f"{where} gave a {type(result).__name__}: return (x, y), a dict of arrays, ((x, y),"
        " (x_test, y_test)), or a tf.data.Dataset"
    )


def _is_part(given: Any) -> bool:
    return (isinstance(given, tuple) and len(given) == 2) or streams.is_stream(given)


def _parts(given: Mapping[str, Any], graph: Graph, where: str, limit: int | None) -> Raw:
    parts: dict[str, tuple[Any, Any]] = {}
    notes: tuple[str, ...] = ()
    for name, part in given.items():
        if isinstance(part, tuple):
            parts[name] = part
        else:
            x, y, said = streams.read(
                part,
                graph,
                where if len(given) == 1 else f"{where} ({name})",
                None if limit is None else limit * 10 // 9 + 2,
            )
            parts[name], notes = (x, y), (*notes, *said)
    return Raw(parts, notes)


# -- a folder of class folders ---------------------------------------------------------------------


def _folder(root: Path, graph: Graph, seed: int, limit: int | None) -> Raw:
    """Images under root/<class>/, or under root/train/<class>/ with root/val and root/test beside it; class numbers follow the sorted names."""
    aliases = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
    subsets = {
        part: root / name
        for part, names in aliases.items()
        for name in names
        if _classes(root / name)
    }
    folders = subsets if "train" in subsets or "test" in subsets else {"train": root}
    shape = graph.tensors(graph.inputs[0])[0].shape[1:]
    if len(graph.inputs) > 1 or len(shape) != 3 or None in shape:
        raise UsageError(
            f"data folder '{root}': a folder of images feeds a model with one image input of fixed"
            f" size, not {shape}; use package.module:function"
        )
    first = shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    height, width, channels = (int(n or 0) for n in ((*shape[1:], shape[0]) if first else shape))
    names = _classes(next(iter(folders.values())))
    outputs = graph.tensor(graph.outputs[0]).shape[-1]
    if outputs not in (1, len(names)):
        raise UsageError(
            f"data folder '{root}' has {len(names)} class folders, the model has {outputs} outputs;"
            " one folder for each class, in the order of the outputs"
        )
    parts = {}
    for part, folder in folders.items():
        if _classes(folder) != names:
            raise UsageError(
                f"data folder '{folder}' has the classes {_list(_classes(folder))}, the training"
                f" folder {_list(names)}"
            )
        files = [
            (file, number)
            for number, name in enumerate(names)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in _IMAGES
        ]
        if not files:
            raise UsageError(f"data folder '{folder}' has no images ({', '.join(_IMAGES)})")
        y = np.array([number for _, number in files], np.int32)
        keep = np.sort(
            stratified(y, len(y), np.random.default_rng(seed))[
                : len(y) if limit is None else limit * 10 // 9 + 2
            ]
        )
        x = np.empty((len(keep), height, width, channels), np.uint8)
        for i, row in enumerate(keep):
            x[i] = _image(files[row][0], height, width, channels)
        parts[part] = (x.transpose(0, 3, 1, 2) if first else x, y[keep])
    scaled = any(op.info.family == "rescaling" for op in graph)
    note = (
        f"data folder '{root}': pixels are fed as 0–255 and the model has no Rescaling or"
        " Normalization layer; use package.module:function for another scale"
    )
    return Raw(
        parts,
        () if scaled else (note,),
        f"pixels 0–255 from image files, resized to {height}×{width}, {channels} channels",
    )


def _classes(folder: Path) -> list[str]:
    return (
        [
            entry.name
            for entry in _listed(folder)
            if entry.is_dir() and not entry.name.startswith(".")
        ]
        if folder.is_dir()
        else []
    )


def _image(path: Path, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    import tensorflow as tf

    try:
        pixels = tf.io.decode_image(
            reader.contents(path), channels=channels, expand_animations=False
        )
    except tf.errors.OpError as error:
        raise UsageError(
            f"image '{path}' cannot be read: {' '.join(error.message.split())[:120]}"
        ) from error
    if pixels.shape[:2] != (height, width):
        pixels = tf.cast(
            tf.round(tf.image.resize(pixels, (height, width), antialias=True)), tf.uint8
        )
    result: NDArray[np.uint8] = pixels.numpy()
    return result
