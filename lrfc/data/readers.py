"""Sources of samples: the digits, .npz and .npy files, folders of images, functions, streams."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrfc.config.trust import FUNCTION
from lrfc.data import mapped
from lrfc.errors import DependencyError, UsageError
from lrfc.system import reader

if TYPE_CHECKING:
    from lrfc.ir.graph import Graph

#: Suffixes of the arrays in a file, by the part of the data that they belong to.
PARTS = {"train": ("", "_train"), "val": ("_val",), "test": ("_test",)}
#: The array with the weights of the training samples.
WEIGHTS = "sample_weight"
_FORMS = (
    "give 'digits', an .npz file, a folder of .npy files or of class folders, or"
    " package.module:function"
)
DIGITS_NEED = "data 'digits' need scikit-learn: pip install scikit-learn"
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
#: Names of the folder of a part, by part.
_SUBSETS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class Part(NamedTuple):
    """The unchecked samples of a part of the data.

    ``x``, ``y``: an array, a sequence, or a mapping by input or output name; ``y`` is None without
    labels. ``weights``: of the samples, None for equal ones.
    """

    x: Any
    y: Any = None
    weights: Any = None


@dataclass(frozen=True)
class Raw:
    """The unchecked content of a source.

    ``notes``: lines for the log. ``preprocessing``: the steps from the raw samples to these, which
    the device has to repeat.
    """

    parts: Mapping[str, Part]
    notes: tuple[str, ...] = field(default=())
    preprocessing: str | None = None


def read(spec: str, graph: Graph, *, seed: int, limit: int | None = None) -> Raw:
    """Read the data that a ``--data`` specification names; UsageError when there are none.

    ``limit``: the size of the training split; no more images of a folder are read than it needs.
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
    """Return the kind of source that a ``--data`` specification names; UsageError for none."""
    if spec == "digits":
        return "digits"
    path = reader.located(spec)
    kind = reader.kind(path) if spec else None
    if kind == "a folder":
        if any(file.suffix == ".npy" for file in _listed(path)):
            return "arrays"
        if not _classes(path):
            raise UsageError(
                f"data folder '{path}' has no class folders: put the images of each class into a"
                " folder of its own"
            )
        return "folder"
    if path.suffix == ".npz":
        if kind is None:
            raise UsageError(f"data file '{path}' does not exist: {_FORMS}")
        return "npz"
    if kind == "a file":
        raise UsageError(f"data '{spec}' is a {path.suffix or 'plain'} file: {_FORMS}")
    if kind is not None:
        raise UsageError(f"data '{spec}' is {kind}: {_FORMS}")
    if FUNCTION.fullmatch(spec):
        return "function"
    raise UsageError(f"data '{spec}' does not exist: {_FORMS}")


# -- the built-in digits ---------------------------------------------------------------------------


def digits(shape: tuple[int | None, ...] = (8, 8, 1)) -> Raw:
    """Return scikit-learn's 1,797 handwritten digits, scaled from 0–16 to 0–1.

    60 % are for training, 15 % for validation and 25 % for the test. The split does not depend on
    the build's seed, so that a model that was trained on the training part
    (examples/train_digits.py) has never seen the test part. ``shape``: (8, 8, 1) or (64,), the
    shape of a sample.
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
    parts = {part: Part(x[rows], y[rows]) for part, rows in cut.items()}
    return Raw(parts, (), "digits 0–16 scaled to 0–1")


def stratified(
    labels: NDArray[Any] | None, count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return a random permutation of which every head holds the classes in proportion.

    ``labels``: the class of each of the ``count`` samples; None for any random permutation.
    """
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
    return from_arrays(mapped.npz(path), graph, f"data file '{path}'", f"as stored in {path.name}")


def _arrays(root: Path, graph: Graph) -> Raw:
    """Map the arrays of a folder with x.npy, y.npy, x_val.npy, …."""
    arrays = {file.stem: mapped.npy(file) for file in _listed(root) if file.suffix == ".npy"}
    return from_arrays(arrays, graph, f"data folder '{root}'", f"as stored in {root.name}/*.npy")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"data folder '{folder}' cannot be read: {error.strerror}") from error


def from_arrays(
    arrays: Mapping[str, Any], graph: Graph, where: str, preprocessing: str | None = None
) -> Raw:
    """Return the data in arrays named x and y, with the suffixes _val and _test.

    Where the model has several inputs or outputs, the arrays have their names instead. The array
    ``sample_weight`` holds the weights of the training samples.
    """
    outputs = tuple(ref.op for ref in graph.outputs)
    parts: dict[str, Part] = {}
    used: set[str] = set()
    for part, suffixes in PARTS.items():
        for suffix in suffixes:
            x, x_names = _named(arrays, "x", graph.inputs, suffix, where)
            y, y_names = _named(arrays, "y", outputs, suffix, where)
            if x is not None and part not in parts:
                parts[part] = Part(x, y)
                used |= x_names | y_names
            elif y is not None and x is None:
                raise UsageError(
                    f"{where} has labels {_list(y_names)} but no inputs 'x{suffix}' for them"
                )
    if not parts:
        names = "'x'"
        if len(graph.inputs) > 1:
            names += f" and no arrays named like the inputs {_list(graph.inputs)}"
        raise UsageError(f"{where} has no array {names}; it holds {_list(arrays) or 'nothing'}")
    if WEIGHTS in arrays and "train" in parts:
        parts["train"] = parts["train"]._replace(weights=arrays[WEIGHTS])
        used.add(WEIGHTS)
    unused = sorted(set(arrays) - used)
    notes = (f"{where}: not used: {_list(unused)}",) if unused else ()
    return Raw(parts, notes, preprocessing)


def _named(
    arrays: Mapping[str, Any], letter: str, names: tuple[str, ...], suffix: str, where: str
) -> tuple[Any, set[str]]:
    """Return the array ``letter``, or a mapping of those with the names, and the names used."""
    if letter + suffix in arrays:
        return arrays[letter + suffix], {letter + suffix}
    named = {name: arrays[name + suffix] for name in names if name + suffix in arrays}
    if named and len(named) < len(set(names)):
        raise UsageError(
            f"{where} has '{next(iter(named))}{suffix}' but lacks"
            f" {_list(name + suffix for name in names if name not in named)}"
        )
    return (named, {name + suffix for name in named}) if named else (None, set())


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)


# -- Python ----------------------------------------------------------------------------------------


def imported(spec: str, what: str) -> Any:
    """Import the function that 'package.module:function' names; UsageError when there is none.

    Modules in the current folder are found, too.
    """
    module_name, name = spec.split(":")
    with _current_folder(), reader.user_code(f"{what} '{spec}'"):
        return getattr(importlib.import_module(module_name), name)


def _function(spec: str, graph: Graph, limit: int | None) -> Raw:
    function = imported(spec, "data")
    where = f"data '{spec}'"
    with _current_folder(), reader.user_code(where):  # the function may import modules, too
        result = function()
    raw = from_object(result, graph, where, limit)
    return replace(raw, preprocessing=f"as given by {spec}")


@contextmanager
def _current_folder() -> Iterator[None]:
    """Context manager: import modules from the current folder, too, as console scripts do not."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # the user's code may have changed it
            sys.path.remove(folder)


def from_object(result: Any, graph: Graph, where: str, limit: int | None = None) -> Raw:
    """Return the data in an object from Python, such as the result of a user's function.

    The object is (x, y), x alone, a mapping of arrays as in an .npz, or a stream (lrfc.data.mapped:
    tf.data.Dataset, PyDataset, generator). Or it has several parts, each a pair (x, y) or a stream:
    two (train, test), three (train, validation, test), or a mapping by 'train', 'val' and 'test'. A
    tuple of three arrays is (x, y, weights of the samples).
    ``limit``: the size of the training split; no more of a stream is read than it needs.
    UsageError for any other object.
    """
    if isinstance(result, Mapping):
        by_part = result and set(result) <= set(PARTS) and all(map(_is_part, result.values()))
        if by_part:
            return _parts(result, graph, where, limit)
        return from_arrays(result, graph, where)
    if isinstance(result, np.ndarray):
        return Raw({"train": Part(result)})
    if mapped.is_stream(result):
        return _parts({"train": result}, graph, where, limit)
    if isinstance(result, tuple) and len(result) in (2, 3) and all(map(_is_part, result)):
        names = ("train", "test") if len(result) == 2 else ("train", "val", "test")
        return _parts(dict(zip(names, result, strict=True)), graph, where, limit)
    if isinstance(result, tuple) and len(result) in (2, 3):
        return Raw({"train": Part(*result)})
    raise UsageError(
        f"{where} gave a {type(result).__name__}: return (x, y), a dict of arrays, ((x, y),"
        " (x_test, y_test)), or a tf.data.Dataset"
    )


def _is_part(value: Any) -> bool:
    return (isinstance(value, tuple) and len(value) == 2) or mapped.is_stream(value)


def _parts(values: Mapping[str, Any], graph: Graph, where: str, limit: int | None) -> Raw:
    """Return the data in pairs and streams by part; streams are read."""
    parts: dict[str, Part] = {}
    notes: tuple[str, ...] = ()
    for name, part in values.items():
        if isinstance(part, tuple):
            parts[name] = Part(*part)
        else:
            place = where if len(values) == 1 else f"{where} ({name})"
            *arrays, stream_notes = mapped.read(part, graph, place, _with_validation(limit))
            parts[name], notes = Part(*arrays), (*notes, *stream_notes)
    return Raw(parts, notes)


def _with_validation(limit: int | None) -> int | None:
    """Return the samples to read for a training split of ``limit`` and a tenth for validation."""
    return None if limit is None else limit * 10 // 9 + 2


# -- a folder of class folders ---------------------------------------------------------------------


def _folder(root: Path, graph: Graph, seed: int, limit: int | None) -> Raw:
    """Read images under root/<class>/, or under root/{train,val,test}/<class>/.

    Class numbers follow the sorted names of the classes.
    """
    subsets = {
        part: root / name
        for part, names in _SUBSETS.items()
        for name in names
        if _classes(root / name)
    }
    folders = subsets if "train" in subsets or "test" in subsets else {"train": root}
    layout = _image_layout(root, graph)
    names = _classes(next(iter(folders.values())))
    outputs = graph.tensor(graph.outputs[0]).shape[-1]
    if outputs not in (1, len(names)):
        raise UsageError(
            f"data folder '{root}' has {len(names)} class folders, the model has {outputs} outputs;"
            " one folder for each class, in the order of the outputs"
        )
    parts = {
        part: Part(*_images(folder, names, layout, np.random.default_rng(seed), limit))
        for part, folder in folders.items()
    }
    scaled = any(op.info.family == "rescaling" for op in graph)
    note = (
        f"data folder '{root}': pixels are fed as 0–255 and the model has no Rescaling or"
        " Normalization layer; use package.module:function for another scale"
    )
    size = f"{layout.height}×{layout.width}, {layout.channels} channels"
    return Raw(
        parts, () if scaled else (note,), f"pixels 0–255 from image files, resized to {size}"
    )


@dataclass(frozen=True)
class _Layout:
    """The size of the images that a model reads; ``first``: whether channels come first."""

    height: int
    width: int
    channels: int
    first: bool


def _image_layout(root: Path, graph: Graph) -> _Layout:
    """Return the layout of the model's input; UsageError when it has not one image input."""
    shape = graph.tensors(graph.inputs[0])[0].shape[1:]
    if len(graph.inputs) > 1 or len(shape) != 3 or None in shape:
        raise UsageError(
            f"data folder '{root}': a folder of images feeds a model with one image input of fixed"
            f" size, not {shape}; use package.module:function"
        )
    first = shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    height, width, channels = (int(n or 0) for n in ((*shape[1:], shape[0]) if first else shape))
    return _Layout(height, width, channels, first)


def _images(
    folder: Path, names: list[str], layout: _Layout, rng: np.random.Generator, limit: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read the images of a part, uint8 (samples, height, width, channels), and their classes."""
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
    rows = np.sort(stratified(y, len(y), rng)[: _with_validation(limit)])
    shape = (layout.height, layout.width, layout.channels)
    images = (_image(files[row][0], *shape)[None] for row in rows)
    x = mapped.written(images, np.dtype(np.uint8), shape)
    return (x.transpose(0, 3, 1, 2) if layout.first else x), y[rows]


def _classes(folder: Path) -> list[str]:
    """Return the sorted names of the class folders; none where there is no such folder."""
    if not folder.is_dir():
        return []
    entries = _listed(folder)
    return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _image(path: Path, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Read an image, resized to (height, width, channels)."""
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
