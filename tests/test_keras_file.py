"""Model files on disk: damaged ones, those that refer to other files, and files of other kinds."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc import api
from lrfc.engine import build as compiler
from lrfc.errors import DependencyError, LrfcError, ModelError, UsageError
from lrfc.ir.backend import keras
from lrfc.ir.keras import file as keras_file
from lrfc.ir.keras import load as keras_load
from tests import helpers
from tests.hostile_models import config_of, rewritten

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model in both formats."""
    folder = tmp_path_factory.mktemp("saved")
    model = helpers.dense_net()
    paths = {suffix: folder / f"model{suffix}" for suffix in (".keras", ".h5")}
    for path in paths.values():
        model.save(path)
    return paths


# -- documents -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "5",
        '"text"',
        "{",
        '{"keras_version": []}',
        '{"keras_version": null}',
        b"\xff\xfe\xfa",
    ],
)
def test_metadata(saved: dict[str, Path], tmp_path: Path, text: Any) -> None:
    path = rewritten(saved[".keras"], tmp_path / "m.keras", metadata_json=text)
    with pytest.raises(ModelError, match=r"metadata\.json|keras_version"):
        keras_load.load(path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "5",
        "{}",
        '{"class_name": 5, "config": {}}',
        '{"class_name": "Functional", "config": null}',
        "[" * 5000,
    ],
)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_configuration(saved: dict[str, Path], tmp_path: Path, suffix: str, text: str) -> None:
    with pytest.raises(ModelError, match="config"):
        keras_load.load(rewritten(saved[suffix], tmp_path / f"m{suffix}", text=text))


@pytest.mark.parametrize("value", [[], "text", 5])
def test_compilation_that_is_no_object(saved: dict[str, Path], tmp_path: Path, value: Any) -> None:
    text = json.dumps(config_of(saved[".keras"]) | {"compile_config": value})
    with pytest.raises(ModelError, match="compile_config"):
        keras_load.load(rewritten(saved[".keras"], tmp_path / "m.keras", text=text))
    with pytest.raises(ModelError, match="training_config"):
        keras_load.load(
            rewritten(saved[".h5"], tmp_path / "m.h5", training_config=json.dumps(value))
        )


def test_a_file_without_metadata(saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved[".keras"], tmp_path / "m.keras", metadata_json=None)
    helpers.same(keras_load.load(saved[".keras"]), keras_load.load(path), 1e-6)


def test_an_input_of_text(tmp_path: Path) -> None:
    k = keras()
    words = k.Input((1,), dtype="string")
    lookup = k.layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot")
    k.Model(words, k.layers.Dense(2)(lookup(words))).save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match=r"input '.*' is of type string"):
        compiler.inspect(tmp_path / "m.keras")


# -- archives --------------------------------------------------------------------------------------


def test_an_encrypted_archive(saved: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(saved[".keras"].read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(signature, start + 1)) >= 0:
            content[start + offset] |= 1
    path = tmp_path / "m.keras"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="encrypted"):
        keras_load.load(path)


@pytest.mark.parametrize(
    "name",
    [
        "assets/../../outside",
        "assets//outside",
        "assets/a\\..\\outside",
        "assets/c:outside",
        "assets/./a",
    ],
)
def test_names_that_leave_the_folder(saved: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = rewritten(saved[".keras"], tmp_path / "m.keras", **{name: b"outside"})
    with pytest.raises(ModelError, match="is no name of an asset"):
        keras_load.load(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.keras"]


def test_a_link_in_an_archive(saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved[".keras"], tmp_path / "m.keras")
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("assets/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ModelError, match="is no name of an asset"):
        keras_load.load(path)


def test_an_archive_that_unpacks_to_too_many_bytes(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras_file, "_UNPACKED_BYTES", 1 << 20)
    path = rewritten(saved[".keras"], tmp_path / "m.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(100 << 20))
    with pytest.raises(ModelError, match=r"unpacks to more than [\d,]+ bytes"):
        keras_load.load(path)


def test_two_configurations(saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved[".keras"], tmp_path / "m.keras")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", "{}")
    with pytest.raises(ModelError, match=r"more than one config\.json"):
        keras_load.load(path)


# -- HDF5 ------------------------------------------------------------------------------------------


def _h5(path: Path, change: Any) -> Path:
    import h5py

    with h5py.File(path, "r+") as file:
        group = file["model_weights/head"]
        while "kernel" not in group:
            group = group[next(iter(group))]
        change(group, group["kernel"][()])
    return path


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "external array", "virtual", "text", "declared"]
)
def test_weights_in_another_file(saved: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """The content of another file is never read as a weight."""
    import h5py

    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.zeros((12, 4), np.float32)

    def change(group: Any, kernel: Any) -> None:
        del group["kernel"]
        if kind == "external link":
            group["kernel"] = h5py.ExternalLink(str(secret), "/kernel")
        elif kind == "soft link":
            group["kernel"] = h5py.SoftLink("/elsewhere")
        elif kind == "external array":
            group.create_dataset(
                "kernel",
                kernel.shape,
                kernel.dtype,
                external=[(str(secret), 0, h5py.h5f.UNLIMITED)],
            )
        elif kind == "virtual":
            layout = h5py.VirtualLayout(kernel.shape, kernel.dtype)
            layout[:] = h5py.VirtualSource(str(secret), "kernel", kernel.shape)
            group.create_virtual_dataset("kernel", layout)
        elif kind == "text":
            group["kernel"] = "text"
        else:
            group.create_dataset(
                "kernel", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024), compression="gzip"
            )

    path = _h5(rewritten(saved[".h5"], tmp_path / "m.h5"), change)
    with pytest.raises(
        ModelError, match=r"kernel' (is a link|lies in another file|holds no numbers|declares more)"
    ):
        keras_load.load(path)


def test_an_h5_file_without_weights(saved: dict[str, Path], tmp_path: Path) -> None:
    import h5py

    path = rewritten(saved[".h5"], tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        del file["model_weights"]
    with pytest.raises(ModelError, match="without its weights"):
        keras_load.load(path)


def test_half_precision_weights_survive_the_copy(saved: dict[str, Path], tmp_path: Path) -> None:
    k = keras()
    model = k.Sequential(
        [k.Input((6,)), k.layers.Dense(4, dtype="bfloat16"), k.layers.Dense(3, dtype="float16")]
    )
    model.save(tmp_path / "m.keras")
    loaded = keras_load.load(tmp_path / "m.keras")
    for before, after in zip(model.weights, loaded.weights, strict=True):
        assert np.array_equal(np.asarray(before, np.float32), np.asarray(after, np.float32))
    assert all(path.exists() for path in saved.values())


# -- paths and objects that are no model file ------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "~nouser/x.keras", "a" * 300, "b/" * 2500, "nul\0.keras"]
)
def test_a_path_that_is_no_model_file(path: str) -> None:
    with pytest.raises(UsageError) as caught:
        keras_load.load(path)
    assert len(str(caught.value)) < 400
    assert len(str(caught.value).splitlines()) == 1


def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a pipe"):
        keras_load.load(tmp_path / "pipe")


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "m.keras").open("wb") as file:
        file.truncate(keras_file.MODEL_BYTES + 1)
    with pytest.raises(UsageError, match=r"at most 8,589,934,592 are read"):
        keras_load.load(tmp_path / "m.keras")


@pytest.mark.parametrize("model", [None, 5, b"model.keras", ["model.keras"], object()])
def test_an_object_that_is_no_model(model: Any, tmp_path: Path) -> None:
    for run in (
        api.inspect,
        lambda given: api.build(given, out=tmp_path / "out"),
        api.build,
        api.explore,
    ):
        with pytest.raises(UsageError, match=r"a model is the path of|no model is given"):
            run(model)


@pytest.mark.parametrize("backend", ["jax", "torch", "nonsense"])
def test_another_backend(backend: str) -> None:
    """Runs in a new process, since Keras chooses its backend once."""
    import subprocess
    import sys

    code = (
        "from lrfc.ir.backend import keras\nfrom lrfc.errors import DependencyError\ntry:"
        " keras()\nexcept DependencyError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"Keras runs on '{backend}' here" in done.stdout, done.stderr
    assert issubclass(DependencyError, LrfcError)
