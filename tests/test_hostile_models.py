"""Model files from strangers: they run nothing, touch no file, and end in one line."""

from __future__ import annotations

import json
import random
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrfc.engine import build as compiler
from lrfc.errors import LrfcError, ModelError
from lrfc.ir.keras import allowed as keras_allowed
from lrfc.ir.keras import load as keras_load
from tests import hostile_models as hostile
from tests.hostile_models import Attack

# Keras and tf_keras warn when they write and read the files, TensorFlow of too large numbers, and
# numpy of casts.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same small model in files of Keras 2 and Keras 3."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / name for name in ("old.h5", "old.keras", "new.h5", "new.keras")}
    old = hostile.legacy_model()
    models = {
        "old.h5": old,
        "old.keras": old,
        "new.h5": hostile.model(operation=False),
        "new.keras": hostile.model(),
    }
    for name, model in models.items():
        model.save(paths[name])
        keras_load.load(paths[name])
    return paths


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the attacks.

    The test fails when something in it has changed, or when a library was loaded.
    """
    from tensorflow.python.framework import load_library

    box = hostile.sandbox(tmp_path / "box")
    libraries: list[Any] = []
    monkeypatch.setattr(load_library.py_tf, "TF_LoadLibrary", libraries.append)
    monkeypatch.syspath_prepend(box)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = hostile.snapshot(box)
    yield box
    sys.modules.pop("hostile_canary", None)
    assert hostile.snapshot(box) == before
    assert libraries == []


def attacked(source: Path, attack: Attack, box: Path) -> Path:
    config = hostile.config_of(source)
    attack(config, box)
    return hostile.rewritten(source, box.parent / f"attack{source.suffix}", text=json.dumps(config))


# -- files of Keras 2 ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["old.h5", "old.keras"])
@pytest.mark.parametrize("name", hostile.LEGACY)
def test_a_file_of_keras_2_does_nothing(
    files: dict[str, Path], box: Path, file: str, name: str
) -> None:
    path = attacked(files[file], hostile.LEGACY[name], box)
    with pytest.raises(ModelError, match=r"Lambda layer|calls tf\."):
        keras_load.load(path)


@pytest.mark.parametrize("name", hostile.LEGACY_ARCHIVE)
def test_no_module_is_imported(files: dict[str, Path], box: Path, name: str) -> None:
    path = attacked(files["old.keras"], hostile.LEGACY_ARCHIVE[name], box)
    if name == "compilation":  # what a nested model was compiled with is not read at all
        assert keras_load.load(path).name == "victim"
        return
    with pytest.raises(ModelError, match="hostile_canary"):
        keras_load.load(path)


def test_bytecode_in_a_wrapper(files: dict[str, Path], box: Path) -> None:
    path = attacked(files["old.h5"], hostile.LEGACY_HDF5["bytecode"], box)
    with pytest.raises(ModelError, match="Lambda layer"):
        keras_load.load(path)


@pytest.mark.parametrize("file", ["old.h5", "old.keras"])
def test_the_command_line_may_load_what_is_unsafe(
    files: dict[str, Path], tmp_path: Path, file: str
) -> None:
    """With --unsafe-load the attack succeeds, so the tests above would detect one."""
    box = hostile.sandbox(tmp_path / "box")
    path = attacked(files[file], hostile.LEGACY["write"], box)
    with pytest.raises(LrfcError):
        keras_load.load(path, unsafe=True)
    assert (box / "written").read_text(encoding="utf-8") == "owned"


@pytest.mark.parametrize("file", ["old.h5", "old.keras", "new.h5", "new.keras"])
def test_a_duplicate_key(files: dict[str, Path], tmp_path: Path, file: str) -> None:
    """Of a duplicate key, one reader may use the first entry and another the second."""
    text = json.dumps(hostile.config_of(files[file])).replace(
        '"class_name"', '"class_name": "Lambda", "class_name"', 1
    )
    path = hostile.rewritten(files[file], tmp_path / f"twice{files[file].suffix}", text=text)
    with pytest.raises(ModelError, match="key twice"):
        keras_load.load(path)


# -- files of Keras 3 ------------------------------------------------------------------------------


def _entry(name: str, **config: Any) -> Attack:
    """Replace the first layer by one of keras.layers."""

    def change(model: dict[str, Any], box: Path) -> None:
        given = {
            key: str(box / value) if key in ("filepath", "vocabulary") else value
            for key, value in config.items()
        }
        entry = {
            "class_name": name,
            "module": "keras.layers",
            "registered_name": None,
            "config": {"name": "conv"} | given,
        }
        hostile.layer(model, "conv").update(entry)

    return change


def _named(module: str, name: str) -> Attack:
    """Replace an activation by a function."""

    def change(model: dict[str, Any], box: Path) -> None:
        entry = {
            "class_name": "function",
            "module": module,
            "config": name,
            "registered_name": name,
        }
        hostile.layer(model, "conv")["config"]["activation"] = entry

    return change


def _object(module: str | None, name: str, **config: Any) -> Attack:
    """Replace a regularizer by an object."""

    def change(model: dict[str, Any], box: Path) -> None:
        entry = {"class_name": name, "module": module, "config": config, "registered_name": None}
        hostile.layer(model, "conv")["config"]["kernel_regularizer"] = entry

    return change


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (_entry("TFSMLayer", filepath="precious"), "keras.layers.TFSMLayer"),
        (_entry("TorchModuleWrapper", module="AAAA"), "TorchModuleWrapper"),
        (_entry("JaxLayer"), "JaxLayer"),
        (_entry("FlaxLayer"), "FlaxLayer"),
        (_entry("Lambda", function={"class_name": "__lambda__", "config": {}}), "--unsafe-load"),
        (_entry("TextVectorization", vocabulary="precious/file"), "vocabulary"),
        (_entry("StringLookup", vocabulary="precious/file"), "precious/file"),
        (_entry("IntegerLookup", vocabulary="precious/file"), "vocabulary"),
        (_named("keras.utils", "get_file"), "get_file"),
        (_named("keras.saving", "load_model"), "load_model"),
        (_named("builtins", "deserialize"), "deserialize"),
        (_named("builtins", "eval"), "eval"),
        (_named("os", "system"), r"'system'.*\(os\)"),
        (_object("keras.src.saving.file_editor", "KerasFileEditor"), "KerasFileEditor"),
        (_object("keras.src.utils.file_utils", "File"), "File"),
        (_object("keras.utils", "FeatureSpace"), "FeatureSpace"),
        (_object("keras.src.ops.core", "Map"), "Map"),
        (_object("keras.src.ops.operation", "Operation"), "Operation"),
        (_object("keras_hub.models", "Backbone"), "keras_hub"),
        (_object(None, "__typespec__"), "__typespec__"),
        (_object(None, "__lambda__"), "--unsafe-load"),
        (_object(None, "TypeSpec"), "TypeSpec"),
    ],
)  # fmt: skip
def test_a_file_of_keras_3_names_only_what_computes(
    files: dict[str, Path], box: Path, attack: Attack, named: str
) -> None:
    path = attacked(files["new.keras"], attack, box)
    with pytest.raises(ModelError, match=named):
        keras_load.load(path)


@pytest.mark.parametrize("key", ["class_name", "module", "registered_name"])
@pytest.mark.parametrize("value", [5, ["os"], {"class_name": "os"}])
def test_a_name_that_is_not_text(
    files: dict[str, Path], tmp_path: Path, key: str, value: Any
) -> None:
    config = hostile.config_of(files["new.keras"])
    hostile.layer(config, "conv")[key] = value
    path = hostile.rewritten(files["new.keras"], tmp_path / "m.keras", text=json.dumps(config))
    with pytest.raises(ModelError, match=f"a {key} in its configuration is"):
        keras_load.load(path)


def test_every_layer_of_keras_is_listed() -> None:
    """A class that a new Keras adds is refused until it has been reviewed."""
    import keras

    exported = {name for name in dir(keras.layers) if isinstance(getattr(keras.layers, name), type)}
    assert exported <= keras_allowed.LAYERS | set(keras_allowed.REFUSED_LAYERS)
    assert not keras_allowed.LAYERS & set(keras_allowed.REFUSED_LAYERS)


def test_an_operation_that_is_listed_calls_no_function() -> None:
    import inspect
    from importlib import import_module

    for module in sorted(keras_allowed.OPERATIONS):
        for name in vars(import_module(module)):
            if keras_allowed._is_operation(module, name):
                parameters = set(
                    inspect.signature(getattr(import_module(module), name).__init__).parameters
                )
                assert not parameters & {
                    "f",
                    "fn",
                    "func",
                    "function",
                    "body_fun",
                    "cond",
                    "callable",
                }, name


def test_a_class_that_the_user_registered(tmp_path: Path) -> None:
    import keras

    @keras.saving.register_keras_serializable("lrfc_tests")
    class Halving(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, activation: str = "mine alone", **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.activation = activation

        def call(self, x: Any) -> Any:
            return x / 2

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "activation": self.activation}

    inputs = keras.Input((3,))
    for suffix in (".keras", ".h5"):
        path = tmp_path / f"model{suffix}"
        keras.Model(inputs, Halving(name="half")(inputs)).save(path)
        assert keras_load.load(path).get_layer("half").activation == "mine alone"
    with keras.saving.custom_object_scope({"Halving": Halving}):
        assert type(keras_load.load(path).get_layer("half")) is Halving


def test_losses_that_are_not_of_keras_are_left_out(tmp_path: Path, box: Path) -> None:
    model = hostile.model()
    model.compile(loss="mse", metrics=["mae"])
    model.save(tmp_path / "model.keras")
    assert keras_load.load(tmp_path / "model.keras").loss == "mse"
    config = hostile.config_of(tmp_path / "model.keras")
    entry = {
        "class_name": "Anything",
        "module": "hostile_canary",
        "config": {},
        "registered_name": None,
    }
    config["compile_config"]["loss"] = entry
    path = hostile.rewritten(
        tmp_path / "model.keras", tmp_path / "other.keras", text=json.dumps(config)
    )
    assert keras_load.load(path).get_compile_config()["loss"] is None


# -- more weights than there are -------------------------------------------------------------------


@pytest.mark.parametrize("file", ["old.h5", "old.keras", "new.h5", "new.keras"])
def test_a_layer_of_terabytes(files: dict[str, Path], tmp_path: Path, file: str) -> None:
    config = hostile.config_of(files[file])
    hostile.layer(config, "head")["config"]["units"] = 10**11
    path = hostile.rewritten(files[file], tmp_path / file, text=json.dumps(config))
    with pytest.raises(ModelError, match="more weights than the file holds"):
        keras_load.load(path)


# -- at random -------------------------------------------------------------------------------------


class _HangError(BaseException):
    """The loading of a model takes a minute."""


def _hang(*_: Any) -> None:
    raise _HangError


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.sandbox(tmp_path_factory.mktemp("random") / "box")


def broken(source: Path, rng: random.Random, target: Path) -> Path:
    """A randomly broken model file: in its configuration, its bytes or its other members."""
    path = target.parent / f"broken{source.suffix}"
    if rng.random() < 0.75:
        config = hostile.mutated(hostile.config_of(source), rng)
        return hostile.rewritten(source, path, text=json.dumps(config))
    if source.suffix == ".h5" or rng.random() < 0.5:
        path.write_bytes(hostile.flipped(source.read_bytes(), rng))
        return path
    with zipfile.ZipFile(source) as archive:
        weights = hostile.flipped(archive.read("model.weights.h5"), rng)
    return hostile.rewritten(source, path, **{"model.weights.h5": weights})


def refusal(path: Path) -> LrfcError | None:
    """The error with which ``lrfc inspect`` ends; None when it succeeds.

    Any other exception propagates, and _HangError is raised after a minute.
    """
    alarm = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(60)
    try:
        compiler.inspect(path)
    except LrfcError as error:
        return error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
    return None


@settings(max_examples=settings.default.max_examples * 12)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_broken_model_ends_in_one_line(files: dict[str, Path], target: Path, seed: int) -> None:
    """All errors are those of lrfc, no file is touched, and none takes a minute."""
    rng = random.Random(seed)
    source = files[rng.choice(("old.h5", "old.keras", "new.h5", "new.keras", "new.keras"))]
    before, error = hostile.snapshot(target), refusal(broken(source, rng, target))
    assert hostile.snapshot(target) == before
    if error is not None:
        assert error.exit_code in (2, 3, 6)
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 2000


def test_the_broken_models_differ(files: dict[str, Path], target: Path) -> None:
    contents = {
        broken(files["new.keras"], random.Random(seed), target).read_bytes() for seed in range(20)
    }
    assert len(contents) >= 18
    assert np.mean([len(content) for content in contents]) > 1000
