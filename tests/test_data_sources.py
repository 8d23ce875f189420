"""Where samples come from: functions, folders, streams and large sets; and their weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.data import mapped as streams
from lrfc.errors import UsageError
from lrfc.system import memory
from tests import helpers
from tests.small_data import RNG, graph, load, said, vectors

# -- functions and folders -------------------------------------------------------------------------


def test_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_samples.py").write_text(
        "import numpy as np\n"
        "x = np.random.default_rng(0).standard_normal((80, 5)); y = np.arange(80) % 3\n"
        "def pair(): return x, y\n"
        "def named(): return {'x': x, 'y': y, 'x_val': x[:3] + 1, 'y_val': y[:3]}\n"
        "def keras_like(): return (x, y), (x[:6] + 1, y[:6])\n"
        "def three(): return (x, y), (x[:5] + 1, y[:5]), (x[:6] + 2, y[:6])\n"
        "def inputs_only(): return x\n"
        "def broken(): raise RuntimeError('no\\nnet')\n"
        "def nothing(): return None\n",
        encoding="utf-8",
    )
    sizes = {
        name: [len(s) for s in (d.train, d.validation, d.test)]
        for name in ("pair", "named", "keras_like", "three", "inputs_only")
        for d in [load(f"own_samples:{name}", graph(5))]
    }
    assert sizes == {
        "pair": [72, 8, 8],
        "named": [80, 3, 3],
        "keras_like": [72, 8, 6],
        "three": [80, 5, 6],
        "inputs_only": [72, 8, 8],
    }
    assert load("own_samples:inputs_only", graph(5)).train.targets is None
    assert "RuntimeError: no net" in said("own_samples:broken", graph(5))
    assert "NoneType: return (x, y)" in said("own_samples:nothing", graph(5))
    assert "has no attribute 'absent'" in said("own_samples:absent", graph(5))
    assert "No module named 'absent_module'" in said("absent_module:f", graph(5))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("ants", "bees")):
        (root / name).mkdir()
        for i in range(15):
            pixels = np.full((10, 12, 3), 100 * number, np.uint8)
            pixels[0, 0] = i
            (root / name / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return root


def test_folder(image_folder: Path) -> None:
    data = load(image_folder, graph(10, 12, 3, classes=2))
    assert (len(data.train), data.validation) == (30, data.train)
    assert data.preprocessing == "pixels 0–255 from image files, resized to 10×12, 3 channels"
    x, y = data.train.inputs[0], data.train.targets[0]  # type: ignore[index]
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x[:, 5, 5, 0], y * 100)
    assert "0–255" in data.notes[0]


def test_folder_resizes_converts_and_limits(image_folder: Path) -> None:
    assert load(image_folder, graph(5, 6, 1, classes=2)).train.inputs[0].shape == (30, 5, 6, 1)
    assert load(image_folder, graph(3, 6, 7, classes=2)).train.inputs[0].shape == (30, 3, 6, 7)
    assert len(load(image_folder, graph(5, 6, 3, classes=2), limit=8).train) == 8


def test_a_large_folder_is_mapped(image_folder: Path) -> None:
    same = load(image_folder, graph(10, 12, 3, classes=2))
    with memory.limited(0):  # every array is large
        data = load(image_folder, graph(10, 12, 3, classes=2))
    assert not streams.is_mapped(same.train.inputs[0])
    assert streams.is_mapped(data.train.inputs[0])
    np.testing.assert_array_equal(data.train.inputs[0], same.train.inputs[0])


def test_folder_with_splits(image_folder: Path, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).symlink_to(image_folder)
    assert "test samples" in said(
        tmp_path, graph(10, 12, 3, classes=2)
    )  # the same images: the overlap is found


def test_folder_refusals(image_folder: Path, tmp_path: Path) -> None:
    assert "2 class folders, the model has 3 outputs" in said(
        image_folder, graph(5, 5, 3, classes=3)
    )
    assert "one image input of fixed size" in said(image_folder, graph(5, classes=2))
    assert "no class folders" in said(tmp_path, graph(5, 5, 3))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert "no images" in said(tmp_path, graph(5, 5, 3, classes=2))
    (tmp_path / "a" / "x.png").write_bytes(b"not an image")
    assert "x.png" in said(tmp_path, graph(5, 5, 3, classes=2))


# -- a handful, and larger than memory -------------------------------------------------------------


def test_a_handful_validates_itself() -> None:
    data = load(vectors(32), graph(5))
    assert data.few
    assert data.validation is data.train
    assert sorted(map(bytes, data.train.inputs[0])) == sorted(map(bytes, vectors(32)[0]))
    assert len(data.notes) == 1
    assert re.search(
        "only 32 training samples.*nothing is trained.*validation samples too", data.notes[0]
    )
    with_test = load(vectors(32), graph(5), test=vectors(90, seed=8))
    assert with_test.few
    assert len(with_test.test) == 90
    own = load({"x": vectors(32)[0], "x_val": vectors(32, seed=3)[0]}, graph(5))
    assert own.few
    assert own.validation is not own.train
    assert "too" not in own.notes[0]
    assert not load(vectors(65), graph(5)).few
    assert not load(None, graph(5)).few


def test_npy_folder(tmp_path: Path) -> None:
    x, y = vectors(200)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    data, same = load(tmp_path, graph(5)), load((x, y), graph(5))
    np.testing.assert_array_equal(data.train.inputs[0], same.train.inputs[0])
    assert data.validation.targets is not None
    np.testing.assert_array_equal(data.validation.targets, same.validation.targets)
    (tmp_path / "y.npy").write_bytes(b"broken")
    assert "y.npy' cannot be read" in said(tmp_path, graph(5))


@pytest.mark.parametrize("form", ["npz", "packed", "npy", "stream"])
def test_large_sets_are_mapped(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LARGE", 10_000)
    monkeypatch.setattr(streams, "_ROWS", 100)
    x = RNG.standard_normal((1000, 5)).astype(np.float64 if form == "npy" else np.float32)
    y = np.arange(1000) % 3
    given: Any = tmp_path
    if form == "npy":
        np.save(tmp_path / "x.npy", x)
        np.save(tmp_path / "y.npy", y)
    elif form == "stream":
        given = ((x[i : i + 64], y[i : i + 64]) for i in range(0, 1000, 64))
    else:
        given = tmp_path / "d.npz"
        (np.savez if form == "npz" else np.savez_compressed)(given, x=x, y=y)
    data, same = load(given, graph(5)), load((x, y), graph(5))
    assert streams.is_mapped(data.train.inputs[0])
    assert not streams.is_mapped(same.train.inputs[0])
    for one, other in ((data.train, same.train), (data.validation, same.validation)):
        np.testing.assert_array_equal(one.inputs[0], other.inputs[0])
        np.testing.assert_array_equal(one.targets[0], other.targets[0])  # type: ignore[index]
    bad = x.copy()
    bad[777, 2] = np.nan
    np.save(tmp_path / "x.npy", bad)
    np.save(tmp_path / "y.npy", y)
    assert "in 1 samples, the first is number 777" in said(tmp_path, graph(5))


# -- streams ---------------------------------------------------------------------------------------


def dataset(*arrays: Any, batch: int | None = None) -> Any:
    import tensorflow as tf

    found = tf.data.Dataset.from_tensor_slices(arrays[0] if len(arrays) == 1 else arrays)
    return found if batch is None else found.batch(batch)


@pytest.mark.parametrize("batch", [None, 32])
def test_tf_dataset(batch: int | None) -> None:
    x, y = vectors(100)
    data, same = load(dataset(x, y, batch=batch), graph(5)), load((x, y), graph(5))
    assert data.source == "tf.data.Dataset"
    assert data.preprocessing == "as given from Python"
    np.testing.assert_array_equal(data.train.inputs[0], same.train.inputs[0])
    assert data.train.targets is not None
    np.testing.assert_array_equal(data.train.targets, same.train.targets)
    assert load(dataset(x, batch=batch), graph(5)).train.targets is None
    weighted = load(dataset(x, y, np.arange(100.0), batch=batch), graph(5))
    assert weighted.train.weights is not None
    rows = [int(np.flatnonzero((x == sample).all(1))[0]) for sample in weighted.train.inputs[0]]
    np.testing.assert_array_equal(weighted.train.weights, rows)
    grey = load(
        dataset(np.arange(100 * 12).reshape(100, 3, 4).astype(np.uint8), y, batch=batch),
        graph(3, 4, 1),
    )
    assert grey.train.inputs[0].shape == (90, 3, 4, 1)


@pytest.mark.parametrize("batch", [None, 16])
def test_tf_dataset_of_mappings(batch: int | None) -> None:
    g = helpers.graph_of(helpers.two_inputs())
    inputs = {
        "vector": RNG.standard_normal((80, 5)),
        "image": RNG.integers(0, 255, (80, 8, 8, 2)).astype(np.uint8),
    }
    outputs = {"value": RNG.standard_normal(80), "label": np.arange(80) % 3}
    for stream in (dataset(inputs, outputs, batch=batch), dataset(inputs | outputs, batch=batch)):
        train = load(stream, g).train
        assert [x.shape for x in train.inputs] == [
            (72, *g.tensors(name)[0].shape[1:]) for name in g.inputs
        ]
        assert train.targets is not None
        assert [y.shape for y in train.targets] == [(72,), (72, 1)]
    assert load(dataset(inputs, batch=batch), g).train.targets is None


def test_splits_of_streams() -> None:
    x, y = vectors(100)
    data = load((dataset(x, y), dataset(x[:20] + 1, y[:20])), graph(5))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [90, 10, 20]
    named = load({"train": dataset(x, y), "val": (x[:9] + 2, y[:9])}, graph(5))
    assert [len(s) for s in (named.train, named.validation)] == [100, 9]
    assert "are training samples too" in said(dataset(x, y), graph(5), test=dataset(x[:30], y[:30]))


def test_py_dataset_and_generators() -> None:
    import keras

    x, y = vectors(100)

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 10

        def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
            return x[10 * i : 10 * i + 10], y[10 * i : 10 * i + 10]

    same = load((x, y), graph(5)).train.inputs[0]
    np.testing.assert_array_equal(load(Batches(), graph(5)).train.inputs[0], same)
    np.testing.assert_array_equal(load(zip(x, y, strict=True), graph(5)).train.inputs[0], same)
    np.testing.assert_array_equal(
        load(lambda: (row for row in x), graph(5)).train.inputs[0].shape, same.shape
    )


def test_streams_are_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = vectors(100)
    endless = dataset(x, y).repeat()
    assert ".take(n)" in said(endless, graph(5))
    assert len(load(endless, graph(5), limit=70).train) == 70
    monkeypatch.setattr(streams, "KEPT", 80 * 20)
    data = load((row for row in x), graph(5))
    assert len(data.train) + len(data.validation) == 80
    assert any("only the first 80 samples" in note for note in data.notes)


def test_streams_that_do_not_fit() -> None:
    def broken() -> Any:
        yield np.zeros((4, 5))
        raise RuntimeError("no\nnet")

    assert "RuntimeError: no net" in said(broken(), graph(5))
    assert "different shapes, (5,) and (6,)" in said((np.zeros(n) for n in (5, 6)), graph(5))
    assert "the model expects (5,)" in said((np.zeros((4, 6)) for _ in range(3)), graph(5))
    assert "no samples" in said(iter(()), graph(5))


# -- weights of samples ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tuple", "dict", "npz"])
def test_weights_of_samples(form: str, tmp_path: Path) -> None:
    x, y = vectors(100)
    weights = np.arange(100.0)
    given: Any = (x, y, weights)
    if form != "tuple":
        given = {"x": x, "y": y, "sample_weight": weights, "x_val": x[:20] + 1, "y_val": y[:20]}
    if form == "npz":
        np.savez(tmp_path / "data.npz", **given)
        given = str(tmp_path / "data.npz")
    data = load(given, graph(5))
    assert data.train.weights is not None
    assert data.train.weights.dtype == np.float32
    rows = [int(np.flatnonzero((x == sample).all(1))[0]) for sample in data.train.inputs[0]]
    np.testing.assert_array_equal(data.train.weights, rows)
    assert not any("sample_weight" in note for note in data.notes)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        (np.ones(99), r"have shape \(99,\); give one for each of 100"),
        (np.ones((100, 2)), r"have shape \(100, 2\)"),
        (np.full(100, -1.0), "negative or all 0"),
        (np.zeros(100), "negative or all 0"),
        (np.full(100, np.nan), "NaN or infinite"),
        (np.array(["a"] * 100), "give numbers"),
    ],
)
def test_weights_that_cannot_be(weights: Any, problem: str) -> None:
    x, y = vectors(100)
    with pytest.raises(UsageError, match=f"weights of the samples.*{problem}"):
        load((x, y, weights), graph(5))
    with pytest.raises(UsageError, match="have weights, but no labels"):
        load({"x": x, "sample_weight": np.ones(100)}, graph(5))
