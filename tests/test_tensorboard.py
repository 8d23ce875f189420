"""The figures of a fine-tune as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrfc.config.build import Budget
from lrfc.errors import UsageError
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.passes.select_ranks import SelectRanks
from lrfc.state import State
from lrfc.training.tensorboard import Board, prepare
from tests.compression import explored, learnt


def compressed() -> State:
    return Factorize()(SelectRanks(max_macs=Budget(value=0.4, relative=True))(explored(learnt())))


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The values by name and step of all event files in a folder."""
    import tensorflow as tf

    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("events.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                found.setdefault(value.tag, {})[event.step] = number
    return found


def test_loss_score_and_rate_of_every_epoch(tmp_path: Path) -> None:
    tuning = FineTune(epochs=3, batch=64, patience=9, log_dir=tmp_path)(compressed()).fact(Tuning)
    found = scalars(tmp_path / "fine-tune-1")
    assert set(found) == {"loss", "validation accuracy", "learning rate"}
    for name, values in (("loss", tuning.losses), ("validation accuracy", tuning.scores)):
        assert found[name] == pytest.approx(dict(enumerate(values[1:], 1)), rel=1e-6)
    rates = [found["learning rate"][epoch] for epoch in (1, 2, 3)]
    assert tuning.learning_rate > rates[0] > rates[1] > rates[2] == 0


def test_every_fine_tune_has_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "fine-tune-2").mkdir()
    for epoch in (1, 2):
        Board(tmp_path).write(epoch, {"loss": 0.5})
    assert scalars(tmp_path / "fine-tune-1") == {"loss": {1: 0.5}}
    assert scalars(tmp_path / "fine-tune-3") == {"loss": {2: 0.5}}
    assert not list((tmp_path / "fine-tune-2").iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--log-dir .*file.*: (Not a directory|File exists)"):
        prepare(tmp_path / "file" / "logs")
