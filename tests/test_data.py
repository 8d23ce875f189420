"""The forms of --data, the checks against the model, the splits, and the overlaps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfc.data import readers as sources
from lrfc.data.dataset import Split
from lrfc.ir.graph import Graph
from tests import helpers
from tests.small_data import RNG, graph, load, said, vectors

# -- digits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits_graph() -> Graph:
    return helpers.graph_of(helpers.conv_net(size=8, channels=1, classes=10))


def test_digits(digits_graph: Graph) -> None:
    data = load("digits", digits_graph)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1079, 269, 449]
    assert not data.test_is_validation
    assert data.source == "digits"
    assert data.preprocessing == "digits 0–16 scaled to 0–1"
    assert data.notes == ()
    assert data.train.inputs[0].shape[1:] == (8, 8, 1)
    assert data.train.inputs[0].min() == 0
    assert data.train.inputs[0].max() == 1
    everything = np.concatenate(
        [s.inputs[0] for s in (data.train, data.validation, data.test)]
    ).reshape(1797, 64)
    from sklearn.datasets import load_digits

    assert sorted(map(bytes, everything)) == sorted(
        map(bytes, (load_digits().data / 16).astype(np.float32))
    )


def test_the_test_digits_do_not_depend_on_the_seed(digits_graph: Graph) -> None:
    one, other = (load("digits", digits_graph, seed=seed) for seed in (0, 7))
    np.testing.assert_array_equal(one.test.inputs[0], other.test.inputs[0])
    assert {bytes(x) for x in one.train.inputs[0]} == {bytes(x) for x in other.train.inputs[0]}
    for split in (one.train, one.validation, one.test):
        counts = np.bincount(split.targets[0])  # type: ignore[index]
        assert counts.max() - counts.min() <= 0.1 * len(split) / 10 + 2


def test_digits_for_a_flat_input() -> None:
    assert load("digits", graph(64, classes=10)).train.inputs[0].shape == (1079, 64)


def test_digits_for_another_input() -> None:
    assert re.search(
        r"\(8, 8, 1\).*the model expects \(28, 28, 1\).*resize",
        said("digits", graph(28, 28, 1, classes=10)),
    )


def test_the_example_reads_what_it_never_saw(digits_graph: Graph) -> None:
    from lrfc.ir.keras import io as keras_io
    from lrfc.ir.keras import load as keras_load

    model = keras_load.load(Path(__file__).parent.parent / "examples" / "digits.keras")
    g = keras_io.from_keras(model)
    data = load("digits", g)
    (scores,) = keras_io.predict(g, data.test.inputs)
    assert data.test.targets is not None
    assert (scores.argmax(1) == data.test.targets[0]).mean() >= 0.98
    assert (Path(__file__).parent.parent / "examples" / "digits.keras").stat().st_size < 500_000


def test_the_example_is_what_its_script_builds() -> None:
    from importlib.util import module_from_spec, spec_from_file_location

    from lrfc.ir.keras import load as keras_load

    folder = Path(__file__).parent.parent / "examples"
    spec = spec_from_file_location("train_digits", folder / "train_digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = keras_load.load(folder / "digits.keras")
    fresh = module.network()
    assert [(type(layer), layer.name) for layer in committed.layers] == [
        (type(layer), layer.name) for layer in fresh.layers
    ]
    assert [w.shape for w in committed.weights] == [w.shape for w in fresh.weights]


# -- npz -------------------------------------------------------------------------------------------


def test_npz_is_split_in_proportion(tmp_path: Path) -> None:
    x, _ = vectors(1000)
    y = np.sort(np.repeat((0, 1, 2), (700, 200, 100)))
    np.savez(tmp_path / "d.npz", x=x, y=y)
    data = load(str(tmp_path / "d.npz"), graph(5))
    assert (len(data.train), len(data.validation)) == (900, 100)
    assert data.test is data.validation
    assert np.bincount(data.validation.targets[0]).tolist() == [70, 20, 10]  # type: ignore[index]
    labels = data.train.targets[0]  # type: ignore[index]
    assert abs(np.bincount(labels[:90]) - [63, 18, 9]).max() <= 1
    rows = {bytes(row): label for row, label in zip(x, y, strict=True)}
    assert all(
        rows[bytes(row)] == label
        for row, label in zip(data.train.inputs[0], data.train.targets[0], strict=True)
    )  # type: ignore[index]
    assert {bytes(r) for r in data.train.inputs[0]} | {
        bytes(r) for r in data.validation.inputs[0]
    } == set(rows)


def test_at_most_5000_are_set_aside() -> None:
    assert (
        len(load({"x": np.arange(60_000, dtype=np.float32).reshape(-1, 1)}, graph(1)).validation)
        == 5000
    )


def test_given_validation_and_test_are_used(tmp_path: Path) -> None:
    (x, y), (xv, yv), (xt, yt) = vectors(seed=1), vectors(10, seed=2), vectors(12, seed=3)
    np.savez(
        tmp_path / "d.npz",
        x_train=x,
        y_train=y,
        x_val=xv,
        y_val=yv,
        x_test=xt,
        y_test=yt,
        names=np.array(["a"]),
    )
    data = load(tmp_path / "d.npz", graph(5))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [80, 10, 12]
    np.testing.assert_array_equal(data.test.inputs[0], xt)
    np.testing.assert_array_equal(data.test.targets[0], yt)  # type: ignore[index]
    assert "not used: 'names'" in data.notes[0]


def test_a_second_spec_is_for_testing_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **dict(zip("xy", vectors(8, seed=9), strict=True)))
    data = load(vectors(), graph(5), test=tmp_path / "t.npz")
    assert len(data.test) == 8
    assert len(data.train) + len(data.validation) == 80
    free = load(None, graph(5), test=tmp_path / "t.npz")
    assert free.synthetic
    assert len(free.test) == 8


def test_several_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    g = helpers.graph_of(helpers.two_inputs())
    image, vector = (
        RNG.integers(0, 255, (20, 8, 8, 2)).astype(np.uint8),
        RNG.standard_normal((20, 5)),
    )
    arrays = {
        "image": image,
        "vector": vector,
        "label": np.arange(20) % 3,
        "value": RNG.standard_normal(20),
    }
    np.savez(tmp_path / "d.npz", **arrays)
    data = load(tmp_path / "d.npz", g)
    assert [x.shape[1:] for x in data.train.inputs] == [
        g.tensors(name)[0].shape[1:] for name in g.inputs
    ]
    assert data.train.targets is not None
    assert [y.shape[1:] for y in data.train.targets] == [(), (1,)]
    del arrays["vector"]
    np.savez(tmp_path / "less.npz", **arrays)
    assert "has 'image' but lacks 'vector'" in said(tmp_path / "less.npz", g)


def test_uint8_stays_uint8_and_float64_becomes_float32() -> None:
    assert (
        load({"x": RNG.integers(0, 255, (30, 4)).astype(np.uint8)}, graph(4)).train.inputs[0].dtype
        == np.uint8
    )
    assert load({"x": RNG.standard_normal((30, 4))}, graph(4)).train.inputs[0].dtype == np.float32


def test_limit(tmp_path: Path) -> None:
    (x, y), (xt, yt) = vectors(300), vectors(90, seed=1)
    data = load({"x": x, "y": y, "x_test": xt, "y_test": yt}, graph(5), limit=30)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 30, 30]
    assert np.bincount(data.train.targets[0]).tolist() == [10, 10, 10]  # type: ignore[index]


def test_the_seed_decides_the_split() -> None:
    one, again, other = (
        load(vectors(), graph(5), seed=seed).validation.inputs[0] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


# -- refusals --------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    g = graph(5)
    assert "does not exist" in said(tmp_path / "none.npz", g)
    assert "does not exist" in said("nonsense", g)
    assert "does not exist" in said("", g)
    (tmp_path / "text.npz").write_text("hello")
    assert "cannot be read as .npz" in said(tmp_path / "text.npz", g)
    np.savez(tmp_path / "whole.npz", x=np.zeros((100, 5)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:900])
    assert "cannot be read as .npz" in said(tmp_path / "cut.npz", g)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    assert "Python objects" in said(tmp_path / "objects.npz", g)
    (tmp_path / "table.csv").write_text("1,2")
    assert "is a .csv file: give 'digits', an .npz file" in said(tmp_path / "table.csv", g)


def test_arrays_that_are_missing() -> None:
    assert "has no array 'x'; it holds 'images'" in said({"images": np.zeros((3, 5))}, graph(5))
    assert "labels 'y_val' but no inputs 'x_val'" in said(
        {"x": np.zeros((3, 5)), "y_val": np.zeros(3)}, graph(5)
    )
    assert "test samples only" in said({"x_test": np.zeros((3, 5))}, graph(5))


@pytest.mark.parametrize(
    ("shape", "wanted", "way_out"),
    [
        ((28, 28, 3), (3, 28, 28), "transpose(0, 3, 1, 2)"),
        ((3, 28, 28), (28, 28, 3), "transpose(0, 2, 3, 1)"),
        ((32, 32, 3), (28, 28, 3), "keras.ops.image.resize(x, (28, 28))"),
        ((784,), (28, 28, 1), "reshape(-1, 28, 28, 1)"),
        ((28, 28, 1), (784,), "reshape(-1, 784)"),
        ((28, 28, 1), (28, 28, 3), "numpy.repeat(x, 3, axis=-1)"),
        ((28, 28, 3), (28, 28, 1), "mean(axis=-1, keepdims=True)"),
        ((9, 128), (128, 9), "transpose(0, 2, 1)"),
        ((6,), (5,), "model expects (5,)"),
    ],
)
def test_wrong_shapes_name_the_way_out(
    shape: tuple[int, ...], wanted: tuple[int, ...], way_out: str
) -> None:
    line = said({"x": np.zeros((4, *shape))}, graph(*wanted))
    assert str(shape) in line
    assert way_out in line
    code = re.search(r"(numpy\.repeat|x)\S*\(.*\)$", line)
    if code and "keras" not in line:
        assert eval(code[0], {"x": np.zeros((4, *shape)), "numpy": np}).shape[1:] == wanted


def test_the_channel_axis_of_grey_images_is_added() -> None:
    assert load({"x": np.zeros((30, 6, 7), np.uint8)}, graph(6, 7, 1)).train.inputs[0].shape == (
        30,
        6,
        7,
        1,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused(bad: float) -> None:
    x = np.zeros((8, 5))
    x[3, 2] = bad
    assert "in 1 samples, the first is number 3" in said({"x": x}, graph(5))


def test_numbers_are_wanted() -> None:
    assert "dtype <U1" in said((np.zeros((3, 5)), np.array(["a", "b", "c"])), graph(5))
    assert "one shape" in said(([np.zeros(5), np.zeros(4)], np.zeros(2)), graph(5))
    assert "single value" in said((np.zeros((3, 5)), np.array(1)), graph(5))


def test_lengths_must_agree() -> None:
    assert "hold 8, 7 samples" in said((np.zeros((8, 5)), np.zeros(7, int)), graph(5))
    assert "no samples" in said((np.zeros((0, 5)), np.zeros(0, int)), graph(5))
    assert "1 training sample, which is too few" in said(
        (np.zeros((1, 5)), np.zeros(1, int)), graph(5)
    )


# -- labels ----------------------------------------------------------------------------------------


def targets(y: np.ndarray, g: Graph) -> np.ndarray:
    x = np.arange(len(y) * 5, dtype=np.float32).reshape(-1, 5)
    found = load({"x": x, "y": y, "x_val": x[:1] + 0.5, "y_val": y[:1]}, g).train
    assert found.targets is not None
    return found.targets[0][np.argsort(found.inputs[0][:, 0])]


def test_forms_of_labels() -> None:
    indices = np.array([2, 0, 1, 1])
    for y in (
        indices,
        indices[:, None],
        indices.astype(np.uint8),
        indices.astype(np.float64),
        np.eye(3)[indices],
        np.eye(3, dtype=bool)[indices],
    ):
        found = targets(y, graph(5))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, indices)
    soft = np.full((4, 3), 1 / 3)
    np.testing.assert_allclose(targets(soft, graph(5)), soft, rtol=1e-6)
    several = np.array([[1, 1, 0]] * 4)
    np.testing.assert_array_equal(targets(several, graph(5)), several)


def test_a_single_output_takes_two_classes_or_values() -> None:
    g = graph(5, classes=1)
    binary = targets(np.array([[0.0], [1.0], [1.0]]), g)
    assert binary.dtype == np.int32
    assert binary.tolist() == [0, 1, 1]
    values = targets(np.array([0.5, 3.0, -2.0]), g)
    assert values.dtype == np.float32
    assert values.shape == (3, 1)


def test_labels_of_maps() -> None:
    masks = RNG.integers(0, 2, (4, 6, 5, 1)).astype(np.uint8)
    x = RNG.standard_normal((4, 6, 5, 3))
    assert load((x, masks), graph(6, 5, 3, classes=1, flat=False)).train.targets[0].shape == (
        4,
        6,
        5,
    )  # type: ignore[index]
    assert (
        load((x, masks), graph(6, 5, 3, classes=2, flat=False)).train.targets[0].dtype == np.int32
    )  # type: ignore[index]


def test_labels_that_do_not_fit() -> None:
    x = np.zeros((4, 5))
    assert "go from 0 to 3, the model has 3 outputs (0 to 2)" in said(
        (x, np.array([0, 1, 2, 3])), graph(5)
    )
    assert "subtract 1" in said((x, np.array([1, 2, 3, 3])), graph(5))
    assert "go from -1" in said((x, np.array([-1, 0, 1, 2])), graph(5))
    assert "not whole numbers" in said((x, np.array([0.5, 1, 2, 0])), graph(5))
    assert "shape (4,) for each sample; the output (3,)" in said((x, np.eye(4)), graph(5))


def test_labels_of_several_outputs() -> None:
    g = graph(5, extra=(2,))
    x = np.arange(50, dtype=np.float32).reshape(10, 5)
    data = load((x, [np.arange(10) % 3, np.arange(10) % 2]), g)
    assert [int(y.max()) for y in data.train.targets or ()] == [2, 1]
    assert "1 arrays for head, extra0" in said((x, np.arange(10) % 3), g)
    assert "are named head, other" in said((x, {"head": np.zeros(10), "other": np.zeros(10)}), g)


# -- overlap ---------------------------------------------------------------------------------------


def test_testing_on_the_training_set_is_refused() -> None:
    assert "are training samples too" in said(vectors(), graph(5), test=vectors())
    x, y = vectors()
    assert "1 of 10 test samples (10 %)" in said(
        {"x": x, "y": y, "x_test": np.concatenate([x[:1], x[:9] + 1]), "y_test": y[:10]}, graph(5)
    )


def test_testing_on_the_validation_set_is_refused() -> None:
    (x, y), (xv, yv) = vectors(), vectors(10, seed=1)
    assert "are validation samples too" in said(
        {"x": x, "y": y, "x_val": xv, "y_val": yv, "x_test": xv, "y_test": yv}, graph(5)
    )


def test_a_copy_in_another_dtype_is_found() -> None:
    x = RNG.integers(0, 255, (40, 5)).astype(np.uint8)
    assert "training samples too" in said({"x": x}, graph(5), test={"x": x.astype(np.float64)})


def test_a_few_duplicates_are_noted() -> None:
    x, _ = vectors(2000)
    data = load(
        {"x": x, "x_val": x[:2] + 1, "x_test": np.concatenate([x[:1], x[1:] + 2])}, graph(5)
    )
    assert data.notes == ("1 of 2,000 test samples (0.05 %) are training samples too",)


def test_data_full_of_duplicates_may_share_them() -> None:
    x = RNG.integers(0, 2, (200, 5)).astype(np.float32)
    data = load({"x": x}, graph(5), test={"x": x[:50]})
    assert any("test samples" in note for note in data.notes)


# -- order -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 60), st.integers(0, 5))
def test_every_head_holds_the_classes_in_proportion(
    labels: list[int], head: int, seed: int
) -> None:
    y = np.array(labels)
    order = sources.stratified(y, len(y), np.random.default_rng(seed))
    assert sorted(order) == list(range(len(y)))
    share = min(head, len(y)) / len(y)
    for number in set(labels):
        assert (
            abs((y[order[:head]] == number).sum() - share * (y == number).sum())
            < 1 + len(set(labels)) / 2
        )


def test_split_knows_its_length() -> None:
    split = Split((np.zeros((3, 2)),), (np.arange(3),))
    assert len(split) == 3
    assert split.take(np.array([2, 0])).targets[0].tolist() == [2, 0]  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "har", "voxels", "membrane"])
def test_real_sets_pass(name: str, lrfc_data: Path) -> None:
    shape = np.load(lrfc_data / f"{name}_test.npz")["x"].shape[1:]
    g = graph(*shape, classes=1, flat=False) if name == "membrane" else graph(*shape, classes=43)
    data = load(str(lrfc_data / f"{name}_train.npz"), g, test=str(lrfc_data / f"{name}_test.npz"))
    assert len(data.validation) == min(5000, round(0.1 * (len(data.train) + len(data.validation))))
    assert not data.test_is_validation
