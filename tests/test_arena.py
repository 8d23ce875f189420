"""The activation arena: lifetimes, shared buffers, and plans without overlap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrfc.costs.arena import Arena, arena
from lrfc.costs.overwriting import overwriting
from lrfc.costs.placement import Buffer, plan
from lrfc.errors import ModelError
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref
from tests import helpers


def dense(name: str, inputs: int, units: int, **attrs: object) -> Op:
    return Op(
        name,
        "Dense",
        {"units": units, **attrs},
        {"kernel": np.zeros((inputs, units)), "bias": np.zeros(units)},
    )


def chain(*ops: Op, features: int = 10) -> Graph:
    g = Graph("chain")
    ref = g.add(Op("x", "InputLayer", {"batch_shape": (None, features)}))
    for op in ops:
        ref = g.add(op, (ref,))
    g.outputs = (ref,)
    return g


def test_a_chain_by_hand() -> None:
    memory = arena(chain(dense("a", 10, 20), dense("b", 20, 5), dense("c", 5, 1)))
    assert dict(memory.timeline) == {"x": 40, "a": 120, "b": 100, "c": 24}
    assert (memory.peak_bytes, memory.at_op) == (120, "a")
    assert memory.planned_bytes(1) == 120
    assert (
        arena(chain(dense("a", 10, 21))).planned_bytes(16) == 96 + 40
    )  # the 84 bytes of a end at 84, the next multiple of 16 is 96


def test_int8_takes_a_quarter() -> None:
    g = chain(dense("a", 10, 20), dense("b", 20, 5))
    assert arena(g, 1).peak_bytes * 4 == arena(g, 4).peak_bytes


def test_a_skip_keeps_its_tensor_alive() -> None:
    g = Graph("skip")
    x = g.add(Op("x", "InputLayer", {"batch_shape": (None, 10)}))
    a = g.add(dense("a", 10, 10), (x,))
    b = g.add(dense("b", 10, 10), (a,))
    g.outputs = (g.add(Op("add", "Add"), (b, a)),)
    assert dict(arena(g).timeline) == {"x": 40, "a": 80, "b": 80, "add": 120}


def test_a_sum_lies_where_an_input_that_ends_with_it_was() -> None:
    g = Graph("skips")
    x = g.add(Op("x", "InputLayer", {"batch_shape": (None, 10)}))
    a = g.add(dense("a", 10, 10), (x,))
    b = g.add(dense("b", 10, 10), (a,))
    first = g.add(Op("first", "Add"), (b, a))  # over a, the one that is alive longer
    second = g.add(Op("second", "Add"), (g.add(Op("relu", "ReLU"), (first,)), first))
    third = g.add(Op("third", "Multiply"), (second, x))  # not over an input of the model
    g.outputs = (g.add(dense("c", 10, 1), (third,)),)
    memory = arena(g)
    before, after = dict(memory.timeline), overwriting(g, memory)
    assert {op: before[op] - size for op, size in after.timeline.items() if size != before[op]} == {
        "first": 40,
        "second": 40,
        "third": 40,
    }
    assert len(after.buffers) == len(memory.buffers) - 3
    assert alive(after) == after.peak_bytes == after.timeline[after.at_op]


def test_what_is_read_later_or_of_another_shape_is_not_written_over() -> None:
    g = Graph("kept")
    x = g.add(Op("x", "InputLayer", {"batch_shape": (None, 10)}))
    a = g.add(dense("a", 10, 10), (x,))
    b = g.add(dense("b", 10, 1), (a,))
    wide = g.add(Op("wide", "Add"), (b, a))  # b is broadcast, a read later
    both = g.add(Op("both", "Add"), (a, wide))
    g.outputs = (both,)  # and the output of the model has a place of its own
    memory = arena(g)
    assert overwriting(g, memory) == memory


def alive(memory: Arena) -> int:
    """The most bytes of buffers that are alive at one step."""
    steps = range(max(buffer.last for buffer in memory.buffers) + 1)
    return max(sum(b.size for b in memory.buffers if b.first <= s <= b.last) for s in steps)


def test_inputs_live_from_the_start_and_outputs_to_the_end() -> None:
    g = Graph("two")
    x = g.add(Op("x", "InputLayer", {"batch_shape": (None, 10)}))
    a = g.add(dense("a", 10, 3), (x,))
    late = g.add(Op("late", "InputLayer", {"batch_shape": (None, 7)}))
    b = g.add(dense("b", 7, 2), (late,))
    g.outputs = (a, b)
    assert dict(arena(g).timeline) == {"x": 68, "a": 80, "late": 40, "b": 48}


@pytest.mark.parametrize(
    ("op", "shares"),
    [
        (Op("y", "ReLU"), True),
        (Op("y", "ReLU", {"max_value": 6.0}), True),
        (Op("y", "ReLU", {"max_value": 3.0}), False),
        (Op("y", "ReLU", {"negative_slope": 0.1}), False),
        (Op("y", "Activation", {"activation": "relu"}), True),
        (Op("y", "Activation", {"activation": "linear"}), True),
        (Op("y", "Activation", {"activation": "sigmoid"}), False),
        (Op("y", "Dropout", {"rate": 0.5}), True),
        (Op("y", "Reshape", {"target_shape": (5, 4)}), True),
        (Op("y", "Softmax"), False),
        (
            Op(
                "y",
                "BatchNormalization",
                {},
                {k: np.ones(20) for k in ("gamma", "beta", "moving_mean", "moving_variance")},
            ),
            True,
        ),
    ],
    ids=str,
)
def test_ops_that_share_the_buffer_of_a_dense_layer(op: Op, shares: bool) -> None:
    memory = arena(chain(dense("a", 10, 20), op, dense("b", 20 if op.kind != "Reshape" else 4, 1)))
    assert memory.timeline["y"] == (80 if shares else 160)
    assert len(memory.buffers) == (3 if shares else 4)


def test_no_op_shares_a_buffer_that_another_op_reads() -> None:
    g = chain(dense("a", 10, 20), Op("y", "ReLU"))
    g.outputs = (*g.outputs, Ref("a"))
    assert arena(g).timeline["y"] == 160


def test_the_models_input_is_not_overwritten() -> None:
    assert arena(chain(Op("y", "ReLU"))).timeline["y"] == 80


def test_a_relu_after_another_activation_is_an_op_of_its_own() -> None:
    assert (
        arena(
            chain(dense("a", 10, 20, activation="tanh"), Op("y", "ReLU"), dense("b", 20, 1))
        ).timeline["y"]
        == 160
    )


def test_an_activation_argument_that_is_not_fused_costs_as_much_as_a_layer() -> None:
    argument = arena(chain(dense("a", 10, 20, activation="sigmoid"), dense("b", 20, 1)))
    layer = arena(
        chain(
            dense("a", 10, 20), Op("s", "Activation", {"activation": "sigmoid"}), dense("b", 20, 1)
        )
    )
    assert argument.peak_bytes == layer.peak_bytes == 160
    fused = arena(chain(dense("a", 10, 20, activation="relu"), dense("b", 20, 1)))
    assert fused.peak_bytes == 120


def test_integers_keep_their_size() -> None:
    import keras

    tokens = keras.Input((7,), dtype="int32", name="tokens")
    memory = arena(helpers.graph_of(keras.Model(tokens, keras.layers.Embedding(11, 4)(tokens))), 1)
    assert memory.peak_bytes == 7 * 4 + 7 * 4


def test_a_shape_that_is_not_fixed_is_refused() -> None:
    g = Graph("open")
    x = g.add(Op("x", "InputLayer", {"batch_shape": (None, None, 4)}))
    g.outputs = (g.add(dense("a", 4, 2), (x,)),)
    with pytest.raises(ModelError, match=r"layer 'x'.*fixed Input shape"):
        arena(g)


def test_a_small_buffer_takes_the_smallest_gap_that_holds_it() -> None:
    buffers = [
        Buffer("a", 50, 0, 1),
        Buffer("b", 40, 0, 9),
        Buffer("c", 30, 0, 2),
        Buffer("d", 20, 0, 9),
        Buffer("e", 10, 3, 9),
    ]
    offsets = plan(buffers, 1)
    assert [offsets[name] for name in "abcd"] == [0, 50, 90, 120]
    assert offsets["e"] == 90  # 30 bytes are free there, 50 at 0


def residual_blocks(blocks: int, size: int) -> list[Buffer]:
    """The activations of a ResNet: an input, and blocks of two layers and an addition."""
    buffers = [Buffer("input", size // 5, 0, 0), Buffer("stem", size, 0, 3)]
    for block in range(blocks):
        step = 1 + 3 * block
        buffers += [
            Buffer(f"first{block}", size, step, step + 1),
            Buffer(f"second{block}", size, step + 1, step + 2),
            Buffer(f"add{block}", size, step + 2, step + 5),
        ]
    return buffers


def height(buffers: list[Buffer], alignment: int = 16) -> int:
    offsets = plan(buffers, alignment)
    return max(offsets[buffer.name] + buffer.size for buffer in buffers)


@pytest.mark.parametrize("blocks", [1, 3, 9, 27])
def test_residual_blocks_take_three_tensors(blocks: int) -> None:
    """By size alone they take four."""
    assert height(residual_blocks(blocks, 16384)) == 3 * 16384


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_a_chain_takes_its_largest_pair(sizes: list[int]) -> None:
    chained = [Buffer(str(i), 16 * size, i, i + 1) for i, size in enumerate(sizes)]
    assert height(chained) == 16 * max(map(sum, zip(sizes, [*sizes[1:], 0], strict=True)))


def test_the_same_plan_every_time() -> None:
    sizes = np.random.default_rng(3).integers((1, 0, 0), (900, 30, 12), (60, 3)).tolist()
    hard = [Buffer(str(i), *row[:2], sum(row[1:])) for i, row in enumerate(sizes)]
    assert plan(hard) == plan(hard)


def test_models_of_helpers() -> None:
    for model in (
        helpers.residual(),
        helpers.two_inputs(),
        helpers.shared_conv(),
        helpers.nested_twice(),
    ):
        valid(arena(helpers.graph_of(model)), 16)


def valid(memory: Arena, alignment: int) -> None:
    offsets = plan(memory.buffers, alignment)
    assert all(offset % alignment == 0 for offset in offsets.values())
    for i, one in enumerate(memory.buffers):
        for other in memory.buffers[:i]:
            if one.meets(other):
                assert (
                    offsets[one.name] + one.size <= offsets[other.name]
                    or offsets[other.name] + other.size <= offsets[one.name]
                )
    steps = range(max(buffer.last for buffer in memory.buffers) + 1)
    assert (
        memory.peak_bytes
        == max(sum(b.size for b in memory.buffers if b.first <= step <= b.last) for step in steps)
        == max(memory.timeline.values())
    )
    assert memory.planned_bytes(alignment) >= memory.peak_bytes
    assert memory.timeline[memory.at_op] == memory.peak_bytes


@st.composite
def nets(draw: st.DrawFn) -> Graph:
    """Graphs of Dense, Add, Concatenate and activations of earlier tensors, with 1 to 3 outputs."""
    g = Graph("random")
    width = draw(st.integers(1, 30))
    refs = [g.add(Op("x", "InputLayer", {"batch_shape": (None, width)}))]
    for i in range(draw(st.integers(1, 12))):
        source = draw(st.sampled_from(refs))
        inputs = g.tensor(source).shape[-1] or 0
        alike = [ref for ref in refs if g.tensor(ref) == g.tensor(source)]
        kind = draw(st.sampled_from(("dense", "relu", "tanh", "drop", "add")))
        operands = (source, draw(st.sampled_from(alike))) if kind == "add" else (source,)
        activation = draw(st.sampled_from((None, "relu", "tanh")))
        op = {
            "dense": dense(f"o{i}", inputs, draw(st.integers(1, 30)), activation=activation),
            "relu": Op(f"o{i}", "ReLU"),
            "tanh": Op(f"o{i}", "Activation", {"activation": "tanh"}),
            "drop": Op(f"o{i}", "Dropout", {"rate": 0.5}),
            "add": Op(f"o{i}", "Add"),
        }[kind]
        refs.append(g.add(op, operands))
    g.outputs = tuple(
        draw(st.lists(st.sampled_from(refs[1:]), min_size=1, max_size=3, unique=True))
    )
    return g


@given(nets(), st.sampled_from((1, 16, 64)))
def test_no_two_live_buffers_overlap(g: Graph, alignment: int) -> None:
    valid(arena(g), alignment)


@given(
    st.lists(
        st.tuples(st.integers(1, 100), st.integers(0, 20), st.integers(0, 8)),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from((1, 16)),
)
def test_any_buffers_can_be_planned(sizes: list[tuple[int, int, int]], alignment: int) -> None:
    buffers = tuple(
        Buffer(f"b{i}", size, first, first + length)
        for i, (size, first, length) in enumerate(sizes)
    )
    alive = [sum(b.size for b in buffers if b.first <= step <= b.last) for step in range(30)]
    valid(
        Arena(
            max(alive),
            str(int(np.argmax(alive))),
            {str(step): size for step, size in enumerate(alive)},
            buffers,
        ),
        alignment,
    )
