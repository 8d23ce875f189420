"""Order and run passes: plan() checks their order beforehand, run() the graph after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from lrfc.errors import UsageError
from lrfc.protocols import Pass
from lrfc.state import Fact, State
from lrfc.system.spans import span


def name_of(step: Pass) -> str:
    """The pass's name: its class name."""
    return type(step).__name__


def plan(passes: Iterable[Pass], known: Iterable[type[Fact]] = ()) -> tuple[Pass, ...]:
    """Check that every pass finds the facts that it needs; ``known``: those at the start.

    Returns the passes. UsageError names the first pass without its facts.
    """
    facts = set(known)
    steps = tuple(passes)
    for step in steps:
        missing = [fact.__name__ for fact in step.needs if fact not in facts]
        if missing:
            givers = [
                name_of(other)
                for other in steps
                if any(fact.__name__ in missing for fact in other.gives)
            ]
            hint = (
                f"; {', '.join(givers)} gives it and must come before, with no rewrite between"
                if givers
                else "; no pass in this pipeline gives it"
            )
            raise UsageError(f"pass {name_of(step)} needs {', '.join(missing)}{hint}")
        if step.rewrites:
            facts = {fact for fact in facts if not fact.about_graph}
        facts |= set(step.gives)
    return steps


def run(
    state: State,
    passes: Sequence[Pass],
    after: Callable[[Pass, State], None] = lambda step, state: None,
) -> State:
    """Run planned passes. Each result is checked, logged in one line, and passed to ``after``."""
    for step in passes:
        start = time.perf_counter()
        before = state.graph
        with span(name_of(step)):
            state = step(state)
            state.graph.check()
        missing = [fact.__name__ for fact in step.gives if fact not in state.facts]
        assert not missing, f"pass {name_of(step)} promised {missing}"
        change = (
            ""
            if state.graph is before
            else (
                f", {len(before)} → {len(state.graph)} ops, {before.params:,} →"
                f" {state.graph.params:,} params"
            )
        )
        state.progress.log(f"{name_of(step)}: {time.perf_counter() - start:.1f} s{change}")
        after(step, state)
    return state
