"""A build that repeats another: the same plan, the same bytes, and the reasons to refuse it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lrfc
from lrfc.engine import preflight
from lrfc.engine.replay import Locked
from lrfc.errors import BudgetError, UsageError
from lrfc.passes.lock_layers import Choice, LockLayers
from lrfc.pipeline import plan, run
from lrfc.results import folder as artifact
from lrfc.results.manifest import Manifest
from lrfc.search.facts import DesignSpace
from lrfc.state import Progress, State
from tests import fake_runner, helpers
from tests.fake_runner import FakeRunner

OPTIONS: dict[str, Any] = {
    "max_macs": "35%",
    "methods": ("channel_svd", "tucker2", "svd"),
    "seed": 5,
}


@pytest.fixture(scope="module", autouse=True)
def _fake_host() -> Iterator[None]:
    """A host that times nothing."""
    with pytest.MonkeyPatch.context() as patch:
        fake_runner.install(patch, FakeRunner())
        yield


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, data, and a build of it without a fine-tune."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lrfc.build(model_and_data(), data="data.npz", epochs=0, **OPTIONS)
    return folder


@pytest.fixture
def first(place: Path, tmp_path: Path) -> Manifest:
    """The manifest of that build, copied into the current folder."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return Manifest.read(tmp_path / "net-lrfc")


def model_and_data(classes: int = 5) -> Path:
    """Write net.keras, and data.npz with labels that the network has not been trained on."""
    helpers.conv_net(size=8, filters=(8, 16), classes=classes).save("net.keras")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((240, 8, 8, 3)).astype(np.float32)
    np.savez(
        "data.npz",
        x=x,
        y=np.argmax(x.mean(axis=(1, 2)) @ rng.standard_normal((3, classes)), axis=1),
    )
    return Path("net.keras")


def choices(manifest: Manifest) -> list[Any]:
    return [
        (layer.name, layer.method, layer.rank, layer.params_after, layer.macs_after)
        for layer in manifest.layers
    ]


def test_the_same_plan_and_the_same_bytes() -> None:
    model = model_and_data()
    first = lrfc.build(model, data="data.npz", out="first", epochs=2, **OPTIONS)
    lines: list[str] = []
    again = lrfc.build(
        model, locked=Path("first/manifest.json"), out="again", progress=Progress(log=lines.append)
    )
    assert first.manifest.finetune is not None
    assert first.manifest.finetune.best > 0, "what was trained is in the file"
    assert choices(again.manifest) == choices(first.manifest)
    assert (
        again.manifest.artifacts[0].sha256
        == artifact.sha256(again.artifact)
        == first.manifest.artifacts[0].sha256
    )
    assert (
        again.manifest.config["epochs"],
        again.manifest.seed,
        again.manifest.config["data"],
    ) == (2, 5, "data.npz")
    assert again.manifest.accuracy.model_dump(
        exclude={"kept"}
    ) == first.manifest.accuracy.model_dump(exclude={"kept"})
    assert not any(line.startswith("ExploreLayers") for line in lines)
    assert sum("byte for byte" in line for line in lines) == 1
    assert not any("warning" in line for line in lines)
    assert Locked.read(Path("first")).choices == Locked.read(Path("first/manifest.json")).choices


def test_other_options_go_before_those_of_the_manifest(first: Manifest) -> None:
    lines: list[str] = []
    other = lrfc.build(
        "net.keras", locked="net-lrfc", target="onnx", progress=Progress(log=lines.append)
    )
    assert (other.out, other.manifest.target) == (Path("net-locked"), "onnx")
    assert choices(other.manifest) == choices(first)
    assert any("not the same bytes" in line for line in lines)


@pytest.mark.usefixtures("first")
def test_the_default_model_is_the_one_that_the_manifest_names() -> None:
    assert preflight.build(None, {}, "net-lrfc").model == Path("net.keras"), "in the current folder"
    shutil.copyfile("net.keras", "net-lrfc/net.keras")
    Path("net.keras").write_bytes(b"PK another")
    request = preflight.build(None, {}, "net-lrfc/manifest.json")
    assert request.model == Path("net-lrfc/net.keras"), "in the folder of the manifest"
    assert request.folders == (Path("net-locked"),)
    assert request.config.data == "data.npz"
    Path("net-lrfc/net.keras").unlink()
    with pytest.raises(
        UsageError,
        match=(
            r"net-lrfc: that build's model is net\.keras with SHA-256 \w{12}…, and net\.keras is"
            r" another \(SHA-256 \w{12}…\)"
        ),
    ):
        preflight.build(None, {}, "net-lrfc")
    Path("net.keras").unlink()
    with pytest.raises(
        UsageError,
        match=r"and there is none of that name here; name the file: lrfc build MODEL --locked",
    ):
        preflight.build(None, {}, "net-lrfc")
    with pytest.raises(
        UsageError, match=r"net-lrfc/net\.keras: no such file|net\.keras: no such file"
    ):
        preflight.build("net.keras", {}, "net-lrfc")


@pytest.mark.usefixtures("first")
def test_an_option_that_would_lead_to_another_plan_is_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"prune": "only"},
            (
                "--prune only: the plan of net-lrfc is repeated as it is, and was made with --prune"
                " auto; leave out --prune, or build without"
            ),
        ),
        ({"keep": ("conv0",)}, "--keep conv0: .* was made with no --keep; leave out --keep"),
        (
            {"methods": ("svd", "cp")},
            "--methods svd,cp: .* was made with --methods channel_svd,tucker2,svd;",
        ),
        ({"objective": "size"}, "--objective size: .* was made with no --objective;"),
    ]
    for options, message in wrong:
        with pytest.raises(UsageError, match=message):
            lrfc.build("net.keras", locked="net-lrfc", **options)
    lrfc.build(
        "net.keras", locked="net-lrfc", prune="auto", methods=OPTIONS["methods"], out="as before"
    )
    with pytest.raises(BudgetError, match="not met: --max-macs 10%"):
        lrfc.build("net.keras", locked="net-lrfc", max_macs="10%", out="too large")


@pytest.mark.usefixtures("first")
def test_another_model_is_refused() -> None:
    helpers.conv_net(size=8, filters=(8, 16), seed=1).save("other.keras")
    with pytest.raises(
        UsageError,
        match=r"net-lrfc is the plan for another model: net.keras with SHA-256 .*'other.keras' has",
    ):
        lrfc.build("other.keras", locked="net-lrfc")
    assert not Path("other-locked").exists()


def test_data_from_python_have_to_be_given_again() -> None:
    model = model_and_data()
    data = dict(np.load("data.npz"))
    first = lrfc.build(model, data=data, epochs=0, **OPTIONS)
    with pytest.raises(
        UsageError, match="that build's data came from Python; give the same with --data"
    ):
        lrfc.build(model, locked="net-lrfc")
    assert (
        lrfc.build(model, locked="net-lrfc", data=data).manifest.artifacts[0].sha256
        == first.manifest.artifacts[0].sha256
    )


def test_other_versions_are_logged_and_an_empty_plan_is_refused(first: Manifest) -> None:
    out = Path("net-lrfc")
    changed = first.model_copy(update={"versions": {**first.versions, "keras": "3.0.0"}})
    changed.write(out)
    lines: list[str] = []
    lrfc.build("net.keras", locked=out, progress=Progress(log=lines.append))
    assert any(
        line.startswith("warning: other versions than those of net-lrfc")
        and "keras 3.0.0 → " in line
        for line in lines
    )
    layers = tuple(layer.model_copy(update={"method": None}) for layer in changed.layers)
    changed.model_copy(update={"layers": layers}).write(out)
    with pytest.raises(UsageError, match="no layer was factorized or pruned in that build"):
        Locked.read(out)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (Choice("gone", "svd", (2,), 0.1, None), "a layer 'gone'"),
        (Choice("head", "magic", (2,), 0.1, None), "there is no method 'magic'"),
        (Choice("head", "svd", (99,), 0.1, None), "svd has no rank 99,"),
        (Choice("head", "svd", (2, 2), 0.1, None), "svd has no rank 2x2,"),
        (
            Choice("head", "spatial_svd", (2,), 0.1, None),
            "the plan for layer 'head' cannot be followed",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(choice: Choice, reason: str) -> None:
    from lrfc.data.dataset import Data, Split

    graph = helpers.graph_of(helpers.conv_net(size=8))
    split = Split(helpers.random_inputs(graph, 8))
    with pytest.raises(UsageError) as caught:
        run(State(graph, graph, Data("random", split, split, split)), plan([LockLayers((choice,))]))
    assert reason in str(caught.value)


def test_a_locked_layer_has_one_candidate_and_the_others_their_reason() -> None:
    from lrfc.data.dataset import Data, Split

    graph = helpers.graph_of(helpers.conv_net(size=8))
    split = Split(helpers.random_inputs(graph, 8))
    plans = (
        Choice("conv1", "channel_svd", (3,), 0.25, None),
        Choice("head", None, (), 0.0, "no rank pays"),
    )
    design = run(
        State(graph, graph, Data("random", split, split, split)), plan([LockLayers(plans)])
    ).fact(DesignSpace)
    (space,) = design.spaces
    assert [(c.method, c.ranks, c.error) for c in space.candidates] == [("channel_svd", (3,), 0.25)]
    assert (space.whole.method, space.whole.params) == (None, graph.op("conv1").params)
    assert design.skipped == {"head": "no rank pays"}
