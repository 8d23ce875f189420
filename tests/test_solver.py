"""The solver of integer programmes."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest
from scipy.optimize import LinearConstraint

from lrfc.search import solver


def test_what_the_solver_prints_reaches_no_stream(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    milp = solver.milp

    def talkative(*given: Any, **options: Any) -> Any:
        os.write(1, b"tmpSolver.run();\n")
        os.write(2, b"tmpSolver.run();\n")
        return milp(*given, **options)

    monkeypatch.setattr(solver, "milp", talkative)
    at_most_one = LinearConstraint(np.ones((1, 2)), -np.inf, 1)
    found = solver.solved(np.array([-1.0, -2.0]), np.ones(2), [at_most_one], mip_rel_gap=0.0)
    sys.stdout.write("and the program goes on\n")
    assert found.x.tolist() == [0, 1]
    assert capfd.readouterr() == ("and the program goes on\n", "")
