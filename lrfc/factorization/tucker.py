"""Tucker-2: a reduction of both channel axes, with two ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrfc.factorization.base import Ranks
from lrfc.factorization.chain import Chain
from lrfc.factorization.covariance_als import fit_tucker, tucker_sweeps
from lrfc.factorization.layout import Layout, Split
from lrfc.factorization.linalg import Array, LowRank
from lrfc.factorization.unfold import Unfolding


@dataclass(frozen=True)
class Tucker2(Chain):
    """1×1 S→R_in, k×k R_in→R_out with all strides, 1×1 R_out→T.

    Kim et al., arXiv 1511.06530. S·R_in weights at the input positions and R_in·R_out·k² +
    R_out·T at the output positions.

    The form is a tensor train over (S, k², T), so that truncation from the left is a sequentially
    truncated HOSVD (Vannieuwenhoven et al., SIAM J. Sci. Comput. 34(2), 2012), whose output side is
    the optimum for the chosen input side. Alternating least squares then improve both sides at each
    pair of ranks, under the covariance of the inputs where it is known. On ResNet-20's layers that
    lowers the error by 1 to 3 %.
    """

    name: str = "tucker2"

    def split(self, layout: Layout) -> Split:
        """1×1, kernel, 1×1."""
        return ((), layout.wide, ())

    def limits(self, layout: Layout) -> str | None:
        """Convolutions with a kernel and channels on both sides."""
        if not layout.kernel:
            return "a matrix product has no kernel: use svd or tucker_matrix"
        if not layout.wide:
            return "with a 1×1 kernel it is channel_svd"
        if min(layout.inputs, layout.outputs) == 1:
            return "a group has one channel on one side: there is nothing to reduce there"
        return None

    def improved(
        self, unfoldings: Sequence[Unfolding], cores: list[Array], ranks: Ranks
    ) -> list[Array]:
        """Cores by alternating least squares.

        The data-free cores are among the starts, so that statistics never increase the error.
        """
        unfolding = unfoldings[0]
        plains = [other.plain for other in unfoldings if other.plain is not None]
        targets, gram = unfolding.target[:, :, 0, :, 0], unfolding.gram
        assert not isinstance(gram, LowRank)  # those are for layers without a kernel
        _, size, _, outputs = targets.shape
        # With a whole input side, or a whole output side without data, nested cores are optimal.
        whole = ranks[0] == size or (gram is None and ranks[1] == outputs)
        if whole or not unfolding.supports(ranks):
            return cores
        if not plains and not tucker_sweeps(targets[0].shape, ranks, weighted=gram is not None):
            return cores
        nested = [plain.cores(ranks)[0] for plain in plains]
        groups = []
        for group, target in enumerate(targets):
            starts = [cores[0][group, :, 0]]
            starts += [
                fit_tucker(target, None, plain.cross[group], [core[group, :, 0]], ranks[1])[0]
                for plain, core in zip(plains, nested, strict=True)
            ]
            moment = None if gram is None else gram[group]
            groups.append(fit_tucker(target, moment, unfolding.cross[group], starts, ranks[1]))
        factor, core, basis = (np.stack(factors) for factors in zip(*groups, strict=True))
        return [factor[:, :, None], core, basis[:, :, None]]
