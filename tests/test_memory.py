"""The memory that a command may use: its budget, its shares, and what is too little."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from lrfc import api
from lrfc.cli.build_options import parameters
from lrfc.config.build import BuildConfig, parse
from lrfc.engine import room
from lrfc.errors import ModelError, UsageError
from lrfc.factorization import linalg
from lrfc.ir.keras import run as keras_run
from lrfc.search.statistics import Sampler, SampleSize
from lrfc.state import Progress
from lrfc.system import memory
from tests import helpers

GIB = 1 << 30


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("4GiB", 4 * GIB), ("500MB", 500_000_000), (" 2 gb ", 2_000_000_000),
        ("1.5gib", 3 * GIB // 2), ("512MiB", GIB // 2), (4 * GIB, 4 * GIB), (None, None),
    ],
)  # fmt: skip
def test_forms(given: object, size: int | None) -> None:
    assert parse(memory=given).memory == size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("4", "4 has no unit: write 4GiB or 4MB"),
        (
            "half",
            "'half' is not an amount of memory: give it in MB, GB, MiB or GiB, such as 4GiB",
        ),
        ("4TB", "'4TB' is not an amount of memory"),
        ("50%", "'50%' is not an amount of memory"),
        ("4MB", "4MB is out of range: at least 100MB"),
        ("0GiB", "0GiB is out of range"),
        (4, "4 is out of range: at least 100MB"),
        (float("nan"), "'nan' is not an amount of memory"),
        (float("inf"), "'inf' is not an amount of memory"),
        ("1e300GiB", "1e300GiB is out of range"),
        (True, "'True' is not an amount of memory"),
    ],
)
def test_other_forms_are_refused(given: object, message: str) -> None:
    with pytest.raises(UsageError) as failure:
        parse(memory=given)
    assert str(failure.value).startswith(f"--memory: {message}")


@pytest.mark.parametrize("machine", [6, 8, 16, 64, 1024])
def test_machines_from_six_gibibytes_on_have_the_same_shares(
    machine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine", lambda: machine * GIB)
    assert memory.budget() == machine * GIB // 2
    assert memory.share(2 * GIB) == 2 * GIB
    assert memory.share(1) == 1
    assert memory.remark() is None


def test_a_smaller_budget_shrinks_every_share_and_is_said() -> None:
    before = memory.budget()
    with memory.limited(GIB):
        assert memory.share(3 * GIB) == GIB
        assert memory.share(384 << 20) == 128 << 20
        assert memory.limit(6 * GIB) == GIB
        assert memory.limit(5) == 5
        assert memory.remark() == (
            "memory: 1 GiB (--memory) is less than 3 GiB, so fewer samples are used at once, and"
            " the result may differ from that with more"
        )
        with memory.limited(None):
            assert memory.budget() == before
    assert memory.budget() == before


def test_a_small_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine", lambda: 4 * GIB)
    assert "2 GiB (half of this machine) is less than 3 GiB" in str(memory.remark())


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        ("0::/\n", {"memory.max": "max\n"}, []),
        ("0::/a/b\n", {"a/b/memory.max": "5000\n", "a/memory.max": "4000\n"}, [5000, 4000]),
        (
            "5:cpu:/x\n4:memory:/x\n0::/\n",
            {"memory/x/memory.limit_in_bytes": "7000\n", "memory/memory.limit_in_bytes": "9000\n"},
            [7000, 9000],
        ),
        ("4:memory:/gone\n", {}, []),
        (None, {"memory.max": "1\n"}, []),
    ],
)
def test_control_groups(
    membership: str | None,
    files: dict[str, str],
    limits: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    assert list(memory._group_limits()) == limits


def test_this_machine() -> None:
    assert GIB // 4 < memory.machine() < 1 << 50


def test_a_decomposition_has_to_fit() -> None:
    with memory.limited(GIB), pytest.raises(ModelError) as failure:
        linalg.need("conv", "its Tucker decomposition", (1 << 14, 1 << 14))
    assert str(failure.value) == (
        "layer 'conv': its Tucker decomposition needs 2 GiB, above the limit of 1 GiB; exclude the"
        " layer with --keep conv, or allow more with --memory"
    )
    with memory.limited(16 * GIB):
        linalg.need("conv", "its Tucker decomposition", (1 << 14, 1 << 14))
        with pytest.raises(ModelError, match=r"above the limit of 6 GiB.*--keep conv$"):
            linalg.need("conv", "its Tucker decomposition", (1 << 15, 1 << 15))


def test_small_budgets_group_the_layers() -> None:
    """Two layers whose covariances take 32 KiB each."""
    graph = helpers.graph_of(helpers.dense_net(64, (64, 64)))
    layers = [op for op in graph if op.kind == "Dense" and op.weights["kernel"].shape[0] == 64][:2]
    inputs = helpers.random_inputs(graph, 16)
    counts = []
    for budget in (3 * GIB, 240 << 10):
        with memory.limited(budget):
            sampler = Sampler(graph, layers, inputs, SampleSize(8, 8, 32, 32), 0)
        counts.append(len(sampler.groups(layers)))
    assert counts == [1, 2]


def test_a_network_has_to_fit(tmp_path: Path) -> None:
    """2 · (4 MiB of weights + 16 samples of 12 KiB)."""
    graph = helpers.graph_of(helpers.dense_net(1024, (1024,), classes=1))
    with memory.limited(9 << 20):
        room.check(graph, 1000)
    with memory.limited(8 << 20), pytest.raises(UsageError) as failure:
        room.check(graph, 1000)
    assert re.fullmatch(
        r"'dense_net' needs 8\.\d+ MiB, for two networks with weights of 4\.0\d+ MiB and the"
        r" activations of 16 samples, each 8 KiB at 'dense0'; 8 MiB are allowed: give more with"
        r" --memory, or a smaller model",
        str(failure.value),
    ), str(failure.value)


@pytest.mark.parametrize("command", [api.build, api.explore])
def test_too_little_memory_is_refused_before_any_work(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "machine", lambda: 2_000)
    with pytest.raises(UsageError, match="are allowed: give more with --memory"):
        command(helpers.conv_net(), data=None, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    lines: list[str] = []
    with pytest.raises(UsageError, match="nothing"):
        command(
            helpers.conv_net(),
            out=tmp_path / "out",
            memory="200MB",
            keep=["nothing"],
            progress=Progress(log=lines.append),
        )
    assert [line for line in lines if line.startswith("memory: 190.7 MiB (--memory)")]


def test_large_batches_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = helpers.graph_of(helpers.two_inputs())
    inputs = helpers.random_inputs(graph, 20)
    lengths: list[int] = []
    whole = keras_run.compiled(graph)(inputs)
    once = keras_run._run_fixed
    monkeypatch.setattr(
        keras_run, "_run_fixed", lambda *args: lengths.append(len(args[1][0])) or once(*args)
    )
    with memory.limited(0):
        parts = keras_run.compiled(graph)(inputs)
    assert lengths == [1] * 20
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_the_largest_op_counts() -> None:
    """A bias of 24 values: 24 in, 24 out, in float32."""
    import tensorflow as tf

    model = helpers.dense_net(16, (24, 12))
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((None, 16), tf.float32)
    )
    assert keras_run._sample_bytes(function) == 4 * (24 + 24)


@pytest.mark.parametrize("command", ["build", "explore"])
@pytest.mark.parametrize(("given", "message"), [("4", "4 has no unit"), ("9MB", "9MB is out of")])
def test_the_command_line_takes_units(command: str, given: str, message: str) -> None:
    model = Path(__file__).parents[1] / "examples" / "digits.keras"
    done = subprocess.run(
        [sys.executable, "-m", "lrfc", command, str(model), "--memory", given],
        env={**os.environ, "PYTHONPATH": str(model.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"lrfc: --memory: {message}")


def test_the_options_of_a_build_take_units() -> None:
    (option,) = (option for option in parameters(BuildConfig) if option.name == "memory")
    assert get_args(option.annotation)[0] == str | None
