"""Networks of the kinds that devices run, through exploration and builds in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc import api
from lrfc.errors import NoGainError
from lrfc.protocols import Artifact
from lrfc.targets.onnx.target import ONNX
from lrfc.targets.tflite.target import TFLite
from tests.builds import built
from tests.real_networks import NETWORKS

#: Of the MACs. Weights at random have little to leave out.
KEPT = 0.8
FILES = {
    "tflite": ({"target": "tflite"}, TFLite(), 1e-3),
    "onnx": ({"target": "onnx"}, ONNX(), 1e-3),
    "int8": ({"target": "tflite", "precision": "int8"}, TFLite("int8"), None),
}


def samples(model: Any) -> Any:
    """Inputs for a model, with fewer directions than axes."""
    rng, shape = np.random.default_rng(0), model.inputs[0].shape[1:]
    parts = rng.standard_normal((96, *shape[:-1], 6)) @ rng.standard_normal((6, shape[-1]))
    return (parts / np.sqrt(6)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built(name: str, file: str, tmp_path: Path) -> None:
    import keras

    options, target, tolerance = FILES[file]
    model = NETWORKS[name]()
    data = samples(model)
    result = built(model, tmp_path, data=data, max_macs="80%", **options)
    before, after = result.manifest.before, result.manifest.after
    assert after.macs <= KEPT * before.macs or isinstance(result.failure, NoGainError)
    outputs = target.load(Artifact(result.artifact, target.name, target.precision))((data[:8],))[0]
    compressed = keras.saving.load_model(tmp_path / "out" / "model.keras")
    wanted = np.asarray(compressed(data[:8]))
    if tolerance is None:
        error = np.sqrt(np.mean((outputs - wanted) ** 2) / np.mean(wanted**2))
        assert error < 0.2
    else:
        np.testing.assert_allclose(outputs, wanted, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_explored(name: str, tmp_path: Path) -> None:
    model = NETWORKS[name]()
    survey = api.explore(model, data=samples(model), out=tmp_path / "out")
    assert any(space.candidates[1:] for space in survey.design.spaces)
    assert survey.points
