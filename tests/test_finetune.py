"""The fine-tune: never a worse score, with and without labels, the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.config.build import Budget
from lrfc.data.dataset import Data, Split
from lrfc.errors import UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.passes.select_ranks import SelectRanks
from lrfc.pipeline import plan, run
from lrfc.search.facts import DesignSpace
from lrfc.search.sensitivity import divergence
from lrfc.state import Progress, State
from lrfc.training.recipe import Recipe
from lrfc.training.scoring import scorer
from lrfc.training.trainer import Trainer
from tests import helpers
from tests.compression import explored, learnt, state_of


def smaller(state: State, kept: float) -> State:
    return run(
        explored(state),
        plan(
            [SelectRanks(max_macs=Budget(value=kept, relative=True)), Factorize()],
            known=(DesignSpace,),
        ),
    )


@cache
def compressed() -> State:
    """A classifier that compression has hurt."""
    return smaller(learnt(), 0.25)


def score(state: State) -> float:
    return scorer(state.original, keras_io.compiled(state.original), state.data)(
        keras_io.compiled(state.graph)
    )


def noisy(graph: Graph, seed: int = 0) -> Graph:
    """The graph with every kernel disturbed."""
    rng = np.random.default_rng(seed)
    changed = {}
    for op in graph.layers():
        if "kernel" in op.weights:
            kernel = op.weights["kernel"]
            changed[op.name] = {
                **op.weights,
                "kernel": (
                    (kernel + 0.3 * kernel.std() * rng.standard_normal(kernel.shape)).astype(
                        np.float32
                    )
                ),
            }
    return graph.with_weights(changed)


def test_accuracy_comes_back_and_the_report_is_true() -> None:
    before = compressed()
    after = FineTune(epochs=3, batch=64)(before)
    tuning = after.fact(Tuning)
    assert len(tuning.scores) == len(tuning.losses) == 4
    assert tuning.losses[0] is None
    assert tuning.scores[0] == pytest.approx(score(before))
    assert tuning.scores[tuning.best] == max(tuning.scores) == pytest.approx(score(after))
    assert score(after) > score(before)
    assert tuning.best == tuning.scores.index(max(tuning.scores))
    after.graph.check()
    folded = fold_batchnorm(before.graph)
    assert str(after.graph) == str(folded)
    changed = {
        op.name.partition("__")[0]
        for op in folded.layers()
        for k, w in op.weights.items()
        if not np.array_equal(w, after.graph.op(op.name).weights[k])
    }
    assert {"conv0", "head"} <= changed


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_an_absurd_learning_rate_leaves_the_network_as_it_was(rate) -> None:
    before = compressed()
    after = FineTune(epochs=2, batch=64, learning_rate=rate)(before)
    assert score(after) >= score(before)
    assert all(np.isfinite(w).all() for op in after.graph for w in op.weights.values())
    if after.fact(Tuning).best == 0:
        assert after.graph is before.graph


def test_broken_weights_never_win() -> None:
    """Outputs full of NaN are read as class 0: with nothing but class 0 that would be perfect."""
    before = compressed()
    data = before.data
    zero = np.zeros(len(data.validation), np.int32)
    wrong = before.graph.op("head")
    bias = wrong.weights["bias"] + np.array([-100, 0, 0, 0], np.float32)
    state = replace(
        before, data=replace(data, validation=Split(data.validation.inputs, (zero,)))
    ).with_graph(before.graph.with_weights({"head": {**wrong.weights, "bias": bias}}))
    after = FineTune(epochs=1, batch=64, learning_rate=1e38)(state)
    assert all(np.isfinite(w).all() for op in after.graph for w in op.weights.values())


def test_without_labels_a_regression_learns_from_the_original() -> None:
    import keras
    from keras import layers

    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = layers.Dense(2, name="head")(layers.Flatten(name="flat")(x))
    state = state_of(
        helpers.graph_of(helpers.random_weights(keras.Model(image, x, name="regression"))),
        samples=256,
    )
    assert state.data.train.targets is None
    before = state.with_graph(noisy(state.graph))
    after = FineTune(epochs=3, batch=32)(before)
    assert score(before) < 0
    assert score(after) > 0.7 * score(before)
    wanted, found = (
        keras_io.predict(g, state.data.validation.inputs) for g in (state.graph, after.graph)
    )
    assert max(after.fact(Tuning).scores) == pytest.approx(-divergence(wanted, found), rel=1e-3)


def test_two_outputs_in_dicts() -> None:
    state = state_of(helpers.graph_of(helpers.two_inputs()), samples=128)
    before = state.with_graph(noisy(state.graph))
    after = FineTune(epochs=3, batch=32)(before)
    assert score(after) > score(before)


def test_a_shared_layer_stays_shared() -> None:
    state = smaller(state_of(helpers.graph_of(helpers.shared_conv())), 0.75)
    after = FineTune(epochs=1, batch=32)(state)
    after.graph.check()
    assert after.fact(Tuning).best == 1
    calls = [op for op in after.graph if op.kind == "Conv2D"]
    assert len(calls) > 3
    for op in calls:
        assert (
            op.weights["kernel"]
            is next(other for other in calls if other.shared == op.shared).weights["kernel"]
        )
        assert not np.array_equal(op.weights["kernel"], state.graph.op(op.name).weights["kernel"])
    assert keras_io.to_keras(after.graph).count_params() == after.graph.params


def test_the_seed_decides() -> None:
    before = replace(
        compressed(),
        data=replace(compressed().data, train=compressed().data.train.take(np.arange(64))),
    )
    one, same, other = (
        FineTune(epochs=1, batch=16)(replace(before, seed=seed)) for seed in (0, 0, 1)
    )
    assert one.fact(Tuning).losses[1] == pytest.approx(same.fact(Tuning).losses[1], rel=1e-4)
    assert one.fact(Tuning).losses[1] != pytest.approx(other.fact(Tuning).losses[1], rel=1e-3)
    np.testing.assert_allclose(
        *(state.graph.op("head").weights["kernel"] for state in (one, same)), atol=1e-5
    )


def test_frozen_layers_stay_and_a_frozen_network_is_left_alone() -> None:
    before = compressed()
    frozen = before.graph.copy()
    for op in before.graph:
        if op.weights and op.name != "head":
            frozen.replace(op.with_attrs(trainable=False))
    after = FineTune(epochs=1, batch=64)(before.with_graph(frozen)).graph
    assert all(
        np.array_equal(w, after.op(op.name).weights[k])
        for op in frozen
        if op.name != "head"
        for k, w in op.weights.items()
    )
    frozen.replace(frozen.op("head").with_attrs(trainable=False))
    state = FineTune(epochs=1, batch=64)(before.with_graph(frozen))
    assert state.fact(Tuning).best == 0
    assert score(state) == state.fact(Tuning).scores[0]


def test_the_score_of_data_with_labels_is_the_accuracy() -> None:
    state = learnt()
    assert score(state) > 0.8
    unlabelled = replace(state.data, validation=Split(state.data.validation.inputs))
    assert score(replace(state, data=unlabelled)) == pytest.approx(0, abs=1e-6)
    assert score(replace(compressed(), data=unlabelled)) < -1e-3


def test_a_few_samples_are_enough_to_run() -> None:
    state = compressed()
    few = Data(
        "few", state.data.train.take(np.arange(5)), state.data.validation, state.data.validation
    )
    assert len(FineTune(epochs=1, batch=128)(replace(state, data=few)).fact(Tuning).scores) == 2


# -- other tasks -----------------------------------------------------------------------------------


def labelled(graph: Graph, *, samples: int = 192) -> State:
    """Data with the graph's own outputs as labels: classes, or values where an output is linear."""
    batch = helpers.random_inputs(graph, samples + samples // 2)
    targets = []
    for values in keras_io.predict(graph, batch):
        classes = values.shape[-1] > 1 and np.allclose(values.sum(-1), 1, atol=1e-4)
        targets.append(values.argmax(-1).astype(np.int32) if classes else values)
    whole = Split(batch, tuple(targets))
    train, validation = whole.take(np.arange(samples)), whole.take(np.arange(samples, len(whole)))
    return State(graph, graph, Data("own labels", train, validation, validation))


def segmenter() -> Graph:
    import keras
    from keras import layers

    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="down")(image)
    x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu", name="up")(x)
    return helpers.graph_of(
        helpers.random_weights(
            keras.Model(
                image, layers.Conv2D(3, 1, activation="softmax", name="map")(x), name="segmenter"
            )
        )
    )


def autoencoder() -> Graph:
    import keras
    from keras import layers

    x = vector = keras.Input((12,), name="vector")
    for i, width in enumerate((8, 4, 8)):
        x = layers.Dense(width, activation="relu", name=f"dense{i}")(x)
    return helpers.graph_of(
        helpers.random_weights(
            keras.Model(vector, layers.Dense(12, name="out")(x), name="autoencoder")
        )
    )


@pytest.mark.parametrize(
    "make",
    [
        segmenter,
        autoencoder,
        lambda: helpers.graph_of(helpers.two_inputs()),
        lambda: helpers.graph_of(helpers.branches()),
    ],
)
@pytest.mark.parametrize("with_labels", [True, False])
def test_any_task_gets_better(make: Any, with_labels: bool) -> None:
    state = labelled(make())
    if not with_labels:
        unlabelled = replace(
            state.data,
            train=Split(state.data.train.inputs),
            validation=Split(state.data.validation.inputs),
        )
        state = replace(state, data=unlabelled)
    before = state.with_graph(noisy(state.graph))
    after = FineTune(epochs=10, batch=16)(before)
    assert score(after) > score(before)
    assert after.fact(Tuning).losses[-1] < after.fact(Tuning).losses[1]


def test_the_models_own_loss_is_minimised() -> None:
    """Of two models with a loss on one output each, each learns that output from the labels."""
    errors = {}
    for loss in (
        {"label": "categorical_crossentropy", "value": None},
        {"label": None, "value": "mae"},
    ):
        model = helpers.two_inputs()
        model.compile("adam", loss)
        state = labelled(helpers.graph_of(model))
        truth = state.data.train.targets
        assert truth is not None
        state = replace(
            state,
            data=replace(
                state.data, train=Split(state.data.train.inputs, (truth[0], truth[1] + 3))
            ),
        )  # labels that the original does not predict
        after = FineTune(epochs=4, batch=16, distillation=0, features=0, learning_rate=0.03)(state)
        assert after.fact(Tuning).best == 0  # worse by the labels of the validation split
        trainer = Trainer(
            state.graph,
            state.original,
            state.data.train,
            Recipe(batch=16, distillation=0, features=0),
            0,
        )
        for _ in range(10):
            for number, rows in enumerate(trainer.epoch(1)):
                trainer.step(rows, 0.01, number)
        _, value = trainer.run(state.data.train.inputs)
        errors[next(k for k, v in loss.items() if v)] = float(np.abs(value - truth[1] - 3).mean())
    assert errors["value"] < 0.5 * errors["label"]


def test_another_metric_decides() -> None:
    state = labelled(autoencoder())
    before = state.with_graph(noisy(state.graph))
    tuning = FineTune(epochs=2, batch=32, metric="mse")(before).fact(Tuning)
    assert all(value < 0 for value in tuning.scores)  # the higher the better
    with pytest.raises(UsageError, match="--metric"):
        FineTune(epochs=1, metric="accuracy")(before)


def test_batchnorm_is_folded_unless_it_is_trained() -> None:
    before = compressed()
    norms = {op.name for op in before.graph if op.kind == "BatchNormalization"}
    assert norms

    def after(**options: Any) -> State:
        tuned = FineTune(epochs=1, batch=64, **options)(before)
        assert tuned.fact(Tuning).best == 1
        return tuned

    assert not norms & {op.name for op in after().graph}
    trained = after(batchnorm="trained").graph
    assert all(
        not np.array_equal(
            trained.op(name).weights["moving_mean"], before.graph.op(name).weights["moving_mean"]
        )
        for name in norms
    )


# -- when it ends ----------------------------------------------------------------------------------


def test_a_time_budget_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock of its own, so that the test does not depend on what else the machine does.
    monkeypatch.setattr("time.perf_counter", partial(next, count(0, 0.001)))
    lines: list[str] = []
    ticks: list[int] = []
    progress = Progress(
        stage=lambda title, total: ticks.append(-total) or ticks.append, log=lines.append
    )
    tuning = FineTune(epochs=10_000, batch=16, time_budget=1.0, learning_rate=1e-3)(
        replace(compressed(), progress=progress)
    ).fact(Tuning)
    assert tuning.stopped == "time"
    assert 1 < len(tuning.scores) < 10_000
    assert sum(ticks) == 0  # the bar ends full
    assert lines[-1].startswith("  stopped: time; kept: ")


def test_a_budget_that_is_over_at_once_leaves_the_network_as_it_was() -> None:
    tuning = FineTune(epochs=3, time_budget=1e-3)(compressed()).fact(Tuning)
    assert tuning.scores[tuning.best] == tuning.scores[0]
    assert (len(tuning.scores), tuning.stopped) == (1, "time")


def test_patience_ends_it() -> None:
    tuning = FineTune(epochs=30, batch=64, learning_rate=1e-12, decay=0, patience=2, features=0)(
        compressed()
    ).fact(Tuning)
    assert tuning.stopped is not None
    assert "no better" in tuning.stopped
    assert len(tuning.scores) < 30


def test_what_lost_nothing_is_trained_only_for_whoever_asks_for_epochs() -> None:
    lines: list[str] = []
    whole = replace(learnt(), progress=Progress(log=lines.append))
    after = FineTune(epochs=2, batch=64, as_needed=True)(whole)
    assert after.graph is whole.graph
    assert (after.fact(Tuning).steps, len(after.fact(Tuning).scores)) == (0, 1)
    accuracy = f"accuracy {score(whole):.2%}".replace("%", " %")
    assert lines == [f"  not trained: validation {accuracy}, and {accuracy} before compression"]
    assert FineTune(epochs=2, batch=64)(whole).fact(Tuning).steps > 0

    hurt = compressed()
    needed = FineTune(epochs=2, batch=64, as_needed=True)(hurt).fact(Tuning)
    asked = FineTune(epochs=2, batch=64)(hurt).fact(Tuning)
    assert needed.scores == asked.scores
    assert needed.scores[0] < score(whole)
    assert needed.steps > 0


def test_a_default_build_trains_as_needed_and_an_idle_training_is_no_stage() -> None:
    from lrfc.config.build import parse
    from lrfc.engine.passes import finetune, rung

    default, asked = finetune(parse()), finetune(parse(epochs=3))
    assert (default.epochs, default.as_needed) == (3, True)
    assert (asked.epochs, asked.as_needed) == (3, False)
    assert rung(default, default(learnt())) is None
    assert rung(asked, replace(asked, epochs=1)(learnt())) == "finetuned"


@pytest.mark.parametrize(
    "options", [{"epochs": -1}, {"patience": 0}, {"time_budget": 0}, {"distillation": 1.5}]
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="fine-tuning"):
        FineTune(**options)


def test_the_progress_bar_and_the_log() -> None:
    lines: list[str] = []
    ticks: list[int] = []
    progress = Progress(
        stage=lambda title, total: ticks.append(-total) or ticks.append, log=lines.append
    )
    FineTune(epochs=2, batch=64)(replace(compressed(), progress=progress))
    assert ticks[0] == -16
    assert ticks[1:] == [1] * 16
    assert "16 steps of 64 samples, learning rate" in lines[0]
    assert lines[1].startswith("  epoch 1/2: loss ")
    assert "validation accuracy" in lines[1]
    assert " left" in lines[1]
    assert lines[-1].startswith("  kept: epoch")


# -- checkpoints -----------------------------------------------------------------------------------


class _Killed(BaseException):
    """The end of the process, by any cause."""


def interrupted(
    options: FineTune, state: State, epoch: int, error: type[BaseException] = _Killed
) -> None:
    """Run it until the training of the epoch after ``epoch`` has begun."""
    steps = 0

    def tick(done: int) -> None:
        nonlocal steps
        steps += done
        if steps > epoch * 8 + 3:
            raise error

    with pytest.raises(error):
        options(replace(state, progress=Progress(stage=lambda title, total: tick)))


@pytest.mark.parametrize("batchnorm", ["frozen", "trained"])
def test_a_killed_training_goes_on_and_ends_the_same(tmp_path: Path, batchnorm: Any) -> None:
    options = FineTune(epochs=3, batch=64, checkpoints=tmp_path, batchnorm=batchnorm)
    whole = replace(options, checkpoints=None)(compressed())
    interrupted(options, compressed(), 2)
    assert len(list(tmp_path.iterdir())) == 1
    lines: list[str] = []
    resumed = options(replace(compressed(), progress=Progress(log=lines.append)))
    assert lines[0].startswith("  resumed after epoch 2/3")
    assert sum("epoch" in line and "loss" in line for line in lines) == 1
    one, other = whole.fact(Tuning), resumed.fact(Tuning)
    assert one.losses[1:] == pytest.approx(other.losses[1:], rel=1e-4)
    assert (one.scores, one.best, one.learning_rate, one.steps) == (
        other.scores,
        other.best,
        other.learning_rate,
        other.steps,
    )
    for op in whole.graph:
        for name, weight in op.weights.items():
            np.testing.assert_allclose(weight, resumed.graph.op(op.name).weights[name], atol=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_passes_through_and_leaves_the_last_epoch(tmp_path: Path) -> None:
    options = FineTune(epochs=3, batch=64, checkpoints=tmp_path, learning_rate=1e-3)
    interrupted(options, compressed(), 1, KeyboardInterrupt)
    assert len(list(tmp_path.glob("finetune-*.npz"))) == 1


def test_another_training_does_not_go_on_from_it(tmp_path: Path) -> None:
    options = FineTune(epochs=2, batch=64, checkpoints=tmp_path, learning_rate=1e-3)
    interrupted(options, compressed(), 1)
    lines: list[str] = []
    replace(options, temperature=3.0)(replace(compressed(), progress=Progress(log=lines.append)))
    assert not any("resumed" in line for line in lines)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_checkpoint_is_ignored(tmp_path: Path) -> None:
    options = FineTune(epochs=2, batch=64, checkpoints=tmp_path, learning_rate=1e-3)
    interrupted(options, compressed(), 1)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    lines: list[str] = []
    tuning = options(replace(compressed(), progress=Progress(log=lines.append))).fact(Tuning)
    assert sum("is ignored" in line for line in lines) == 1
    assert len(tuning.scores) == 3


# -- memory ----------------------------------------------------------------------------------------


def test_the_memory_of_a_training_is_freed() -> None:
    """Keras' own optimizers never free the graph of a compiled step and a thousand more objects."""
    import gc

    before = replace(
        compressed(),
        data=replace(compressed().data, train=compressed().data.train.take(np.arange(64))),
    )

    def alive() -> int:
        gc.collect()
        return len(gc.get_objects())

    def train() -> None:
        FineTune(epochs=1, batch=32, learning_rate=1e-3)(before)

    train()
    train()
    objects = alive()
    for _ in range(3):
        train()
    assert alive() - objects < 3 * 200
