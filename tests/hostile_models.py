"""Model files that try to run code or touch files when loaded, and randomly broken files."""

from __future__ import annotations

import copy
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: A change of a model's configuration, given the folder that the attack is aimed at.
Attack = Callable[[dict[str, Any], Path], None]


# -- files and their configurations ----------------------------------------------------------------


def config_of(path: Path) -> dict[str, Any]:
    """The model configuration in a .keras or .h5 file."""
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path, "r") as file:
            return dict(json.loads(file.attrs["model_config"]))
    with zipfile.ZipFile(path) as archive:
        return dict(json.loads(archive.read("config.json")))


def rewritten(path: Path, target: Path, *, text: str | None = None, **members: Any) -> Path:
    """A copy of a model file with another configuration text, or other members or attributes.

    A member or attribute that is None is left out. ``config_json`` is the member ``config.json``.
    """
    if path.suffix == ".h5":
        import h5py

        target.write_bytes(path.read_bytes())
        with h5py.File(target, "r+") as file:
            for name, value in (
                {} if text is None else {"model_config": text} | members
            ).items() or members.items():
                file.attrs.pop(name, None)
                if value is not None:
                    file.attrs[name] = value
        return target
    with zipfile.ZipFile(path) as archive:
        parts: dict[str, Any] = {name: archive.read(name) for name in archive.namelist()}
    parts |= {} if text is None else {"config.json": text}
    parts |= {name.replace("_json", ".json"): value for name, value in members.items()}
    with zipfile.ZipFile(target, "w") as archive:
        for name, value in parts.items():
            if value is not None:
                archive.writestr(name, value)
    return target


def legacy_model() -> Any:
    """A model of Keras 2 with a function of TensorFlow, a nested model and a wrapper."""
    import tf_keras as k

    k.utils.set_random_seed(0)
    inner = k.Sequential(
        [k.Input((4, 3)), k.layers.Dense(3, activation="relu", name="inner_dense")], name="inner"
    )
    x = inputs = k.Input((4, 2), name="image")
    x = k.layers.Conv1D(3, 1, name="conv", kernel_initializer="he_normal", kernel_regularizer="l2")(
        x / 2.0
    )
    x = k.layers.TimeDistributed(k.layers.Dense(3, name="wrapped"), name="each")(inner(x))
    return k.Model(
        inputs,
        k.layers.Dense(2, activation="softmax", name="head")(k.layers.Flatten(name="flat")(x)),
        name="victim",
    )


def model(*, operation: bool = True) -> Any:
    """A similar model of Keras 3, with an operation, which .h5 files cannot hold, or a layer."""
    import keras as k

    k.utils.set_random_seed(0)
    inner = k.Sequential(
        [k.Input((4, 3)), k.layers.Dense(3, activation="relu", name="inner_dense")], name="inner"
    )
    x = inputs = k.Input((4, 2), name="image")
    x = k.layers.Conv1D(3, 1, name="conv", kernel_initializer="he_normal", kernel_regularizer="l2")(
        k.ops.divide(x, 2.0) if operation else k.layers.Rescaling(0.5, name="half")(x)
    )
    x = k.layers.TimeDistributed(k.layers.Dense(3, name="wrapped"), name="each")(inner(x))
    return k.Model(
        inputs,
        k.layers.Dense(2, activation="softmax", name="head")(k.layers.Flatten(name="flat")(x)),
        name="victim",
    )


def layer(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of a layer, at any depth."""
    return next(
        entry
        for entry in objects(config)
        if isinstance(entry.get("config"), dict) and entry["config"].get("name") == name
    )


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every dict with a class_name, outer ones first."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for item in value.values():
            yield from objects(item)
    elif isinstance(value, list):
        for item in value:
            yield from objects(item)


# -- attacks ---------------------------------------------------------------------------------------


def _call(config: dict[str, Any], entry: dict[str, Any], argument: Any, **kwargs: Any) -> None:
    """Insert a layer of Keras 2 that is called with constants before the outputs."""
    arguments = [["_CONSTANT_VALUE", -1, argument, kwargs]]
    whole = {
        "name": "attack",
        "inbound_nodes": arguments,
        "registered_name": None,
        "module": "keras.layers",
    } | entry
    whole["config"] = {"name": "attack", "trainable": True, "dtype": "float32"} | entry["config"]
    config["config"]["layers"].insert(1, whole)


def _tf(symbol: str) -> dict[str, Any]:
    return {
        "class_name": "TFOpLambda",
        "module": "keras.src.layers.core.tf_op_layer",
        "registered_name": "TFOpLambda",
        "config": {"function": symbol},
    }


def _function(module: str, name: str) -> dict[str, Any]:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


def _shell(config: dict[str, Any], folder: Path) -> None:
    rest = {
        "function_type": "function",
        "output_shape": None,
        "output_shape_type": "raw",
        "arguments": {},
    }
    entry = {"class_name": "Lambda", "config": {"function": _function("os", "system")} | rest}
    _call(config, entry, f"touch '{folder / 'executed'}'")


def _bytecode(config: dict[str, Any], folder: Path) -> None:
    """Marshalled code of a Lambda inside a wrapper."""
    from tf_keras.src.utils.generic_utils import func_dump

    code = compile(
        f"lambda x: __import__('os').system('touch {folder}/executed') or x", "attack", "eval"
    )
    function = {
        "function": list(func_dump(eval(code))),
        "function_type": "lambda",
        "module": "__main__",
        "output_shape": None,
    }
    layer(config, "each")["config"]["layer"] = {
        "class_name": "Lambda",
        "module": "keras.layers",
        "registered_name": None,
        "config": (
            {
                "name": "hidden",
                "output_shape_type": "raw",
                "output_shape_module": None,
                "arguments": {},
            }
            | function
        ),
    }


def _write(config: dict[str, Any], folder: Path) -> None:
    _call(config, _tf("io.write_file"), str(folder / "written"), contents="owned")


def _delete(config: dict[str, Any], folder: Path) -> None:
    _call(config, _tf("io.gfile.rmtree"), str(folder / "precious"))


def _remove(config: dict[str, Any], folder: Path) -> None:
    _call(config, _tf("compat.v1.gfile.Remove"), str(folder / "precious" / "file"))


def _copy(config: dict[str, Any], folder: Path) -> None:
    _call(
        config, _tf("io.gfile.copy"), str(folder / "precious" / "file"), dst=str(folder / "copied")
    )


def _library(config: dict[str, Any], folder: Path) -> None:
    _call(config, _tf("load_op_library"), str(folder / "library.so"))


def _download(config: dict[str, Any], folder: Path) -> None:
    url = (folder / "precious" / "file").as_uri()
    _call(
        config,
        _tf("keras.utils.get_file"),
        "fetched",
        origin=url,
        cache_dir=str(folder),
        cache_subdir="cache",
    )


def _module(place: str, key: str) -> Attack:
    """An attack by one entry of a layer that names a module of the attacker's."""

    def change(config: dict[str, Any], folder: Path) -> None:
        entry = {
            "class_name": "Anything",
            "module": "hostile_canary",
            "config": {},
            "registered_name": None,
        }
        layer(config, place)["config"][key] = entry

    return change


def _top(config: dict[str, Any], folder: Path) -> None:
    config.update({"class_name": "Anything", "module": "hostile_canary", "registered_name": None})


def _class(config: dict[str, Any], folder: Path) -> None:
    layer(config, "conv").update(
        {"class_name": "Anything", "module": "hostile_canary", "registered_name": None}
    )


def _nested(config: dict[str, Any], folder: Path) -> None:
    layer(config, "inner_dense").update(
        {"class_name": "Anything", "module": "hostile_canary", "registered_name": None}
    )


def _alias(config: dict[str, Any], folder: Path) -> None:
    """Name a class of Keras in a module that is not of Keras."""
    layer(config, "conv").update({"module": "hostile_canary"})


def _compilation(config: dict[str, Any], folder: Path) -> None:
    """Compile a nested model, which Keras compiles again although the outer one is not compiled."""
    entry = {
        "class_name": "Anything",
        "module": "hostile_canary",
        "config": {},
        "registered_name": None,
    }
    layer(config, "inner")["compile_config"] = {"optimizer": entry, "loss": entry}


#: Attacks that act in a file of Keras 2 when tf_keras opens it as it is.
LEGACY: dict[str, Attack] = {
    "shell": _shell,
    "write": _write,
    "delete": _delete,
    "remove": _remove,
    "copy": _copy,
    "library": _library,
    "download": _download,
}
#: Those that need the .keras format, which imports what it names, and that of .h5.
LEGACY_ARCHIVE: dict[str, Attack] = {
    "top": _top,
    "class": _class,
    "alias": _alias,
    "nested": _nested,
    "activation": _module("conv", "activation"),
    "initializer": _module("conv", "kernel_initializer"),
    "regularizer": _module("conv", "kernel_regularizer"),
    "constraint": _module("conv", "bias_constraint"),
    "wrapped": _module("each", "layer"),
    "compilation": _compilation,
}
LEGACY_HDF5: dict[str, Attack] = {"bytecode": _bytecode}


# -- broken at random ------------------------------------------------------------------------------

_CLASSES = (
    "Dense",
    "Lambda",
    "TFSMLayer",
    "Sequential",
    "Functional",
    "function",
    "__lambda__",
    "__tensor__",
    "__typespec__",
    "LSTM",
    "Bidirectional",
    "StringLookup",
    "TFOpLambda",
    "InputLayer",
    "Add",
    "Pad",
    "Map",
    "os",
    "",
    "Dense" * 99,
)
_MODULES = (
    "os",
    "builtins",
    "keras",
    "keras.layers",
    "keras.utils",
    "keras.src.ops.numpy",
    "keras.src.saving.saving_lib",
    "hostile_canary",
    "",
    "keras..x",
)
_NAMES = (
    "system",
    "relu",
    "get_file",
    "deserialize",
    "load_model",
    "eval",
    "_CONSTANT_VALUE",
    "a/b",
    "x" * 5000,
    "\ud800",
    "",
    "string",
    "int8",
)
_NUMBERS = (0, -1, 1, 2**31, 10**9, 10**18, 10**400, 0.5, 1e308, float("nan"), float("inf"))
_OTHERS = (None, True, False, [], {}, [[]], "", "text")
_KEYS = (
    "class_name",
    "module",
    "registered_name",
    "config",
    "name",
    "inbound_nodes",
    "compile_config",
    "build_config",
    "dtype",
    "shape",
    "function",
)


def _slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: a dict and a key, or a list and an index."""
    entries = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    for key, item in entries:
        yield value, key
        yield from _slots(item)


def mutated(config: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The configuration with one to three changes of its structure."""
    config = copy.deepcopy(config)
    for _ in range(rng.randint(1, 3)):
        slots = list(_slots(config))
        if not slots:
            return config
        change = rng.choice(_CHANGES)
        change(slots, rng)
        if change is _nest:  # what walks over it here would not survive twice the depth
            break
    return config


def _replace(slots: list[tuple[Any, Any]], rng: random.Random) -> None:
    where, key = rng.choice(slots)
    where[key] = rng.choice(rng.choice((_CLASSES, _MODULES, _NAMES, _NUMBERS, _OTHERS)))


def _rename(slots: list[tuple[Any, Any]], rng: random.Random) -> None:
    where, key = rng.choice(
        [slot for slot in slots if slot[1] in ("class_name", "module", "registered_name")] or slots
    )
    where[key] = rng.choice(rng.choice((_CLASSES, _MODULES, _NAMES)))


def _number(slots: list[tuple[Any, Any]], rng: random.Random) -> None:
    where, key = rng.choice(
        [slot for slot in slots if isinstance(slot[0][slot[1]], int | float)] or slots
    )
    where[key] = rng.choice(_NUMBERS)


def _delete_entry(slots: list[tuple[Any, Any]], rng: random.Random) -> None:
    where, key = rng.choice(slots)
    del where[key]


def _move(slots: list[tuple[Any, Any]], rng: random.Random) -> None:
    where, key = rng.choice(slots)
    other, another = rng.choice(slots)
    where[key] = copy.deepcopy(other[another])


def _nest(slots: list[tuple[Any, Any]], rng: random.Random) -> None:
    where, key = rng.choice(slots)
    for _ in range(rng.choice((1, 5, 70, 220))):
        where[key] = rng.choice(
            (
                [where[key]],
                {"class_name": "Sequential", "config": {"layers": [where[key]]}},
                {rng.choice(_KEYS): where[key]},
            )
        )


def _insert(slots: list[tuple[Any, Any]], rng: random.Random) -> None:
    where, _ = rng.choice([slot for slot in slots if isinstance(slot[0], dict)])
    where[rng.choice(_KEYS)] = rng.choice(
        rng.choice((_CLASSES, _MODULES, _NAMES, _NUMBERS, _OTHERS))
    )


_CHANGES = (_replace, _rename, _number, _delete_entry, _move, _nest, _insert)


def flipped(content: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, a piece cut out, or a piece repeated."""
    data = bytearray(content)
    kind = rng.randrange(4)
    if kind < 2:
        head = min(len(data), 2048) if kind else len(data)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(head)] = rng.randrange(256)
    else:
        start = rng.randrange(len(data))
        piece = data[start : start + rng.randint(1, 512)]
        data[start : start + len(piece)] = piece * 2 if kind == 2 else b""
    return bytes(data)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sandbox(folder: Path) -> Path:
    """A folder with files to attack, and a module that leaves a trace when it is imported."""
    (folder / "precious").mkdir(parents=True)
    (folder / "precious" / "file").write_text("a secret", encoding="utf-8")
    (folder / "library.so").write_bytes(b"no library")
    trace = folder / "imported"
    (folder / "hostile_canary.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nclass Anything:\n    pass\n", encoding="utf-8"
    )
    np.save(folder / "precious" / "array.npy", np.arange(4.0))
    return folder
