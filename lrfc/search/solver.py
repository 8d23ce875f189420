"""Mixed integer linear programmes with variables from 0 to 1, by HiGHS through SciPy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

from lrfc.system import silence


def solved(
    objective: NDArray[np.float64],
    integrality: NDArray[Any],
    constraints: Sequence[LinearConstraint],
    **options: float,
) -> OptimizeResult:
    """The result of ``scipy.optimize.milp``; lines that HiGHS prints unasked are dropped.

    ``integrality``: by variable, whether it is 0 or 1 only. ``options``: of ``milp``.
    """
    with (
        Path(os.devnull).open("w") as nowhere,
        silence.descriptors(nowhere.fileno()),
        silence.thread(lambda text: None),
    ):
        return milp(
            objective,
            integrality=integrality,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options=options,
        )
