"""The small networks of a calibration: reproducible, valid, and of every family of ops."""

from __future__ import annotations

from collections import Counter

from lrfc.costs import microbench
from lrfc.costs.features import work
from lrfc.costs.microbench import networks
from lrfc.costs.workload import workloads


def test_they_are_valid_and_within_the_limits() -> None:
    for graph in networks(25):
        graph.check()
        ops = [op for _, op in workloads(graph)]
        assert sum(op.macs for op in ops) <= microbench.LARGEST
        assert sum(op.params for op in ops) <= microbench.HEAVIEST


def test_the_same_seed_gives_the_same_and_a_longer_list_begins_alike() -> None:
    first = [str(graph) for graph in networks(12)]
    assert [str(graph) for graph in networks(20)][:12] == first
    assert [str(graph) for graph in networks(12, seed=1)] != first
    assert len(set(first)) == 12


def test_all_families_occur_often_enough_to_be_fitted() -> None:
    counts = Counter(work(op).family for graph in networks() for _, op in workloads(graph))
    assert {family for family, count in counts.items() if count >= 10} >= {
        "conv",
        "pointwise",
        "depthwise",
        "dense",
        "pool",
        "add",
        "other",
        "reduce",
    }


def test_ranks_are_any_number_of_channels() -> None:
    widths = {
        op.output[-1] for graph in networks() for _, op in workloads(graph) if op.kind == "conv"
    }
    assert {True, False} == {width % 4 == 0 for width in widths}
    assert min(widths) <= 4
    assert max(widths) >= 256
