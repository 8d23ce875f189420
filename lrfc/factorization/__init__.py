"""The factorization methods by their names on the command line, and the questions about them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lrfc.factorization.base import Cost, Factors, Method, Ranks, Statistics
from lrfc.factorization.choice import break_even, cost_of, eligible
from lrfc.factorization.cp import CP, CP4
from lrfc.factorization.separable import split_separable
from lrfc.factorization.spatial import SpatialSVD, SpatialSVDWidthFirst
from lrfc.factorization.support import support_matrix, support_table
from lrfc.factorization.svd import SVD, ChannelSVD, ChannelSVD1x1
from lrfc.factorization.train import TensorTrain
from lrfc.factorization.tt_matrix import TTMatrix
from lrfc.factorization.tucker import Tucker2
from lrfc.factorization.tucker_matrix import TuckerMatrix

_METHODS: tuple[Method, ...] = (
    ChannelSVD(),
    ChannelSVD1x1(),
    SpatialSVD(),
    SpatialSVDWidthFirst(),
    Tucker2(),
    CP(),
    CP4(),
    TensorTrain(),
    SVD(),
    TTMatrix(),
    TuckerMatrix(),
)

#: Every method, by name.
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _METHODS})

__all__ = [
    "METHODS",
    "Cost",
    "Factors",
    "Method",
    "Ranks",
    "Statistics",
    "break_even",
    "cost_of",
    "eligible",
    "split_separable",
    "support_matrix",
    "support_table",
]
