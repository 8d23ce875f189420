"""Graph: edits keep its invariants, check() finds each one that is broken, and its printed form."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from lrfc.errors import GraphError
from lrfc.ir.graph import Graph
from lrfc.ir.op import Op, Ref, Slot, Tensor
from tests import helpers


def layer(name: str, kind: str = "ReLU", **attrs: object) -> Op:
    return Op(name, kind, attrs)


def dense(name: str, units: int, inputs: int, shared: str | None = None) -> Op:
    return Op(
        name,
        "Dense",
        {"units": units},
        {"kernel": np.ones((inputs, units), np.float32), "bias": np.zeros(units, np.float32)},
        shared,
    )


def source(*shape: int | None, name: str = "x") -> Op:
    return Op(name, "InputLayer", {"batch_shape": (None, *shape)})


@pytest.fixture
def graph() -> Graph:
    """x → a → b, and add(a, b)."""
    graph = Graph("small")
    x = graph.add(source(4))
    a = graph.add(dense("a", 3, 4), [x])
    b = graph.add(layer("b"), [a])
    graph.outputs = (graph.add(layer("sum", "Add"), [a, b]),)
    graph.check()
    return graph


# -- values ----------------------------------------------------------------------------------------


def test_tensor_as_text_and_its_size() -> None:
    assert str(Tensor((None, 3, 4))) == "(?, 3, 4)"
    assert str(Tensor((2, None), "int32")) == "(2, ?) int32"
    assert Tensor((None, 3, 4)).size == Tensor((7, 3, 4)).size == 12
    assert Tensor((None,)).size == 1
    with pytest.raises(GraphError, match="axis 1 of shape"):
        _ = Tensor((None, None, 3)).size


def test_ref_as_text() -> None:
    assert [str(Ref("a")), str(Ref("a", 1))] == ["a", "a:1"]


def test_an_op_cannot_be_changed() -> None:
    op = dense("a", 3, 4)
    with pytest.raises(FrozenInstanceError):
        op.name = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        op.attrs["units"] = 4  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        op.weights["kernel"][0, 0] = 2
    assert op.params == 15


def test_an_op_leaves_the_given_array_writeable() -> None:
    kernel = np.zeros((4, 3), np.float32)
    op = Op("a", "Dense", {"units": 3}, {"kernel": kernel})
    kernel[0, 0] = 1  # the array of the caller
    assert np.shares_memory(kernel, op.weights["kernel"])


def test_attributes_have_the_defaults_of_keras() -> None:
    op = layer("a", "Conv2D", filters=4, kernel_size=3)
    assert (op["filters"], op["padding"], op["groups"], op["activation"]) == (4, "valid", 1, None)
    assert op.with_attrs(padding="same")["padding"] == "same"
    assert op["padding"] == "valid"
    with pytest.raises(GraphError, match="kind 'Conv2D' has no attribute 'colour'"):
        _ = op["colour"]


# -- reading ---------------------------------------------------------------------------------------


def test_reading(graph) -> None:
    assert [op.name for op in graph] == ["x", "a", "b", "sum"]
    assert len(graph) == 4
    assert "a" in graph
    assert "c" not in graph
    assert graph.inputs == ("x",)
    assert graph.operands("sum") == (Ref("a"), Ref("b"))
    assert graph.consumers(Ref("a")) == (("b", 0), ("sum", 0))
    assert graph.tensor(Ref("sum")) == Tensor((None, 3))
    assert graph.input_tensors("sum") == (Tensor((None, 3)),) * 2
    assert graph.params == 15
    with pytest.raises(GraphError, match="no op 'c' in graph 'small'"):
        graph.op("c")


def test_one_operand_may_be_read_twice() -> None:
    graph = Graph()
    x = graph.add(source(4))
    graph.outputs = (graph.add(layer("double", "Add"), [x, x]),)
    graph.check()
    assert graph.operands("double") == (Ref("x"), Ref("x"))
    assert graph.consumers(Ref("x")) == (("double", 0), ("double", 1))


def test_operands_keep_their_ports_whatever_their_order() -> None:
    graph = Graph()
    x, y = graph.add(source(4, name="x")), graph.add(source(4, name="y"))
    graph.outputs = (graph.add(layer("difference", "Subtract"), [y, x]),)
    assert graph.operands("difference") == (y, x)
    batch = (np.full((1, 4), 5, np.float32), np.full((1, 4), 2, np.float32))
    from lrfc.ir.keras import io as keras_io

    assert keras_io.predict(graph, batch)[0].tolist() == [[-3] * 4]


def test_only_consumer(graph) -> None:
    found = graph.only_consumer("b")
    assert found is not None
    assert found.name == "sum"
    assert graph.only_consumer("a") is None  # two readers
    assert graph.only_consumer("sum") is None  # a model output
    graph.outputs = (*graph.outputs, Ref("b"))
    assert graph.only_consumer("b") is None  # read and a model output


def test_calls_of_a_shared_layer() -> None:
    graph = helpers.graph_of(helpers.shared_conv())
    calls = graph.calls(graph.op("conv"))
    assert [op.name for op in calls] == ["conv", "conv@1", "conv@2"]
    assert [op.name for op in graph.layers()] == ["left", "right", "conv", "add", "flat"]
    assert graph.calls(graph.op("add")) == (graph.op("add"),)
    assert graph.params == calls[0].params == 3 * 3 * 3 * 3 + 3


# -- editing ---------------------------------------------------------------------------------------


def test_add_before(graph) -> None:
    new = graph.add(layer("early", "Activation", activation="tanh"), [Ref("x")], before="a")
    assert [op.name for op in graph] == ["x", "early", "a", "b", "sum"]
    assert graph.tensor(new) == Tensor((None, 4))


def test_names_are_unique(graph) -> None:
    with pytest.raises(GraphError, match="op 'a' exists already"):
        graph.add(layer("a"), [Ref("x")])


def test_remove(graph) -> None:
    for read in ("a", "sum"):
        with pytest.raises(GraphError, match=f"op '{read}' is still read"):
            graph.remove(read)
    graph.substitute(Ref("sum"), Ref("b"))
    graph.remove("sum")
    graph.check()
    assert [op.name for op in graph] == ["x", "a", "b"]
    assert graph.outputs == (Ref("b"),)


def test_substitute_moves_every_reader(graph) -> None:
    new = graph.add(dense("other", 3, 4), [Ref("x")], before="b")
    graph.substitute(Ref("a"), new)
    graph.remove("a")
    graph.check()
    assert graph.operands("b") == (new,)
    assert graph.operands("sum") == (new, Ref("b"))


def test_substitute_of_one_output_leaves_the_others() -> None:
    import keras

    inputs = keras.Input((6,), name="x")
    left, right = keras.ops.split(inputs, 2, axis=-1)
    graph = helpers.graph_of(keras.Model(inputs, [left, right]))
    name = graph.outputs[0].op
    assert graph.outputs == (Ref(name, 0), Ref(name, 1))
    new = graph.add(layer("behind"), [Ref(name, 1)])
    graph.substitute(Ref(name, 0), new)
    graph.check()
    assert graph.outputs == (new, Ref(name, 1))


def test_splice_a_chain(graph) -> None:
    before = graph.copy()
    graph.splice("a", [dense("a__in", 2, 4), dense("a", 3, 2)])
    graph.check()
    assert [op.name for op in graph] == ["x", "a__in", "a", "b", "sum"]
    assert graph.operands("sum") == (Ref("a"), Ref("b"))
    assert [op.name for op in before] == ["x", "a", "b", "sum"]
    before.check()


def test_splice_nothing_removes_the_op(graph) -> None:
    graph.splice("b", [])
    graph.check()
    assert graph.operands("sum") == (Ref("a"), Ref("a"))


def test_splice_the_last_op(graph) -> None:
    graph.outputs = (Ref("b"),)
    graph.remove("sum")
    graph.splice("b", [layer("c", "Activation", activation="tanh"), layer("d")])
    graph.check()
    assert graph.outputs == (Ref("d"),)


def test_splice_refuses_another_shape(graph) -> None:
    with pytest.raises(
        GraphError, match=r"the chain for 'a' gives \(\?, 5\) in place of \(\?, 3\)"
    ):
        graph.splice("a", [dense("wide", 5, 4)])


def test_splice_refuses_several_operands(graph) -> None:
    with pytest.raises(GraphError, match="op 'sum' has 2 operands and 1 outputs"):
        graph.splice("sum", [])


def test_replace_updates_the_shapes_behind(graph) -> None:
    graph.replace(dense("a", 7, 4))
    graph.check()
    assert graph.tensor(Ref("sum")) == Tensor((None, 7))
    with pytest.raises(GraphError, match="no op 'c'"):
        graph.replace(dense("c", 7, 4))


def test_with_weights(graph) -> None:
    twos = {"bias": np.full(3, 2, np.float32), "kernel": np.full((4, 3), 2, np.float32)}
    twin = graph.with_weights({"a": twos})
    twin.check()
    assert list(twin.op("a").weights) == ["kernel", "bias"]
    assert twin.op("a").weights["bias"].tolist() == [2, 2, 2]
    assert graph.op("a").weights["bias"].tolist() == [0, 0, 0]
    for wrong in ({"kernel": twos["kernel"]}, {"kernel": twos["kernel"].T, "bias": twos["bias"]}):
        with pytest.raises(GraphError, match="new weights of op 'a' do not have the shapes"):
            graph.with_weights({"a": wrong})


def test_with_weights_reaches_every_call() -> None:
    graph = helpers.graph_of(helpers.shared_conv())
    op = graph.op("conv@1")
    twin = graph.with_weights({"conv@1": {name: w + 1 for name, w in op.weights.items()}})
    twin.check()
    assert twin.op("conv").weights["bias"] is twin.op("conv@2").weights["bias"]
    assert twin.op("conv").weights["bias"].tolist() == (op.weights["bias"] + 1).tolist()


def test_a_copy_is_independent(graph) -> None:
    twin = graph.copy()
    twin.replace(dense("a", 9, 4))
    assert graph.op("a")["units"] == 3
    assert twin.op("b") is graph.op("b")
    graph.check()


# -- checking --------------------------------------------------------------------------------------


def test_check_finds_a_wrong_order(graph) -> None:
    graph._order.reverse()
    with pytest.raises(GraphError, match="op 'sum' runs before its operand 'a'"):
        graph.check()


def test_check_finds_a_cycle(graph) -> None:
    graph._nx.remove_edge("x", "a", key=0)
    graph._connect(Ref("sum"), "a", 0)
    with pytest.raises(GraphError, match="op 'a' runs before its operand 'sum'"):
        graph.check()


def test_check_finds_a_missing_port(graph) -> None:
    graph._nx.remove_edge("a", "sum", key=0)
    with pytest.raises(GraphError, match=r"op 'sum' has operand ports \[1\]"):
        graph.check()


def test_check_finds_a_doubled_port(graph) -> None:
    graph._connect(Ref("x"), "sum", 1)
    with pytest.raises(GraphError, match=r"op 'sum' has operand ports \[0, 1, 1\]"):
        graph.check()


def test_check_finds_a_shape_that_is_not_the_ops(graph) -> None:
    graph._nx.nodes["a"]["op"] = dense("a", 7, 4)
    with pytest.raises(GraphError, match=r"op 'a' gives \(\?, 7\), its readers expect \(\?, 3\)"):
        graph.check()


def test_check_finds_an_edge_with_another_shape(graph) -> None:
    graph._nx.edges["a", "b", 0]["tensor"] = Tensor((None, 8))
    with pytest.raises(GraphError, match=r"the edge from 'a' to operand 0 of 'b' says \(\?, 8\)"):
        graph.check()


def test_check_finds_an_output_that_the_op_has_not(graph) -> None:
    graph._nx.edges["b", "sum", 1]["output"] = 2
    with pytest.raises(
        GraphError, match=r"the edge from 'b' to operand 1 of 'sum' .* which the op does not give"
    ):
        graph.check()


def test_check_finds_calls_with_different_weights() -> None:
    graph = Graph()
    x = graph.add(source(4))
    first = graph.add(dense("a", 4, 4, "a"), [x])
    graph.outputs = (graph.add(dense("a@1", 4, 4, "a"), [first]),)
    with pytest.raises(
        GraphError, match="ops 'a' and 'a@1' are calls of 'a' but hold different weights"
    ):
        graph.check()


def test_check_finds_an_op_outside_the_order(graph) -> None:
    graph._order.remove("sum")
    with pytest.raises(GraphError, match=r"ops without a place in the execution order: \['sum'\]"):
        graph.check()


def test_check_finds_missing_outputs(graph) -> None:
    graph.outputs = ()
    with pytest.raises(GraphError, match="has no outputs"):
        graph.check()
    for wrong in (Ref("nobody"), Ref("sum", 1)):
        graph.outputs = (wrong,)
        with pytest.raises(GraphError, match=f"the model output '{wrong}' does not exist"):
            graph.check()


# -- printing --------------------------------------------------------------------------------------


def test_printing() -> None:
    graph = Graph("printed")
    x = graph.add(source(8, 6, 3))
    kernel = np.zeros((3, 1, 3, 4), np.float32)
    x = graph.add(
        Op(
            "conv",
            "Conv2D",
            {
                "filters": 4,
                "kernel_size": (3, 1),
                "strides": (1, 1),
                "padding": "same",
                "use_bias": False,
            },
            {"kernel": kernel},
            "c",
        ),
        [x],
    )
    x = graph.add(Op("pool", "MaxPooling2D", {"pool_size": (2, 2)}), [x])
    graph.outputs = (graph.add(Op("cast", "ReLU", {"max_value": 6.0}), [x]), x)
    assert str(graph) == "\n".join(
        [
            "graph printed",
            "  x = InputLayer() -> (?, 8, 6, 3)",
            (
                "  conv = Conv2D(x) filters=4 kernel_size=3x1 padding=same use_bias=False shared=c"
                " -> (?, 8, 6, 4)"
            ),
            "  pool = MaxPooling2D(conv) -> (?, 4, 3, 4)",
            "  cast = ReLU(pool) max_value=6.0 -> (?, 4, 3, 4)",
            "  return cast, pool",
        ]
    )


def test_printing_of_several_outputs() -> None:
    import keras

    inputs = keras.Input((6,), name="x")
    left, right = keras.ops.split(inputs, 2, axis=-1)
    graph = helpers.graph_of(
        keras.Model(inputs, keras.layers.Subtract(name="minus")([right, left]), name="m")
    )
    (split,) = [op.name for op in graph if op.kind == "ops.Split"]
    assert f"{split} = ops.Split(x) -> (?, 3), (?, 3)" in str(graph)
    assert f"minus = Subtract({split}:1, {split})" in str(graph)


def test_a_call_is_written_with_slots() -> None:
    import keras

    inputs = keras.Input((6,), name="x")
    (op,) = [
        op
        for op in helpers.graph_of(keras.Model(inputs, keras.ops.subtract(1.0, inputs)))
        if op.kind != "InputLayer"
    ]
    assert op.call is not None
    assert op.call[0] == (1.0, Slot(0))
