"""Builds from Python: what they return, what they refuse, and what ships."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrfc
from lrfc.data.load import load_data
from lrfc.engine import package as ship
from lrfc.engine.package import Result
from lrfc.errors import BudgetError, ModelError, NoGainError, ParityError, UsageError
from lrfc.ir.fold import fold_batchnorm
from lrfc.ir.keras import io as keras_io
from lrfc.passes import price_layers
from lrfc.passes.canonicalise import Canonicalise
from lrfc.pipeline import plan, run
from lrfc.pruning.selection import LEFT_ASIDE
from lrfc.results import candidates as choices
from lrfc.results.folder import sha256
from lrfc.results.manifest import Manifest
from lrfc.state import Progress, State
from lrfc.targets.tflite.target import TFLite
from tests import fake_runner, helpers
from tests.fake_runner import FakeRunner

#: Only the fastest method: what is tested here is the line from end to end.
QUICK: dict[str, Any] = {"methods": ("channel_svd", "svd"), "epochs": 0}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and a host that times nothing; test_cli measures for real."""
    monkeypatch.chdir(tmp_path)
    fake_runner.install(monkeypatch, FakeRunner(2.0))


def redundant(model: Any, rank: int = 4) -> Any:
    """The model with Dense kernels of that rank, which are factorized without a loss."""
    for layer in model.layers:
        if layer.__class__.__name__ == "Dense" and min(layer.kernel.shape) > rank:
            u, s, v = np.linalg.svd(layer.kernel.numpy(), full_matrices=False)
            layer.kernel.assign((u[:, :rank] * s[:rank]) @ v[:rank])
    return model


@pytest.fixture(scope="module")
def dense() -> Any:
    """A classifier of 32 features whose two wide layers have rank 4."""
    return redundant(helpers.dense_net(features=32, widths=(64, 64)))


@pytest.fixture(scope="module")
def samples(dense: Any) -> dict[str, Any]:
    """Samples with the classifier's own predictions as labels."""
    x = np.random.default_rng(1).standard_normal((300, 32)).astype(np.float32)
    return {"x": x, "y": np.argmax(dense.predict(x, verbose=0), axis=1)}


def left() -> set[str]:
    return {path.name for path in Path.cwd().iterdir()}


def test_a_file_and_arrays(dense: Any, samples: dict[str, Any]) -> None:
    dense.save("net.keras")
    lines: list[str] = []
    seen: list[Result] = []
    result = lrfc.build(
        "net.keras",
        data=samples,
        max_macs="50%",
        progress=Progress(log=lines.append),
        on_result=seen.append,
        **QUICK,
    )
    assert isinstance(result, Result)
    assert seen == [result]
    assert result.out == Path("net-lrfc")
    assert result.artifact == Path("net-lrfc/net.tflite")
    assert result.artifact.is_file()
    assert result.failure is None
    assert result.manifest == Manifest.read(result.out)
    assert result.manifest.after.macs <= 0.5 * result.manifest.before.macs
    assert result.manifest.input.sha256 == sha256(Path("net.keras"))
    assert result.speedup.median == pytest.approx(2.0)
    assert result.manifest.accuracy.before == 1.0
    assert result.manifest.accuracy.artifact == 1.0, (
        "layers of rank 4 are factorized without a loss"
    )
    assert lines[0] == "reading model net.keras"
    assert lines[1].startswith("Canonicalise")
    assert (result.out / "log.txt").read_text().splitlines() == lines
    assert left() == {"net.keras", "net-lrfc"}


def test_a_model_in_memory_and_a_fine_tune(dense: Any, samples: dict[str, Any]) -> None:
    result = lrfc.build(
        dense,
        target="onnx",
        data=(samples["x"], samples["y"]),
        max_params="60%",
        out=Path("here"),
        **QUICK | {"epochs": 1},
    )
    assert result.artifact == Path("here/dense_net.onnx")
    assert result.manifest.after.params <= 0.6 * result.manifest.before.params
    assert result.manifest.accuracy.finetuned is not None
    assert result.manifest.config["epochs"] == 1
    assert left() == {"here"}


def test_a_build_that_only_cuts_filters_says_so(dense: Any, samples: dict[str, Any]) -> None:
    manifest = lrfc.build(
        dense, data=samples, max_macs="60%", prune="only", out="small", **QUICK
    ).manifest
    assert list(manifest.accuracy.ladder()) == [
        "before",
        "pruned",
        "recalibrated",
        "refitted",
        "artifact",
    ]
    *wide, head = manifest.layers
    assert any(layer.cut for layer in wide)
    assert all(layer.filters_before == 64 and layer.filters_reason is None for layer in wide)
    assert (head.filters_before, head.filters_after) == (4, 4)
    assert head.filters_reason is not None
    assert head.filters_reason.startswith("its filters ")
    assert wide[0].reason == LEFT_ASIDE
    again = lrfc.build(dense, data=samples, locked="small", **QUICK).manifest
    assert again.layers == manifest.layers
    assert again.accuracy.ladder() == manifest.accuracy.ladder()


def test_two_targets_give_two_folders(dense: Any, samples: dict[str, Any]) -> None:
    results = lrfc.build(dense, target=("tflite", "onnx"), data=samples, max_macs="50%", **QUICK)
    assert [result.artifact for result in results] == [
        Path("dense_net-lrfc/tflite/dense_net.tflite"),
        Path("dense_net-lrfc/onnx/dense_net.onnx"),
    ]
    assert all(result.artifact.is_file() for result in results)
    assert results[0].manifest.layers == results[1].manifest.layers
    assert [result.manifest.artifacts[0].format for result in results] == ["tflite", "onnx"]


def test_two_devices_are_built_for_from_one_exploration(
    dense: Any, samples: dict[str, Any]
) -> None:
    lines: list[str] = []
    results = lrfc.build(
        dense,
        device=("host", "cortex-m7"),
        data=samples,
        max_macs="50%",
        progress=Progress(log=lines.append),
        **QUICK | {"resume": False},
    )
    assert [result.out for result in results] == [
        Path("dense_net-lrfc/host"),
        Path("dense_net-lrfc/cortex-m7"),
    ]
    assert [result.manifest.device for result in results] == ["host", "cortex-m7"]
    assert [result.manifest.config["precision"] for result in results] == ["fp32", "int8"]
    assert sum(line.startswith("ExploreLayers") for line in lines) == 1
    host, board = (result.manifest.after.latency_ms for result in results)
    assert host.source == "measured"
    assert board.source == "estimated", "nothing runs there"
    rounds = [line for line in lines if "predicted" in line and "speed-up of the plan" in line]
    assert any("measured" in line for line in rounds)
    assert any(
        "estimated" in line and "measured" not in line and " to " not in line for line in rounds
    )
    computed = results[1].manifest
    assert (
        computed.search.rounds[0].source
        == computed.speedup.source
        == computed.search.attempts[0].source
        == "estimated"
    )
    assert (computed.speedup.low, computed.speedup.high) == (None, None)
    assert results[0].manifest.float_original is None, "in fp32 there is one baseline"
    assert computed.float_original.reason == "cortex-m7 computes in int8, not in float"
    assert [room.memory for room in computed.verdict.rooms] == ["flash", "ram"]
    assert sum(part.drop for part in computed.accuracy.kept.parts) == pytest.approx(
        computed.accuracy.kept.drop
    )
    assert results[1].manifest.search.rounds[0].measured_ms == pytest.approx(
        results[1].manifest.search.rounds[0].predicted_ms, rel=1e-6
    )
    assert results[0].manifest.accuracy.kernels is None
    scores = results[1].manifest.accuracy
    assert scores.kernels.counted
    assert scores.kept.drop == pytest.approx(
        scores.before - scores.artifact + scores.kernels.optimised - scores.kernels.reference
    )


def test_ranks_suit_every_device(dense: Any, samples: dict[str, Any]) -> None:
    Path("board.toml").write_text(
        'name = "board"\ndescription = "of blocks"\nformats = ["tflite"]\nrank_multiple ='
        ' 8\n[connection]\nkind = "local"\n'
    )
    results = lrfc.build(
        dense, device=("host", "board.toml"), data=samples, max_macs="60%", **QUICK
    )
    ranks = {
        row.rank for result in results for row in choices.read(result.out) if row.method is not None
    }
    assert ranks == {"8", "16", "24"}


def test_a_device_that_does_not_run_the_target_is_refused(
    dense: Any, samples: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="device 'cortex-m7' runs tflite files, not onnx"):
        lrfc.build(dense, target="onnx", device="cortex-m7", data=samples, **QUICK)
    with pytest.raises(UsageError, match="device 'cortex-m7' computes in int8, not in fp32"):
        lrfc.build(dense, device="cortex-m7", precision="fp32", data=samples, **QUICK)
    with pytest.raises(
        UsageError, match=r"unknown precision 'int9': did you mean 'int8'\?; choose fp32"
    ):
        lrfc.build(dense, precision="int9", data=samples, **QUICK)
    with pytest.raises(UsageError, match="unknown device 'cortex-m8'"):
        lrfc.build(dense, device="cortex-m8", data=samples, **QUICK)
    with pytest.raises(
        UsageError, match="--objective cycles: device 'host' is timed in milliseconds"
    ):
        lrfc.build(dense, objective="cycles", data=samples, **QUICK)
    assert left() == set()


def test_int8(dense: Any, samples: dict[str, Any]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    result = lrfc.build(dense, data=samples, max_macs="60%", precision="int8", **QUICK)
    interpreter = Interpreter(str(result.artifact))
    assert (
        sum(
            tensor["dtype"] == np.int8 and len(tensor["shape"]) == 2
            for tensor in interpreter.get_tensor_details()
        )
        >= 3
    )
    assert result.manifest.accuracy.artifact == pytest.approx(1.0, abs=0.1)
    whole = result.manifest.float_original
    assert (whole.latency_ms.source, whole.speedup.source, whole.reason) == (
        "measured",
        "measured",
        None,
    )
    assert whole.speedup.low <= whole.speedup.median <= whole.speedup.high
    assert whole.file_bytes > result.manifest.before.file_bytes, "the original in fp32"
    assert [each.precision for each in result.manifest.verdict.speeds] == ["int8", "fp32"]


def test_without_a_budget_the_smallest_network_within_the_drop(
    dense: Any, samples: dict[str, Any]
) -> None:
    result = lrfc.build(dense, data=samples, objective="macs", **QUICK)
    manifest = result.manifest
    assert manifest.after.macs < 0.6 * manifest.before.macs, (
        "rank 4 keeps 0.32 of the MACs without a loss"
    )
    assert manifest.accuracy.artifact >= manifest.accuracy.before - 0.01
    assert manifest.search.objective == "macs"
    assert 0 <= manifest.search.allowed_divergence < 0.05


def test_where_nothing_pays_the_original_is_kept(
    dense: Any, samples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        price_layers, "paying", lambda space: replace(space, candidates=(space.whole,))
    )
    with pytest.raises(
        NoGainError,
        match=(
            r"no gain: on host no factorization of a layer is faster than the layer itself; .*"
            r" --objective size"
        ),
    ) as caught:
        lrfc.build(dense, data=samples, **QUICK)
    result = caught.value.result
    assert isinstance(result, Result)
    assert result.manifest.before == result.manifest.after


def test_without_data_nothing_is_claimed(dense: Any) -> None:
    manifest = lrfc.build(dense, max_macs="60%", **QUICK | {"epochs": 3}).manifest
    assert manifest.accuracy.ladder() == {}
    assert manifest.before.accuracy is manifest.after.accuracy is None
    assert manifest.config["epochs"] == 0
    assert manifest.after.macs <= 0.6 * manifest.before.macs


def test_without_data_and_budget(dense: Any) -> None:
    manifest = lrfc.build(dense, objective="size", **QUICK).manifest
    assert manifest.after.params < manifest.before.params


def test_a_regression(dense: Any, samples: dict[str, Any]) -> None:
    values = np.random.default_rng(2).standard_normal((300, 4)).astype(np.float32)
    manifest = lrfc.build(
        dense, data={"x": samples["x"], "y": values}, max_macs="50%", **QUICK | {"epochs": 1}
    ).manifest
    assert (
        manifest.accuracy.metric,
        manifest.accuracy.percent,
        manifest.accuracy.higher_is_better,
    ) == ("mean squared error", False, False)
    test = load_data({"x": samples["x"], "y": values}, keras_io.from_keras(dense), seed=0).test
    error = float(np.mean(np.square(dense.predict(test.inputs[0], verbose=0) - test.targets[0])))
    assert manifest.accuracy.before == pytest.approx(error, rel=1e-4)
    assert manifest.accuracy.artifact <= 1.05 * manifest.accuracy.before
    assert manifest.after.macs <= 0.5 * manifest.before.macs


def test_several_inputs_and_a_shared_layer() -> None:
    import keras
    from keras import layers

    left_, right, image = (
        keras.Input((48,), name="left"),
        keras.Input((48,), name="right"),
        keras.Input((6, 6, 3), name="image"),
    )
    tower = layers.Dense(64, activation="relu", name="tower")
    conv = layers.Conv2D(32, 3, padding="same", name="conv")(image)
    x = layers.Concatenate(name="all")(
        [tower(left_), tower(right), layers.GlobalAveragePooling2D(name="pool")(conv)]
    )
    outputs = layers.Dense(4, name="head")(layers.Dense(64, activation="relu", name="wide")(x))
    model = helpers.random_weights(keras.Model([left_, right, image], outputs, name="siamese"))
    rng = np.random.default_rng(0)
    data = {
        "left": rng.standard_normal((90, 48)).astype(np.float32),
        "right": rng.standard_normal((90, 48)).astype(np.float32),
        "image": rng.standard_normal((90, 6, 6, 3)).astype(np.float32),
    }
    result = lrfc.build(
        model,
        data=lambda: (data, rng.integers(0, 4, 90)),
        max_params="50%",
        max_drop="100pp",
        **QUICK,
    )
    rows = {layer.name: layer for layer in result.manifest.layers}
    assert set(rows) == {"tower", "conv", "wide", "head"}
    assert rows["tower"].params_before == 48 * 64 + 64
    assert rows["tower"].macs_before == 2 * 48 * 64, "it is called twice"
    assert result.manifest.after.params <= 0.5 * result.manifest.before.params
    saved = keras.saving.load_model(result.out / "model.keras", compile=False)
    assert saved.count_params() == result.manifest.after.params, "shared weights are still shared"


def test_the_same_seed_gives_the_same_file(dense: Any, samples: dict[str, Any]) -> None:
    first, second = (
        lrfc.build(
            dense, data=samples, max_macs="50%", seed=3, out=Path(name), **QUICK | {"epochs": 1}
        ).manifest
        for name in ("first", "second")
    )
    assert first.artifacts[0] == second.artifacts[0]
    assert first.accuracy == second.accuracy


# -- results that are not good enough --------------------------------------------------------------


def test_a_missed_budget_keeps_the_best_effort(dense: Any, samples: dict[str, Any]) -> None:
    with pytest.raises(
        BudgetError, match=r"--max-drop 0\.1pp: the accuracy got worse by 50.00 pp \(95 % interval"
    ) as caught:
        lrfc.build(dense, data=samples, max_macs="12%", max_drop="0.1pp", **QUICK)
    result = caught.value.result
    assert isinstance(result, Result)
    assert type(result.failure) is type(caught.value)
    assert str(result.failure) == str(caught.value)
    assert result.artifact.is_file()
    assert result.manifest.after.macs <= 0.12 * result.manifest.before.macs
    assert "--max-drop" in (result.out / "report.html").read_text(encoding="utf-8")


def test_a_budget_out_of_reach_writes_nothing(dense: Any, samples: dict[str, Any]) -> None:
    with pytest.raises(
        BudgetError, match=r"--max-macs 1% cannot be reached: .* the least"
    ) as caught:
        lrfc.build(dense, data=samples, max_macs="1%", **QUICK)
    assert caught.value.result is None
    assert left() == set()


def test_a_slower_file_does_not_ship(
    dense: Any, samples: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runner.install(monkeypatch, FakeRunner(0.5))
    with pytest.raises(
        NoGainError, match=r"no gain: .*0\.50 times the original's speed.*the original was kept"
    ) as caught:
        lrfc.build(dense, data=samples, max_macs="50%", **QUICK)
    result = caught.value.result
    assert isinstance(result, Result)
    graph = keras_io.from_keras(dense)
    state = State(graph, graph, data=None)  # type: ignore[arg-type]
    canonical = run(state, plan([Canonicalise()])).graph
    original = TFLite().emit(fold_batchnorm(canonical), tmp_path / "original.tflite")
    assert result.artifact.read_bytes() == original.path.read_bytes()
    assert result.manifest.after == result.manifest.before
    assert all(
        layer.method is None and layer.rank is None and layer.reason
        for layer in result.manifest.layers
    )
    assert any("svd was tried; no gain" in str(layer.reason) for layer in result.manifest.layers)
    assert result.manifest.artifacts[0].sha256 == sha256(original.path)


def test_on_an_npu_the_compiled_file_has_to_be_smaller(
    dense: Any, samples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runner.install(monkeypatch, FakeRunner(2.0, flash=(9_000, 9_000)))
    with pytest.raises(
        NoGainError,
        match=(
            r"no gain: the compressed file has 9,000 bytes in flash, the original's 9,000; the"
            r" original was kept"
        ),
    ):
        lrfc.build(dense, data=samples, max_macs="50%", **QUICK)
    fake_runner.install(monkeypatch, FakeRunner(2.0, flash=(9_000, 8_999)))
    assert (
        lrfc.build(dense, data=samples, max_macs="50%", **QUICK).manifest.after.flash_bytes == 8_999
    )


def test_one_target_without_gain_fails_the_build_with_both_results(
    dense: Any, samples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_runner.install(monkeypatch, FakeRunner(0.5))
    with pytest.raises(NoGainError) as caught:
        lrfc.build(dense, target=["tflite", "onnx"], data=samples, max_macs="50%", **QUICK)
    assert isinstance(caught.value.result, tuple)
    assert [result.artifact.is_file() for result in caught.value.result] == [True, True]


def test_a_file_that_computes_something_else_does_not_ship(
    dense: Any, samples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = keras_io.predict
    monkeypatch.setattr(
        ship.keras_io,
        "predict",
        lambda graph, batch: tuple(1.01 * y for y in predict(graph, batch)),
    )
    with pytest.raises(ParityError):
        lrfc.build(dense, data=samples, max_macs="50%", **QUICK)
    assert left() == set()


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "coreml"}, "unknown target 'coreml'"),
        ({"max_mac": "50%"}, "unknown option 'max_mac': did you mean 'max_macs'"),
        ({"keep": ("*",)}, "--keep and --only leave no layer"),
        ({"only": ("nothing",)}, "--only nothing: no layer has such a name"),
        ({"stop_after": "Nope"}, "no pass is named 'Nope'"),
        ({"out": Path()}, "current folder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_options_are_refused(
    dense: Any, samples: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message.replace("*", r"\*")):
        lrfc.build(dense, **{"data": samples, "max_macs": "50%"} | QUICK | options)
    assert left() == set()


def test_layers_too_small_to_factorize(samples: dict[str, Any]) -> None:
    model = helpers.dense_net(features=2, widths=(), classes=2)
    with pytest.raises(
        ModelError, match="no layer of model 'dense_net' can be made smaller: head: "
    ):
        lrfc.build(model, data=(samples["x"][:, :2], samples["y"] % 2), max_macs="50%", **QUICK)
    assert left() == set()


def test_a_build_that_stops_early_returns_nothing(dense: Any, samples: dict[str, Any]) -> None:
    lines: list[str] = []
    made = lrfc.build(
        dense,
        data=samples,
        max_macs="50%",
        stop_after="Factorize",
        print_after=("Factorize",),
        progress=Progress(log=lines.append),
        **QUICK,
    )
    assert made is None
    assert left() == set()
    assert any(line.startswith("graph dense_net") for line in lines)


def test_the_front_is_the_one_of_the_report(dense: Any, samples: dict[str, Any]) -> None:
    result = lrfc.build(dense, data=samples, max_macs="50%", **QUICK)
    points = json.loads((result.out / "pareto.json").read_text())["points"]
    assert points[0]["macs"] <= result.manifest.after.macs <= points[-1]["macs"], (
        "the end of the front is the smallest network without a loss"
    )
    assert points[-1]["predicted_divergence"] == pytest.approx(0, abs=1e-6)


def test_a_pattern_that_names_no_layer_is_refused(dense: Any) -> None:
    for option in ("keep", "only"):
        with pytest.raises(
            UsageError,
            match=rf"--{option} nowhere\*: no layer has such a name; lrfc inspect lists the layers",
        ):
            lrfc.build(dense, **QUICK | {option: ("nowhere*",)})
