"""Parts of a training: feature maps, losses, augmentation, decay, learning rate, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lrfc.data.dataset import Split
from lrfc.errors import UsageError
from lrfc.factorization import METHODS
from lrfc.ir.keras import io as keras_io
from lrfc.ir.op import Ref
from lrfc.training import rate
from lrfc.training.balance import balanced
from lrfc.training.checkpoint import Checkpoint, Saved, fingerprint
from lrfc.training.decay import chains
from lrfc.training.features import block_ends, tapped
from tests import helpers
from tests.factorized import conv, dense

# -- feature maps ----------------------------------------------------------------------------------


def test_blocks_end_at_additions_and_before_the_resolution_changes() -> None:
    graph = helpers.graph_of(helpers.residual())
    assert block_ends(graph, graph) == (Ref("relu1"),)
    plain = helpers.graph_of(helpers.conv_net(filters=(4, 6, 8)))
    assert [ref.op for ref in block_ends(plain, plain)] == ["relu0", "relu1", "relu2"]


def test_of_many_block_ends_an_even_choice_is_taken() -> None:
    import keras
    from keras import layers

    x = inputs = keras.Input((4, 4, 2))
    for i in range(12):
        x = layers.Add(name=f"add{i}")([x, layers.Conv2D(2, 1, name=f"conv{i}")(x)])
    graph = helpers.graph_of(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    found = [ref.op for ref in block_ends(graph, graph, most=4)]
    assert found == ["add2", "add5", "add8", "add11"]


def test_maps_that_the_other_graph_lacks_or_that_come_before_weights_are_left_out() -> None:
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 3))
    x = layers.MaxPooling2D(name="shrink")(layers.Rescaling(2.0, name="rescaled")(inputs))
    x = layers.MaxPooling2D(name="pool")(layers.Conv2D(4, 3, padding="same", name="conv")(x))
    graph = helpers.graph_of(
        keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten(name="flat")(x)))
    )
    assert [ref.op for ref in block_ends(graph, graph)] == ["conv", "pool"]
    other = graph.copy()
    other.splice("pool", [replace(graph.op("pool"), name="renamed")])
    assert [ref.op for ref in block_ends(graph, other)] == ["conv"]


def test_a_tapped_graph_gives_the_outputs_first() -> None:
    graph = helpers.graph_of(helpers.two_inputs())
    twin = tapped(graph, (Ref("conv"),))
    batch = helpers.random_inputs(graph)
    found = keras_io.predict(twin, batch)
    assert helpers.difference(keras_io.predict(graph, batch), found[:2]) == 0
    assert found[2].shape == (3, 6, 6, 4)
    assert graph.outputs == twin.outputs[:2]


# -- decay -----------------------------------------------------------------------------------------

LAYERS = {
    "conv": conv((3, 3), 6, 8),
    "strided": conv((3, 3), 6, 8, strides=2, use_bias=False, bias=None),
    "grouped": conv((3, 3), 8, 12, groups=2),
    "1d": conv((5,), 6, 8),
    "dense": dense(12, 10),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(
            (name, method)
            for name in ("conv", "strided", "grouped")
            for method in ("channel_svd", "spatial_svd", "tucker2", "cp", "tt")
        ),
        *(("1d", method) for method in ("channel_svd", "tucker2", "cp")),
        ("dense", "svd"),
    ],
)
def test_the_stages_multiply_out_to_the_kernel(name: str, method: str) -> None:
    graph = LAYERS[name].copy()
    op, source = graph.op("layer"), graph.input_tensors("layer")[0]
    factors = METHODS[method].decompose(op, source)
    ranks = tuple(max(1, r // 2) for r in METHODS[method].full(op, source))
    graph.splice("layer", factors.stages(ranks))
    (chain,) = chains(graph)
    assert [stage.name for stage in chain.stages][-1] == "layer"
    found = np.asarray(chain.kernel([stage.weights["kernel"] for stage in chain.stages]))
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(factors.kernel(ranks)), rel=1e-4)
    if name != "grouped":
        np.testing.assert_allclose(found.reshape(-1), factors.kernel(ranks).reshape(-1), atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("name", "method"),
    [("conv", "tucker2"), ("strided", "cp"), ("grouped", "spatial_svd"), ("dense", "svd")],
)
def test_factors_of_one_size_compute_the_same(name: str, method: str, biased: bool) -> None:
    graph = LAYERS[name].copy()
    op, source = graph.op("layer"), graph.input_tensors("layer")[0]
    stages = METHODS[method].decompose(op, source).stages(METHODS[method].full(op, source))
    rng = np.random.default_rng(0)
    first = stages[0]
    weights = {"kernel": 30 * first.weights["kernel"]}
    if biased:
        width = len(first.weights["kernel"].T)
        weights["bias"] = rng.standard_normal(width).astype(np.float32)
    graph.splice(
        "layer", [replace(first.with_attrs(use_bias=biased), weights=weights), *stages[1:]]
    )
    found = balanced(graph)
    (chain,) = chains(found)
    sizes = [np.sqrt(np.mean(np.square(stage.weights["kernel"]))) for stage in chain.stages]
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-5)
    inputs = helpers.random_inputs(graph)
    before, after = (keras_io.predict(each, inputs)[0] for each in (graph, found))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())


def test_a_kernel_of_zeros_stays() -> None:
    graph = LAYERS["dense"].copy()
    op, source = graph.op("layer"), graph.input_tensors("layer")[0]
    graph.splice("layer", METHODS["svd"].decompose(op, source).stages((2,)))
    zeros = {name: 0 * value for name, value in graph.op("layer").weights.items()}
    graph.replace(replace(graph.op("layer"), weights=zeros))
    assert str(balanced(graph)) == str(graph)
    assert not balanced(graph).op("layer").weights["kernel"].any()


def test_neighbours_in_a_nested_model_are_not_one_chain() -> None:
    graph = helpers.graph_of(helpers.nested_twice())
    assert all(len(chain.stages) == 1 for chain in chains(graph))
    assert {chain.stages[0].name for chain in chains(graph)} == {
        "backbone__conv1",
        "backbone__inner__point",
        "head",
    }


def test_frozen_and_tensorised_layers_are_not_decayed() -> None:
    graph = LAYERS["dense"].copy()
    op, source = graph.op("layer"), graph.input_tensors("layer")[0]
    method = METHODS["tt_matrix"]
    graph.splice("layer", method.decompose(op, source).stages(method.full(op, source)))
    assert chains(graph) == ()
    frozen = LAYERS["conv"].copy()
    frozen.replace(frozen.op("layer").with_attrs(trainable=False))
    assert chains(frozen) == ()


# -- the learning rate -----------------------------------------------------------------------------


def test_the_schedule_rises_and_falls_to_nothing() -> None:
    found = [rate.annealed(done) for done in np.linspace(0, 1, 41)]
    top = int(np.argmax(found))
    assert found[top] == pytest.approx(1.0)
    assert top == 2
    assert found == sorted(found[: top + 1]) + sorted(found[top + 1 :], reverse=True)
    assert found[-1] == pytest.approx(0, abs=1e-9)
    assert rate.annealed(1.5) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("wanted", range(5))
def test_the_best_rate_is_found_by_climbing(wanted: int) -> None:
    rates = (1.0, 0.3, 0.1, 0.03, 0.01)
    found, tried = rate.best(rates, lambda r: abs(np.log(r / rates[wanted])))
    assert found == rates[wanted]
    assert len(tried) <= 4
    found, _ = rate.best(rates, lambda r: float("nan") if r > 0.05 else r)
    assert found == 0.01


def test_a_higher_rate_that_is_nearly_as_good_is_taken() -> None:
    losses = {1.0: 5.6, 0.3: 0.55, 0.1: 0.36, 0.03: 0.33, 0.01: 0.34}
    found, tried = rate.best(tuple(losses), losses.__getitem__)
    assert found == 0.1
    assert set(tried) == {0.3, 0.1, 0.03, 0.01}
    even = dict.fromkeys(losses, 1.0)
    assert rate.best(tuple(even), even.__getitem__)[0] == 1.0
    lost = dict.fromkeys(losses, float("nan"))
    assert rate.best(tuple(lost), lost.__getitem__)[0] == 0.1


def test_candidates_follow_the_size_of_the_kernels() -> None:
    graph = helpers.graph_of(helpers.conv_net())
    larger = graph.with_weights(
        {op.name: {k: 10 * w for k, w in op.weights.items()} for op in graph.layers() if op.weights}
    )
    np.testing.assert_allclose(
        rate.candidates(larger), 10 * np.array(rate.candidates(graph)), rtol=1e-5
    )


# -- checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_for_the_same_training_only(tmp_path: Path) -> None:
    lines: list[str] = []
    saved = Saved(
        {"losses": [None, 0.5], "rate": 0.1},
        [np.arange(3.0), np.int64(7)],
        [np.ones((2, 2), np.float32)],
    )
    one = Checkpoint(tmp_path / "new", "a" * 32, lines.append)
    assert one.read() is None
    one.write(saved)
    found = one.read()
    assert found is not None
    assert found.numbers == saved.numbers
    assert all(
        np.array_equal(a, b)
        for a, b in zip(found.state + found.best, saved.state + saved.best, strict=True)
    )
    assert Checkpoint(tmp_path / "new", "b" * 32, lines.append).read() is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == [one.path.name]
    one.remove()
    assert one.read() is None
    assert lines == []


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_checkpoint_is_ignored_with_a_line(tmp_path: Path, damage: bytes | None) -> None:
    lines: list[str] = []
    one = Checkpoint(tmp_path, "a" * 32, lines.append)
    one.write(Saved({}, [np.arange(1000.0)], []))
    content = bytearray(one.path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    one.path.write_bytes(bytes(content) if damage is None else damage)
    assert one.read() is None
    assert len(lines) == 1
    assert "is ignored" in lines[0]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        Checkpoint(tmp_path / "file", "a" * 32, print).write(Saved({}, [], []))


def test_the_fingerprint_tells_weights_data_and_options_apart() -> None:
    graph = helpers.graph_of(helpers.dense_net())
    split = Split((np.arange(4000.0).reshape(-1, 1),))
    other = graph.with_weights(
        {"head": {**graph.op("head").weights, "bias": graph.op("head").weights["bias"] + 1}}
    )
    longer = Split((np.arange(4001.0).reshape(-1, 1),))
    found = {
        fingerprint(*parts)
        for parts in ((graph, split, 1), (other, split, 1), (graph, longer, 1), (graph, split, 2))
    }
    assert len(found) == 4
    assert fingerprint(graph, split, 1) == fingerprint(
        graph.copy(), Split(tuple(x.copy() for x in split.inputs)), 1
    )
