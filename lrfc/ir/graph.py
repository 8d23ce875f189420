"""Graph of operations and the tensors between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np

from lrfc.errors import GraphError
from lrfc.ir import ops
from lrfc.ir.op import Array, Op, Ref, Tensor, _readonly


class Graph:
    """A directed acyclic multigraph of ops.

    It wraps a private ``networkx.MultiDiGraph``. The key of an edge is the operand's port, so that
    ``Add(x, x)`` has two edges. An edge carries the producer's output index and its tensor.
    Iteration follows the execution order, which is part of the graph and always topological.
    Passes work on a ``copy()``, which shares the read-only weights.
    """

    def __init__(self, name: str = "model") -> None:
        self.name = name
        self.outputs: tuple[Ref, ...] = ()
        #: Keras' nesting of the model's inputs and of its outputs, with a Slot for each tensor.
        #: None: a list, or the tensor itself when there is one.
        self.structure: tuple[Any, Any] = (None, None)
        #: Keras' configuration of the loss, "loss_weights" and "metrics" that the model was
        #: compiled with; None for a model that was not compiled.
        self.compiled: Mapping[str, Any] | None = None
        self._nx: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        self._order: list[str] = []

    # -- reading -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Op]:
        return (self.op(name) for name in tuple(self._order))

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: object) -> bool:
        return name in self._nx

    def op(self, name: str) -> Op:
        """The op with that name; GraphError when there is none."""
        if name not in self._nx:
            raise GraphError(f"no op '{name}' in graph '{self.name}'")
        op: Op = self._nx.nodes[name]["op"]
        return op

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the InputLayer ops, in the order of the model's inputs."""
        return tuple(op.name for op in self if op.kind == "InputLayer")

    def operands(self, name: str) -> tuple[Ref, ...]:
        """The outputs that the op reads, by port."""
        edges = sorted(self._nx.in_edges(name, keys=True, data="output"), key=lambda edge: edge[2])
        return tuple(Ref(source, output) for source, _, _, output in edges)

    def consumers(self, ref: Ref) -> tuple[tuple[str, int], ...]:
        """The readers of an output as (op, port), in execution order."""
        position = {name: i for i, name in enumerate(self._order)}
        readers = [
            (reader, port)
            for _, reader, port, output in self._nx.out_edges(ref.op, keys=True, data="output")
            if output == ref.output
        ]
        return tuple(sorted(readers, key=lambda reader: (position[reader[0]], reader[1])))

    def tensors(self, name: str) -> tuple[Tensor, ...]:
        """The op's output tensors."""
        self.op(name)
        tensors: tuple[Tensor, ...] = self._nx.nodes[name]["tensors"]
        return tensors

    def tensor(self, ref: Ref) -> Tensor:
        """Shape and dtype of one output."""
        return self.tensors(ref.op)[ref.output]

    def input_tensors(self, name: str) -> tuple[Tensor, ...]:
        """The tensors that the op reads, by port."""
        return tuple(self.tensor(ref) for ref in self.operands(name))

    def only_consumer(self, name: str) -> Op | None:
        """The op that is the only reader of this op's one output.

        None when there are several outputs or readers, or when the output is one of the model's.
        """
        readers = self.consumers(Ref(name))
        if (
            len(readers) != 1
            or len(self.tensors(name)) != 1
            or any(out.op == name for out in self.outputs)
        ):
            return None
        return self.op(readers[0][0])

    def calls(self, op: Op) -> tuple[Op, ...]:
        """All calls of the op's layer, this one included."""
        return (
            (op,)
            if op.shared is None
            else tuple(other for other in self if other.shared == op.shared)
        )

    @property
    def params(self) -> int:
        """Number of weight values; a shared layer counts once."""
        return sum(op.params for op in self.layers())

    def layers(self) -> tuple[Op, ...]:
        """The ops, with only the first call of each shared layer."""
        seen: set[str] = set()
        first = []
        for op in self:
            if op.shared is None or op.shared not in seen:
                first.append(op)
            if op.shared is not None:
                seen.add(op.shared)
        return tuple(first)

    def free_name(self, name: str) -> str:
        """The name, with a number behind it where an op has it already."""
        number, free = 0, name
        while free in self:
            number += 1
            free = f"{name}_{number}"
        return free

    # -- editing -----------------------------------------------------------------------------------

    def copy(self) -> Graph:
        """An independent graph over the same ops."""
        copy = Graph(self.name)
        copy.outputs, copy.structure, copy.compiled = self.outputs, self.structure, self.compiled
        copy._nx, copy._order = self._nx.copy(), list(self._order)
        return copy

    def with_outputs(self, refs: Iterable[Ref]) -> Graph:
        """A copy with these tensors, as a flat list, as its outputs."""
        copy = self.copy()
        copy.outputs, copy.structure = tuple(refs), (self.structure[0], None)
        return copy

    def add(self, op: Op, operands: Sequence[Ref] = (), *, before: str | None = None) -> Ref:
        """Add an op after all others, or just before another one; return its first output."""
        if op.name in self._nx:
            raise GraphError(f"op '{op.name}' exists already in graph '{self.name}'")
        tensors = ops.infer(op, tuple(self.tensor(ref) for ref in operands))
        self._nx.add_node(op.name, op=op, tensors=tensors)
        self._order.insert(
            len(self._order) if before is None else self._order.index(before), op.name
        )
        for port, ref in enumerate(operands):
            self._connect(ref, op.name, port)
        return Ref(op.name)

    def remove(self, name: str) -> None:
        """Remove an op without readers."""
        if self._nx.out_degree(name) or any(out.op == name for out in self.outputs):
            raise GraphError(f"op '{name}' is still read")
        self._nx.remove_node(name)
        self._order.remove(name)

    def substitute(self, old: Ref, new: Ref) -> None:
        """Replace ``old`` by ``new`` for every reader and in the model's outputs."""
        for reader, port in self.consumers(old):
            self._nx.remove_edge(old.op, reader, key=port)
            self._connect(new, reader, port)
        self.outputs = tuple(new if out == old else out for out in self.outputs)

    def splice(self, name: str, chain: Sequence[Op]) -> None:
        """Replace an op with one input by a chain of such ops, of which the last gives its outputs.

        An empty chain removes an op with one output.
        """
        operands, old = self.operands(name), self.tensors(name)
        if len(operands) != 1 or not (chain or len(old) == 1):
            raise GraphError(
                f"op '{name}' has {len(operands)} operands and {len(old)} outputs:"
                " only an op with one of each can be spliced"
            )
        last = operands[0]
        replaced = f"{name}\0"  # frees the name for the chain
        self.rename(name, replaced)
        for op in chain:
            last = self.add(op, (last,), before=replaced)
        if chain and self.tensors(last.op) != old:
            given, wanted = (", ".join(map(str, t)) for t in (self.tensors(last.op), old))
            raise GraphError(f"the chain for '{name}' gives {given} in place of {wanted}")
        for output in range(len(old)):
            new = Ref(last.op, output) if chain else last
            self.substitute(Ref(replaced, output), new)
        self.remove(replaced)

    def replace(self, op: Op) -> None:
        """Replace the op of the same name and infer all tensors."""
        self.op(op.name)
        self._nx.nodes[op.name]["op"] = op
        self.infer()

    def with_weights(self, weights: Mapping[str, Mapping[str, Array]]) -> Graph:
        """A copy with other weights, of the same shapes, in all calls of the named layers."""
        copy = self.copy()
        for name, arrays in weights.items():
            old = self.op(name)
            if _shapes(old.weights) != _shapes(arrays):
                raise GraphError(
                    f"the new weights of op '{name}' do not have the shapes of the old ones"
                )
            arrays = {key: _readonly(np.asarray(arrays[key])) for key in old.weights}
            for call in self.calls(old):
                copy._nx.nodes[call.name]["op"] = replace(call, weights=arrays)
        return copy

    def rename(self, old: str, new: str) -> None:
        """Give an op another name, for its readers and the model's outputs, too."""
        self.op(old)
        nx.relabel_nodes(self._nx, {old: new}, copy=False)
        self._nx.nodes[new]["op"] = replace(self._nx.nodes[new]["op"], name=new)
        self._order[self._order.index(old)] = new
        self.outputs = tuple(Ref(new, out.output) if out.op == old else out for out in self.outputs)

    def infer(self) -> None:
        """Infer every tensor again, in execution order."""
        for op in self:
            self._nx.nodes[op.name]["tensors"] = ops.infer(op, self.input_tensors(op.name))
            for _, _, edge in self._nx.out_edges(op.name, data=True):
                edge["tensor"] = self.tensor(Ref(op.name, edge["output"]))

    def _connect(self, ref: Ref, reader: str, port: int) -> None:
        self._nx.add_edge(ref.op, reader, key=port, output=ref.output, tensor=self.tensor(ref))

    # -- checking and printing ---------------------------------------------------------------------

    def check(self) -> None:
        """Raise GraphError for an inconsistent graph.

        The order must be topological, ports and outputs complete, tensors as inferred, and the
        calls of a shared layer must share their weights.
        """
        done: set[str] = set()
        shared: dict[str, Op] = {}
        for op in self:
            self._check_operands(op, done)
            done.add(op.name)
            self._check_tensors(op)
            if op.shared is not None:
                _check_shared(op, shared.setdefault(op.shared, op))
        if done != set(self._nx):
            raise GraphError(
                f"ops without a place in the execution order: {sorted(set(self._nx) - done)}"
            )
        if not self.outputs:
            raise GraphError(f"graph '{self.name}' has no outputs")
        for out in self.outputs:
            if out.op not in done or out.output >= len(self.tensors(out.op)):
                raise GraphError(f"the model output '{out}' does not exist")

    def _check_operands(self, op: Op, done: set[str]) -> None:
        """Raise GraphError for missing ports, and for an operand that is not among ``done``."""
        ports = sorted(port for _, _, port in self._nx.in_edges(op.name, keys=True))
        if ports != list(range(len(ports))):
            raise GraphError(f"op '{op.name}' has operand ports {ports}")
        for ref in self.operands(op.name):
            if ref.op not in done:
                raise GraphError(f"op '{op.name}' runs before its operand '{ref}'")

    def _check_tensors(self, op: Op) -> None:
        """Raise GraphError when the op's tensors, or those on its edges, are not as inferred."""
        tensors = ops.infer(op, self.input_tensors(op.name))
        if tensors != self.tensors(op.name):
            raise GraphError(
                f"op '{op.name}' gives {tensors[0]}, its readers expect {self.tensors(op.name)[0]}"
            )
        for _, reader, port, edge in self._nx.out_edges(op.name, keys=True, data=True):
            if edge["output"] >= len(tensors) or edge["tensor"] != tensors[edge["output"]]:
                raise GraphError(
                    f"the edge from '{op.name}' to operand {port} of '{reader}' says"
                    f" {edge['tensor']}, which the op does not give"
                )

    def __str__(self) -> str:
        lines = [f"graph {self.name}"]
        for op in self:
            operands = ", ".join(str(ref) for ref in self.operands(op.name))
            attrs = "".join(f" {key}={_short(op[key])}" for key in ops.shown(op))
            shared = f" shared={op.shared}" if op.shared is not None else ""
            lines.append(
                f"  {op.name} = {op.kind}({operands}){attrs}{shared} ->"
                f" {', '.join(map(str, self.tensors(op.name)))}"
            )
        lines.append(f"  return {', '.join(map(str, self.outputs))}")
        return "\n".join(lines)


def _check_shared(op: Op, first: Op) -> None:
    """Raise GraphError when two calls of a layer do not hold the very same weights."""
    if first.kind != op.kind or any(
        first.weights[name] is not op.weights.get(name) for name in first.weights
    ):
        raise GraphError(
            f"ops '{first.name}' and '{op.name}' are calls of '{op.shared}' but hold different"
            " weights"
        )


def _shapes(weights: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in weights.items()}


def _short(value: Any) -> str:
    if isinstance(value, tuple | list):
        flat = [_short(v) for v in value]
        return flat[0] if flat and len(set(flat)) == 1 else "x".join(flat)
    return str(value)
