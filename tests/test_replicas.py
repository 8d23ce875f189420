"""A training on two devices, which are two logical processors of one process here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import sys
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from lrfc.config.build import Budget
from lrfc.passes.factorize import Factorize
from lrfc.passes.select_ranks import SelectRanks
from lrfc.training import replicas
from lrfc.training.recipe import Recipe
from lrfc.training.trainer import Trainer
from tests.compression import explored, learnt

state = Factorize()(SelectRanks(max_macs=Budget(value=0.4, relative=True))(explored(learnt())))

def trained(names):
    replicas.devices = lambda: names
    train = state.data.train.head(130)
    trainer = Trainer(state.graph, state.original, train, Recipe(batch=33), 0)
    order = [rows for number in range(5) for rows in trainer.epoch(number)]
    assert sum(map(len, trainer.epoch(0))) == 130
    losses = [trainer.step(rows, 3e-3, number) for number, rows in enumerate(order[:20])]
    return [trainer.probe(), *losses], trainer.weights(), trainer

(one, first, _), (two, second, trainer) = trained(["CPU:0"]), trained(["CPU:0", "CPU:1"])
assert trainer._replicas.count == 2
before = trainer.state()
trainer.step(np.arange(33), 3e-3, 99)
trainer.restore(before)
assert all(np.array_equal(a, b) for a, b in zip(trainer.state(), before))
apart = max(np.abs(a - b).max() for a, b in zip(first, second))
np.savez(sys.argv[1], one=one, two=two, apart=apart)
"""


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Losses of a training on one device and on two, and how far their weights are apart."""
    path = tmp_path_factory.mktemp("replicas") / "figures.npz"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(path) as file:
        return dict(file)


def test_two_devices_give_the_weights_of_one(figures: dict[str, np.ndarray]) -> None:
    assert figures["apart"] < 1e-5


def test_so_are_the_losses(figures: dict[str, np.ndarray]) -> None:
    assert figures["one"].shape == (21,)
    assert np.allclose(figures["one"], figures["two"], rtol=1e-4)
    assert figures["one"][-1] < figures["one"][1]
