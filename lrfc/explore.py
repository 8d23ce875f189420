"""The smallest network that keeps the accuracy: a search over the budget, each point judged by running it."""

from __future__ import annotations

import numpy as np

from lrfc.config import Budget
from lrfc.errors import BudgetError
from lrfc.ir import keras_io
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import scorer
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.select_ranks import DesignSpace, Selection, SelectRanks, reachable, totals
from lrfc.pipeline import plan, run
from lrfc.search.sensitivity import divergence
from lrfc.state import Progress, State

#: Without data nothing can be measured: the predicted divergence of the outputs (see lrfc.search.sensitivity) stays below this.
SAFE_DIVERGENCE = 0.01
#: Halvings of the interval between the smallest and the whole network.
STEPS = 6
#: Validation samples that a point is judged on.
JUDGED = 2_000


def fewest_macs(state: State, max_drop: float) -> Budget:
    """The smallest MAC budget, found by bisection, at which the drop of the validation score before fine-tuning is within ``max_drop``.

    The score is the accuracy, or without class labels minus the divergence from the original's outputs. On synthetic data the predicted
    divergence must stay below ``SAFE_DIVERGENCE`` instead. BudgetError when not even the largest candidate is within.
    """
    low, high = reachable(state)["macs"] / totals(state.original)["macs"], 1.0
    silent = State(state.graph, state.original, state.data, state.seed, Progress(), state.facts)
    step = state.progress.stage("budget", STEPS)
    judge = _judge(silent, max_drop)
    found = None
    for _ in range(STEPS):
        middle = Budget(value=(low + high) / 2, relative=True)
        good, verdict = judge(middle)
        state.progress.log(f"  {100 * middle.value:.1f}% of the MACs: {verdict}")
        found, low, high = (middle, low, middle.value) if good else (found, middle.value, high)
        step(1)
    if found is None:
        raise BudgetError(
            f"no factorization stays within --max-drop {100 * max_drop:.3g}pp; allow a larger drop, or give a budget such as --max-macs 80%"
        )
    return found


def best_methods(state: State, methods: tuple[str, ...], max_macs: Budget | None, max_params: Budget | None) -> tuple[str, ...]:
    """The methods whose plan keeps the network closest to the original when it is run: all of them mixed, or one convolution method throughout.

    The impact of a plan is predicted layer by layer; how the errors of many layers add up is not. So the best mixed plan and the best plan of each
    convolution method (with all that factorize fully connected layers) are rewritten, recalibrated and run on validation inputs, and the one with the
    least output divergence is taken. On synthetic data, where nothing can be recalibrated, the mixed plan is taken.
    """
    spaces = state.fact(DesignSpace).spaces
    dense = {m for s in spaces if s.op.kind in ("Dense", "EinsumDense") for m in s.factors}
    convolutions = [m for m in methods if any(m in s.factors for s in spaces if "Conv" in s.op.kind)]
    if state.data.synthetic or len(convolutions) < 2:
        return methods
    silent = State(state.graph, state.original, state.data, state.seed, Progress(), state.facts)
    inputs = tuple(x[:JUDGED] for x in state.data.validation.inputs)
    reference = keras_io.predict(state.original, inputs)
    step = state.progress.stage("plans", len(convolutions) + 1)
    found: dict[tuple[str, ...], float] = {}
    for choice in (methods, *(tuple(m for m in methods if m == one or m in dense) for one in convolutions)):
        try:
            chosen = run(silent, plan([SelectRanks(max_macs, max_params, choice)], known=(DesignSpace,)))
        except BudgetError as error:
            if choice == methods:
                raise
            state.progress.log(f"  {', '.join(choice)}: {error}")
            continue
        compressed = run(chosen, plan([Factorize(), RecalibrateBatchNorm(samples=1_000)], known=(Selection,)))
        found[choice] = divergence(reference, keras_io.predict(compressed.graph, inputs))
        state.progress.log(f"  {', '.join(choice)}: output divergence {found[choice]:.4f}")
        step(1)
    return min(found, key=lambda choice: found[choice])


class _judge:  # noqa: N801  a function with what it computes once
    def __init__(self, state: State, max_drop: float) -> None:
        self._state, self._max_drop = state, max_drop
        if not state.data.synthetic:
            teacher = keras_io.compiled(state.original)
            validation = state.data.validation
            few = validation.take(np.arange(min(len(validation), JUDGED)))
            self._score = scorer(state.original, teacher, few)
            self._whole = self._score(teacher)

    def __call__(self, budget: Budget) -> tuple[bool, str]:
        state = run(self._state, plan([SelectRanks(max_macs=budget)], known=(DesignSpace,)))
        if state.data.synthetic:
            impact = state.fact(Selection).impact
            return impact <= SAFE_DIVERGENCE, f"predicted divergence {impact:.4f} (at most {SAFE_DIVERGENCE})"
        state = run(state, plan([Factorize(), RecalibrateBatchNorm(samples=2_000)], known=(Selection,)))
        drop = self._whole - self._score(keras_io.compiled(state.graph))
        return drop <= self._max_drop, f"drop {100 * drop:.2f}pp before fine-tuning (at most {100 * self._max_drop:.3g}pp)"
