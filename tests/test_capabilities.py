"""A new target and a new kind of connection: a file and a line of a registry each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import pytest

import lrfc
from lrfc.config.build import BuildConfig
from lrfc.config.formats import FORMATS, Format, check
from lrfc.config.precision import Name, of
from lrfc.costs import latency
from lrfc.costs.totals import totals
from lrfc.errors import UsageError
from lrfc.ir.batch import Batch
from lrfc.ir.graph import Graph
from lrfc.ir.keras import io as keras_io
from lrfc.ir.rounding import STEPS
from lrfc.protocols import Artifact, Runner
from lrfc.results.compare import SUFFIXES
from lrfc.results.manifest import Manifest
from lrfc.targets.base import FileTarget
from lrfc.targets.catalog import target
from lrfc.targets.devices import device as devices
from lrfc.targets.devices.connections import CONNECTIONS, Connection
from lrfc.targets.devices.device import Device
from lrfc.targets.devices.measure import Measurement
from lrfc.targets.devices.runners import runner
from lrfc.targets.devices.runners.base import Facts
from tests import helpers

ROOT = Path(__file__).parent.parent


# -- the file of a target ------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights(FileTarget):
    """A network as a .keras file, with its MACs beside it; run by Keras."""

    precision: Name = "fp32"
    int8_io: bool = False
    name: ClassVar[str] = "weights"

    def __post_init__(self) -> None:
        check(self.name, self.precision, int8_io=self.int8_io)

    def refusals(self, graph: Graph) -> Sequence[str]:
        return ()

    def emit(self, graph: Graph, path: Path, calibration: Batch | None = None) -> Artifact:
        place = path.with_suffix(".keras")
        keras_io.save(graph, place)
        with path.open("wb") as file:
            model = np.fromfile(place, np.uint8)
            np.savez_compressed(file, macs=totals(graph)["macs"], model=model)
        place.unlink()
        return Artifact(path, self.name, self.precision)

    def load(self, artifact: Artifact) -> Runner:
        import keras

        place = artifact.path.with_suffix(".keras")
        place.write_bytes(np.load(artifact.path)["model"].tobytes())
        graph = keras_io.from_keras(keras.models.load_model(place))
        place.unlink()
        return lambda batch: keras_io.predict(graph, batch)


# -- the file of a connection --------------------------------------------------------------------


class Counter(Connection):
    """A device that takes a nanosecond for each MAC."""

    runner: ClassVar[str] = f"{__name__}:Counted"

    kind: Literal["counter"] = "counter"
    pace: float = 1.0


class Counted:
    """The runner of such a device, for the files of the target above."""

    def __init__(self, device: Device) -> None:
        assert isinstance(device.connection, Counter)
        self._pace = device.connection.pace

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def check(self) -> Facts:
        return Facts("counter", "none", None, {"weights": "counter 1"})

    def compare(
        self,
        files: Sequence[Artifact],
        *,
        runs: int = 200,
        threads: int = 1,
        timeout: float = 600,
    ) -> tuple[Measurement, ...]:
        times = [1e-6 * self._pace * int(np.load(file.path)["macs"]) for file in files]
        return tuple(
            Measurement(
                path=file.path,
                median_ms=ms,
                p90_ms=ms,
                iqr_ms=0.0,
                n=runs,
                inner=1,
                rounds_ms=(ms,) * 20,
                threads=threads,
                cold_start_ms=1.0,
                runtime="counter",
                runtime_version="1",
                baseline_rss_bytes=None,
                peak_rss_bytes=None,
            )
            for file, ms in zip(files, times, strict=True)
        )


BOARD = """
name = "board"
description = "counts"
formats = ["weights"]
[connection]
kind = "counter"
pace = 2.0
"""


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The profile of a device, with both lines of registry in place."""
    monkeypatch.setitem(FORMATS, "weights", Format(f"{__name__}:Weights", ".npz", ("fp32",)))
    monkeypatch.setitem(CONNECTIONS, "counter", Counter)
    monkeypatch.setenv("LRFC_CACHE", str(tmp_path / "cache"))
    prices = latency.load("host", "tflite", "fp32", 1)
    assert prices is not None
    own = prices.model_copy(update={"device": "board", "format": "weights"})
    costs = latency.CostFile(profiles=(own,))
    costs.write(tmp_path / "board.cost.json")
    monkeypatch.setattr(latency, "user_file", lambda name: tmp_path / f"{name}.cost.json")
    path = tmp_path / "board.toml"
    path.write_text(BOARD, encoding="utf-8")
    return path


def test_a_new_target_is_built_for_a_device_with_a_new_connection(
    board: Path,
    tmp_path: Path,
) -> None:
    result = lrfc.build(
        helpers.conv_net(filters=(32, 48)),
        device=str(board),
        max_macs="60%",
        epochs=0,
        out=tmp_path / "out",
    )
    manifest = Manifest.read(result.out)
    assert (manifest.target, manifest.device) == ("weights", "board")
    assert [each.path for each in manifest.artifacts] == ["conv_net.npz", "model.keras"]
    assert manifest.after.macs <= 0.6 * manifest.before.macs
    for figures in (manifest.before, manifest.after):
        assert figures.latency_ms is not None
        assert figures.latency_ms.source == "measured"
        assert figures.latency_ms.p50 == pytest.approx(2e-6 * figures.macs)
    assert manifest.parity is not None
    assert manifest.parity.max_abs_diff < 1e-4
    assert manifest.artifacts[0].scales == ()
    assert (result.out / "report.html").stat().st_size > 0


def test_the_new_target_is_a_choice_wherever_one_is_made(board: Path) -> None:
    assert BuildConfig(targets=("weights",)).targets == ("weights",)
    with pytest.raises(UsageError, match="no precision 'int8'; choose fp32, or target tflite"):
        target("weights", "int8")
    with pytest.raises(UsageError, match="runs weights files, not onnx"):
        lrfc.build(helpers.dense_net(), device=str(board), target="onnx")


def test_the_new_connection_is_one_wherever_profiles_are_read(board: Path) -> None:
    device = devices.load(board)
    assert device.model_dump()["connection"] == {"kind": "counter", "pace": 2.0}
    assert (device.measured, device.estimated, device.tells_ops) == (True, False, False)
    with runner(device) as connected:
        assert connected.check().machine == "counter"
    board.write_text(BOARD.replace("pace", "pase"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"'connection.pase' \(= 2.0\): did you mean 'pace'"):
        devices.load(board)
    board.write_text(BOARD.replace("counter", "abacus"), encoding="utf-8")
    with pytest.raises(UsageError, match="it is one of local, ssh, adb, vela, analytic, counter"):
        devices.load(board)


def test_without_their_lines_both_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(BOARD, encoding="utf-8")
    with pytest.raises(UsageError, match="'weights'"):
        devices.load(path)
    with pytest.raises(UsageError, match="unknown target 'weights'; known are tflite, onnx"):
        target("weights")


# -- the registries ------------------------------------------------------------------------------


def test_every_line_of_the_formats_names_its_target() -> None:
    for name, form in FORMATS.items():
        for precision in form.precisions:
            of(precision)
            made = target(name, precision)
            assert (made.name, made.precision, made.suffix) == (name, precision, form.suffix)
        assert target(name, "int8", int8_io=form.int8_io).suffix in SUFFIXES
        assert set(form.trained) <= set(form.precisions)
        assert 0 < form.weight_steps <= STEPS
    assert Format("module:Class", ".file", ("int8",)).weight_steps == STEPS


def test_every_line_of_the_connections_is_under_its_kind() -> None:
    for kind, each in CONNECTIONS.items():
        assert get_args(each.model_fields["kind"].annotation) == (kind,)
        assert (each.figures == "measured") == (each.not_timed == "")


# -- nobody asks for types -----------------------------------------------------------------------

#: Questions for what a target or a connection is, where one for what it can do is due.
ASKED = re.compile(
    r"isinstance\([^()]*(target|connection|TFLite|ONNX|Vela|Analytic|Local|SSH|ADB)\b"
    r"|connection\.kind *(==|!=|in\b|not in\b)"
    r"|(kind|form|name) *(==|!=) *\"(tflite|onnx|vela|analytic|local|ssh|adb)\""
)


def asked(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if ASKED.search(line)]


def test_the_pattern_finds_what_it_is_for() -> None:
    assert asked("if isinstance(target, TFLite):")
    assert asked("    if not isinstance(each.connection, Vela):")
    assert asked('x if d.connection.kind == "vela" else y')
    assert asked('if form != "tflite":')
    assert not asked("goal.device.connection.kind,")


@pytest.mark.parametrize("folder", ["lrfc", "passes"])
def test_types_and_kinds_are_asked_for_in_targets_only(folder: str) -> None:
    links = {ROOT / "lrfc" / "targets", ROOT / "lrfc" / "passes"}
    python = sorted((ROOT / folder).rglob("*.py"))
    files = [path for path in python if not links & set(path.parents)]
    assert len(files) > 10
    found = {str(path.relative_to(ROOT)): asked(path.read_text(encoding="utf-8")) for path in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
