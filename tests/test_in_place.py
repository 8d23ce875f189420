"""Memory plans in which an addition writes its output over an input."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import activations
from lrfc.targets.tflite.in_place import shared
from lrfc.targets.tflite.memory_plan import planned_bytes, with_plan
from lrfc.targets.tflite.patches import tiled
from tests.tflite_files import File, by_micro, by_reference, samples

MICRO = importlib.util.find_spec("tflite_micro") is not None
WITHOUT_MICRO = "tflite-micro is not installed: pip install 'lrfc[micro]'"
MAP = 12 * 12 * 16


def residual(blocks: int = 2, seed: int = 0) -> bytes:
    """A file of residual blocks whose inner maps have half of the channels."""
    file = File(random=np.random.default_rng(seed))
    x = file.conv(file.input(12, 12, 4), 16, 3)
    for _ in range(blocks):
        x = file.add(x, file.conv(file.conv(x, 8, 1), 16, 3))
    return file.written(file.conv(x, 3, 3, 4))


def test_an_addition_needs_two_maps() -> None:
    model = flatfile.unpack(residual())
    found = activations(model)
    assert found.arena.peak_bytes == 3 * MAP
    place = shared(model, found)
    assert place.arena.peak_bytes == 2.5 * MAP  # the operator in front of it, with both ends
    assert set(place.buffers) == set(found.tensors)
    assert len(place.arena.buffers) == len(found.arena.buffers) - 2
    alive = [0] * len(place.arena.timeline)
    for buffer in place.arena.buffers:
        for step in range(buffer.first, buffer.last + 1):
            alive[step] += buffer.size
    assert alive == list(place.arena.timeline.values())


def test_the_file_holds_that_plan() -> None:
    file = with_plan(residual())
    assert planned_bytes(flatfile.unpack(file)) == 2.5 * MAP
    assert planned_bytes(flatfile.unpack(residual())) == 3 * MAP  # a runtime without plans
    inputs = samples(file)
    np.testing.assert_array_equal(by_reference(file, inputs), by_reference(residual(), inputs))


@pytest.mark.skipif(not MICRO, reason=WITHOUT_MICRO)
@pytest.mark.parametrize("seed", range(3))
def test_tflm_computes_the_same_in_less_memory(
    seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    from tflite_micro.python.tflite_micro import runtime

    content = residual(3, seed)
    file = with_plan(content)
    inputs = samples(content, 4)
    expected = by_reference(content, inputs)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(by_micro(file, inputs), expected)
    runtime.Interpreter.from_bytes(file, arena_size=1 << 20).print_allocations()
    assert f"Arena allocation head {planned_bytes(flatfile.unpack(file))} " in "".join(
        capfd.readouterr()
    )


def places(*, inner: bool = False, broadcast: bool = False, kept: bool = False) -> list[str]:
    """The buffers of the operands and of the sum in a file with one addition.

    ``inner``: the addition reads no input of the file, and its sum is not the output.
    ``broadcast``: its second operand is one row. ``kept``: its operands are read behind it.
    """
    file = File(random=np.random.default_rng(0))
    one = file.input(4, 4, 8)
    other = file.conv(one, 8, 3, 4) if broadcast else file.conv(one, 8, 3)
    one = file.conv(one, 8, 3) if inner else one
    result = file.add(one, other)
    names = (one, other, result)
    if kept:
        result = file.add(result, file.add(one, other))
    content = file.written(file.conv(result, 2, 3) if inner else result)
    model = flatfile.unpack(content)
    buffers = shared(model, activations(model)).buffers
    return [buffers[number] for number in names]


def test_what_is_not_overwritten() -> None:
    one, other, result = places(inner=True)
    assert result in (one, other)
    for case in ({}, {"inner": True, "kept": True}):
        assert len(set(places(**case))) == 3, case
    one, other, result = places(inner=True, broadcast=True)
    assert len({one, other, result}) == 3


def test_patches_are_not_needed_for_what_an_addition_saves() -> None:
    assert not tiled(residual(), 2.5 * MAP).patches
    assert tiled(residual(), 2.4 * MAP).patches
