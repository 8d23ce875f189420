"""Regions of .tflite files in strips of rows: the same outputs, less memory."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrfc.config.build import parse
from lrfc.engine.destinations import destination
from lrfc.engine.patches import Limit, limit
from lrfc.engine.preflight import Goal
from lrfc.protocols import Artifact
from lrfc.targets.devices import device as devices
from lrfc.targets.tflite import flatfile
from lrfc.targets.tflite.activations import activations, live_peak
from lrfc.targets.tflite.memory_plan import with_plan
from lrfc.targets.tflite.patches import tiled
from lrfc.targets.tflite.regions import places
from lrfc.targets.tflite.rows import Padded, Rows, Window
from lrfc.targets.tflite.stitching import stitched
from lrfc.targets.tflite.strips import programme
from lrfc.targets.tflite.tails import file_tail
from lrfc.targets.tflite.target import TFLite
from lrfc.targets.tflite.tileable import network
from tests import helpers
from tests.tflite_files import File, by_micro, by_reference, samples

MICRO = importlib.util.find_spec("tflite_micro") is not None
WITHOUT_MICRO = "tflite-micro is not installed: pip install 'lrfc[micro]'"


def block(kernel: int, stride: int, height: int, *, same: bool = True) -> bytes:
    """A file with a convolution, a residual block, poolings and paddings."""
    file = File(random=np.random.default_rng(kernel * 100 + stride * 10 + height))
    x = file.conv(file.input(height, 7, 2), 4, kernel, stride, same=same)
    inner = file.conv(file.logistic(x), 6, 3)
    inner = file.conv(inner, 4, kernel, same=True)
    x = file.add(x, inner)
    x = file.conv(x, 4, kernel, depthwise=True)
    x = file.pool(x, 3, 2, same=same, kind="AVERAGE")
    x = file.pad(x, 1, 2, 1)
    x = file.pool(x, 2, 1, kind="MAX")
    x = file.conv(x, 3, 2, stride, same=same, depthwise=False)
    return file.written(x)


def in_strips(content: bytes) -> Iterator[tuple[Any, int]]:
    """The file's model with each of its regions in 2 to 4 strips, and the peak computed for it."""
    model = flatfile.unpack(content)
    found, net = activations(model), network(model)
    timeline = list(found.arena.timeline.values())
    ways = cycle((strips, tight) for strips in (2, 3, 4) for tight in (False, True))
    for place, (strips, tight) in zip(places(net, found), ways, strict=False):
        region = place.region
        made = programme(net, region, min(strips, net.rows(region.output)), tight=tight)
        changed = stitched(model, net, [made])
        others = timeline[: region.first] + timeline[region.end :]
        yield changed, max([made.peak(net, place.beside, place.kept), *others])


@pytest.mark.parametrize("height", [18, 21])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_every_region_computes_the_same_bit_by_bit(kernel: int, stride: int, height: int) -> None:
    content = block(kernel, stride, height)
    inputs = samples(content)
    expected = by_reference(content, inputs)
    assert len(np.unique(expected)) > 20  # outputs that saturate would show nothing
    count = 0
    for changed, peak in in_strips(content):
        np.testing.assert_array_equal(by_reference(flatfile.pack(changed), inputs), expected)
        assert activations(changed).arena.peak_bytes == peak
        count += 1
    assert count >= 40


@pytest.mark.skipif(not MICRO, reason=WITHOUT_MICRO)
@pytest.mark.parametrize(("kernel", "stride", "height"), [(1, 2, 21), (3, 1, 18), (5, 2, 18)])
def test_every_region_computes_the_same_by_tflm(kernel: int, stride: int, height: int) -> None:
    content = block(kernel, stride, height)
    inputs = samples(content)
    expected = by_micro(content, inputs)
    for changed, _ in in_strips(content):
        np.testing.assert_array_equal(by_micro(flatfile.pack(changed), inputs), expected)


def test_windows_without_padding() -> None:
    content = block(3, 2, 47, same=False)
    inputs = samples(content)
    expected = by_reference(content, inputs)
    for changed, _ in in_strips(content):
        np.testing.assert_array_equal(by_reference(flatfile.pack(changed), inputs), expected)


def wide() -> bytes:
    """A file whose peak is in two layers with many channels, and whose output is small."""
    file = File(random=np.random.default_rng(0))
    x = file.conv(file.input(32, 32, 3), 16, 3)
    x = file.conv(x, 16, 3)
    return file.written(file.conv(x, 8, 3, 4))


def test_a_limit_is_met_with_the_same_outputs() -> None:
    content = wide()
    inputs = samples(content)
    result = tiled(content, 0.6 * live_peak(content))
    before, after = result.peak
    assert before == live_peak(content)
    assert after == live_peak(result.content) <= 0.6 * before
    assert result.patches
    assert result.macs[0] < result.macs[1] < 1.5 * result.macs[0]
    expected = by_reference(content, inputs)
    np.testing.assert_array_equal(by_reference(result.content, inputs), expected)


@pytest.mark.skipif(not MICRO, reason=WITHOUT_MICRO)
def test_tflm_takes_the_memory_that_was_computed(capfd: pytest.CaptureFixture[str]) -> None:
    from tflite_micro.python.tflite_micro import runtime

    result = tiled(wide(), 20_000)
    file = with_plan(result.content)
    runtime.Interpreter.from_bytes(file, arena_size=1 << 20).print_allocations()
    said = "".join(capfd.readouterr())
    head, tail = (re.search(rf"Arena allocation {end} (\d+)", said) for end in ("head", "tail"))
    assert head is not None
    assert int(head[1]) == live_peak(file) <= result.peak[1]
    assert tail is not None
    assert abs(int(tail[1]) - result.tail[1]) <= 0.01 * result.tail[1]


def test_a_file_within_the_limit_stays_as_it_is() -> None:
    content = wide()
    result = tiled(content, live_peak(content))
    assert (result.content, result.patches) == (content, ())
    assert result.peak == (live_peak(content),) * 2
    assert result.macs[0] == result.macs[1] > 0


def test_a_limit_out_of_reach_gives_the_least_peak() -> None:
    content = wide()
    least = tiled(content, 1)
    assert 1 < least.peak[1] < 0.6 * least.peak[0]
    assert live_peak(least.content) == least.peak[1]
    # A limit that is just met is not beaten, but met with fewer MACs or as many.
    again = tiled(content, least.peak[1])
    assert again.peak[1] <= least.peak[1]
    assert again.macs[1] <= least.macs[1]


def test_fewer_bytes_take_more_macs() -> None:
    content = wide()
    macs = [tiled(content, share * live_peak(content)).macs[1] for share in (1, 0.8, 0.6, 0.45)]
    assert macs == sorted(macs)
    assert macs[0] < macs[-1]


def test_a_limit_on_peak_and_tail() -> None:
    content = wide()
    given = tiled(content, 10**9, with_tail=True)
    assert given.content == content
    whole = given.peak[0] + given.tail[0]
    result = tiled(content, 0.8 * whole, with_tail=True)
    assert result.peak[1] + result.tail[1] <= 0.8 * whole
    assert result.tail[1] > result.tail[0]
    least = tiled(content, 1, with_tail=True)
    assert least.peak[1] + least.tail[1] <= result.peak[1] + result.tail[1]
    # The least peak alone has more strips, and a longer tail.
    assert least.tail[1] <= tiled(content, 1).tail[1]


def test_unused_tensors_are_not_left_in_the_file() -> None:
    model = flatfile.unpack(tiled(wide(), 20_000).content)
    graph = model.subgraphs[0]
    used = set(flatfile.numbers(graph.inputs))
    for op in graph.operators:
        used |= {*flatfile.numbers(op.inputs), *flatfile.numbers(op.outputs)}
    # TensorFlow Lite Micro keeps memory for every tensor that is no constant.
    assert used == set(range(len(graph.tensors)))


@pytest.mark.parametrize("window", [Window(17, 3, 2, True), Window(16, 3, 2, True),
                                    Window(16, 5, 1, True), Window(9, 1, 2, True),
                                    Window(20, 4, 3, False)])  # fmt: skip
def test_rows_that_a_window_needs_are_enough_and_few(window: Window) -> None:
    outputs = window.computed(Rows(0, window.height))
    assert outputs is not None
    for first in range(outputs.end):
        for end in range(first + 1, outputs.end + 1):
            needed = window.needed(Rows(first, end))
            assert window.right(needed, needed).holds(Rows(first, end))
            assert needed.height <= (end - first - 1) * window.stride + window.size + 2 * (
                window.stride
            )


def test_rows_of_padding() -> None:
    padded = Padded(10, top=2, bottom=3)
    assert padded.needed(Rows(0, 2)) == Rows(0, 1)  # nothing but padding still needs a row
    assert padded.needed(Rows(1, 7)) == Rows(0, 5)
    assert padded.computed(Rows(0, 5)) == Rows(0, 7)
    assert padded.computed(Rows(4, 10)) == Rows(6, 15)
    assert padded.padding(Rows(4, 10)) == (0, 3)


def test_an_emitted_file_is_within_the_limit(tmp_path: Path) -> None:
    graph = helpers.graph_of(helpers.residual(size=24, filters=8))
    inputs = helpers.random_inputs(graph, 8)
    target = TFLite("int8").with_plan()
    whole = target.emit(graph, tmp_path / "whole.tflite", inputs)
    before = target.need_bytes(whole.path)
    assert before is not None
    limited = target.within(0.9 * before)
    tiled_file = limited.emit(graph, tmp_path / "patched.tflite", inputs)
    after = target.need_bytes(tiled_file.path)
    assert after is not None
    assert after <= 0.9 * before
    assert not whole.patches
    assert tiled_file.patches
    assert tiled_file.added_macs > 0
    assert sum(w.macs for w in target.operators(tiled_file.path).workloads) == (
        tiled_file.added_macs + sum(w.macs for w in target.operators(whole.path).workloads)
    )
    for one, other in zip(
        target.reference(whole)(inputs), target.reference(tiled_file)(inputs), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def limit_of(original: Path, name: str, precision: str = "int8", **options: str) -> Limit | None:
    """The limit on the files for a device."""
    goal = destination(Goal("tflite", precision, devices.load(name), 1, name))
    return limit(goal, parse(**options), original)


def test_limits_hold_on_microcontrollers(tmp_path: Path) -> None:
    original = tmp_path / "original.tflite"
    original.write_bytes(wide())
    need = live_peak(wide()) + file_tail(flatfile.unpack(wide()))
    ram = devices.load("cortex-m4").ram_bytes
    for options, expected in {
        ("50%", "auto"): (need / 2, True, True),
        ("20KiB", "auto"): (20 * 1024, True, True),
        ("50%", "off"): (need / 2, True, False),
        (None, "auto"): (need, False, True),  # by default that of the original
        ("none", "auto"): (ram, True, True),
    }.items():
        found = limit_of(original, "cortex-m4", max_ram=options[0], patches=options[1])
        assert found is not None
        assert (found.bytes, found.asked, found.patches) == expected, options
        assert isinstance(found.target, TFLite)
        assert found.target.limit_bytes == (expected[0] if found.patches else None)
    in_float = limit_of(original, "cortex-m4", "fp32", max_ram="50%")
    assert in_float is not None
    assert not in_float.patches
    assert limit_of(original, "host", max_ram="50%") is None
    assert limit_of(original, "ethos-u55-128", max_ram="50%") is None


@pytest.mark.parametrize(("share", "asked"), [(0.9, True), (0.9, False), (0.1, True), (0.1, False)])
def test_a_default_out_of_reach_leaves_the_file_as_it_is(
    share: float, asked: bool, tmp_path: Path
) -> None:
    plain = TFLite("int8").with_plan()
    path = tmp_path / "file.tflite"
    path.write_bytes(wide())
    whole = plain.need_bytes(path)
    assert whole is not None
    held = Limit(plain.within(share * whole), share * whole, asked, patches=True)

    def emit(target: TFLite) -> Artifact:
        return target._written(path, wide())

    file = held.emitted(plain, emit)
    assert held.met(file) == (share == 0.9)
    assert bool(file.patches) == (share == 0.9 or asked)
