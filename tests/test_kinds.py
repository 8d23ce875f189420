"""The table of op kinds, compared with Keras."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from lrfc.ir.kinds import KINDS, Kind, kind_of, names
from lrfc.ir.op import Op

LAYERS = [kind for kind in KINDS if not kind.name.startswith("ops.")]
#: Arguments of layers that have no default for them. Three inputs, four outputs.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "conv": {"filters": 4, "kernel_size": 2},
    "transposed": {"filters": 4, "kernel_size": 2},
    "depthwise": {"kernel_size": 2, "depth_multiplier": 2},
    "separable": {"filters": 4, "kernel_size": 2, "depth_multiplier": 2},
    "dense": {"units": 4},
    "einsum": {"equation": "ab,bc->ac", "output_shape": 4},
    "embedding": {"input_dim": 3, "output_dim": 4},
    "pooling": {"pool_size": 2},
}
BY_NAME: dict[str, dict[str, Any]] = {
    "Activation": {"activation": "relu"},
    "Dropout": {"rate": 0.5},
    "AlphaDropout": {"rate": 0.5},
    "GaussianDropout": {"rate": 0.5},
    "GaussianNoise": {"stddev": 0.5},
    "Reshape": {"target_shape": (-1,)},
    "Permute": {"dims": (2, 1)},
    "RepeatVector": {"n": 2},
    "GroupNormalization": {"groups": 1},
    "Rescaling": {"scale": 2.0},
}
SPATIAL_DROPOUT = re.compile(r"SpatialDropout\dD")


def chosen(**facts: Any) -> list[Any]:
    """Test parameters: the layers with these facts."""
    wanted = facts.items()
    kinds = [kind for kind in LAYERS if all(getattr(kind, name) == fact for name, fact in wanted)]
    return [pytest.param(kind, id=kind.name) for kind in kinds]


def layer(kind: Kind) -> Any:
    import keras

    given = dict(ARGUMENTS.get(kind.family, BY_NAME.get(kind.name, {})))
    if SPATIAL_DROPOUT.fullmatch(kind.name):
        given["rate"] = 0.5
    return getattr(keras.layers, kind.name)(**given)


def sample(kind: Kind) -> np.ndarray[Any, Any]:
    """An input of the layer with values of both signs and three channels."""
    if kind.name == "RepeatVector":
        shape: tuple[int, ...] = (2, 3)
    else:
        shape = (2, *(4,) * (kind.spatial_axes or 1), 3)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def run(kind: Kind, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(layer(kind)(x, **training(kind)))


def training(kind: Kind) -> dict[str, bool]:
    import keras

    call = inspect.signature(getattr(keras.layers, kind.name).call)
    return {"training": False} if "training" in call.parameters else {}


def test_each_kind_has_one_row() -> None:
    assert [name for name, count in Counter(kind.name for kind in KINDS).items() if count > 1] == []


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.name)
def test_layers_are_those_of_keras(kind: Kind) -> None:
    import keras

    # Keras exports the class GroupedQueryAttention as GroupQueryAttention.
    assert getattr(keras.layers, kind.name).__name__.replace("Grouped", "Group") == kind.name
    sizes = re.findall(r"(\d)D", kind.name)
    assert [str(kind.spatial_axes)] == (sizes or ["0"])


def test_functions_are_those_of_keras() -> None:
    modules = [import_module(f"keras.src.ops.{module}") for module in ("numpy", "nn", "math")]
    known = {name for module in modules for name in vars(module)}
    functions = [kind.name.removeprefix("ops.") for kind in KINDS if kind.name.startswith("ops.")]
    assert set(functions) - known == set()


@pytest.mark.parametrize("kind", [*chosen(has_kernel=True), *chosen(family="embedding")])
def test_channel_axes_are_those_of_the_weights(kind: Kind) -> None:
    """Layers with three inputs and four outputs; depthwise ones with two outputs per channel."""
    built = layer(kind)
    source = sample(kind)[:, 0] if kind.name == "EinsumDense" else sample(kind)
    built(np.zeros((2, 3), np.int32) if kind.family == "embedding" else source)
    weights = {weight.path.rpartition("/")[2]: weight.shape for weight in built.weights}
    assert kind.output_kernel in weights
    if kind.kernel is not None and kind.input_axis is not None:
        assert weights[kind.kernel][kind.input_axis] == 3
        assert len(weights[kind.kernel]) == 2 + kind.spatial_axes
    lengths = [weights[kind.output_kernel][axis] for axis in kind.output_axes]
    if kind.is_depthwise:
        assert lengths == [3, 2]
    elif kind.family != "einsum":
        assert lengths == [4]


def test_linear_layers_are_all_that_keras_has() -> None:
    """Every layer class of Keras with these names is in the table, so that none is overlooked."""
    import keras

    pattern = re.compile(r"(Depthwise|Separable)?Conv\dD(Transpose)?|(Einsum)?Dense")
    offered = {name for name in dir(keras.layers) if pattern.fullmatch(name)}
    assert {kind.name for kind in KINDS if kind.has_kernel} == offered
    windows = re.compile(r"(Global)?(Max|Average)Pooling\dD|(ZeroPadding|Cropping|UpSampling)\dD")
    offered = {name for name in dir(keras.layers) if windows.fullmatch(name)}
    families = ("pooling", "global_pooling", "padding", "cropping", "upsampling")
    assert set(names(*families)) == offered


@pytest.mark.parametrize("kind", chosen(family="activation"))
def test_elementwise_activations_commute_with_a_reversal_of_the_elements(kind: Kind) -> None:
    x = sample(kind)
    order = np.random.default_rng(1).permutation(x.size)
    moved = run(kind, x.ravel()[order].reshape(x.shape))
    assert np.allclose(run(kind, x).ravel()[order], moved.ravel(), atol=1e-6) is kind.elementwise


@pytest.mark.parametrize("kind", chosen(family="activation"))
def test_parametric_activations_have_weights(kind: Kind) -> None:
    built = layer(kind)
    built(sample(kind))
    assert bool(built.weights) is kind.parametric


@pytest.mark.parametrize("kind", chosen(family="dropout"))
def test_dropout_is_the_identity_at_inference(kind: Kind) -> None:
    x = sample(kind)
    assert np.array_equal(run(kind, x), x)


@pytest.mark.parametrize("kind", chosen(view=True))
def test_views_keep_the_values_in_their_order(kind: Kind) -> None:
    x = sample(kind)
    assert np.array_equal(run(kind, x).ravel(), x.ravel())


@pytest.mark.parametrize("kind", chosen(keeps_range=True))
def test_ranges_are_kept(kind: Kind) -> None:
    x = sample(kind)
    y = run(kind, x)
    assert min(x.min(), 0) <= y.min()
    assert y.max() <= max(x.max(), 0)


@pytest.mark.parametrize("kind", [*chosen(homogeneous="linear"), *chosen(homogeneous="positive")])
def test_scales_pass_through_homogeneous_kinds(kind: Kind) -> None:
    x = sample(kind)
    assert np.allclose(run(kind, 2 * x), 2 * run(kind, x), atol=1e-6)
    both_signs = np.allclose(run(kind, -x), -run(kind, x), atol=1e-6)
    assert both_signs is (kind.homogeneous == "linear")


@pytest.mark.parametrize("name", ["ConvBlock", "package.layers.Conv2D", "ops.Conv", "Masking"])
def test_other_names_are_of_no_family(name: str) -> None:
    assert kind_of(name) == Kind(name)
    assert kind_of(name).family == "other"
    assert not kind_of(name).has_kernel


def test_kind_of_an_op() -> None:
    assert Op("a", "SeparableConv2D").info is kind_of("SeparableConv2D")
    assert Op("a", "SeparableConv2D").info.is_linear
    assert Op("a", "Conv3DTranspose").info.is_transposed
    assert not Op("a", "EinsumDense").info.is_linear  # its axes are those of its equation
    assert not Op("a", "DepthwiseConv1D").info.has_filters
