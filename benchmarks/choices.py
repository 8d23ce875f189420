"""Whether candidates and plans of one checkout are as good as those of another.

    LRFC_DATA=... python benchmarks/choices.py OLD NEW [--networks resnet20_cifar10 ...]

Both checkouts explore a network with the same training images, and select plans within eight
budgets. Two files are written to the folder of this file:

- ``choices_errors.csv``: the errors of the candidates that both have, by method: quantiles of the
  ratio of the new error to the old one, and how many are larger and smaller by more than 0.1 %. An
  exploration fits CP at some ranks and interpolates the error at the others, at other ranks in
  either checkout; in the rows 'cp, fitted' both fit it at every rank.
- ``choices_plans.csv``: the predicted divergence of the new plan as a multiple of the old one's,
  both looked up among the old candidates, and both among the new ones. Where the checkouts weigh
  the layers in different ways, either finds its own plan the better one, and only the accuracy
  tells which is (see selection.py). A rank that a checkout did not try takes the divergence between
  those of its neighbours, interpolated on logarithmic scales; ``beyond`` counts the layers whose
  rank is outside those that the old checkout tried, which take the new divergence.

Rows that the files already hold are not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from table import Table

HERE = Path(__file__).parent
BUDGETS = tuple(("max_macs", share) for share in (75, 60, 50, 40, 30)) + tuple(
    ("max_params", share) for share in (60, 45, 30)
)
Key = tuple[str, str | None, tuple[int, ...]]


def explore(network: str, out: Path, *, fitted: bool) -> None:
    """Write the candidates and the plans of the checkout on the path, as JSON.

    ``fitted``: the candidates of CP alone, with a fit at every rank.
    """
    from benchmarks import selection
    from lrfc.search import candidates as search

    if fitted:
        search.COSTLY = frozenset()
    methods = ("cp",) if fitted else selection.METHODS
    explored = selection.ExploreLayers(methods=methods)(selection.cifar(network))
    plans = []
    for quantity, share in () if fitted else BUDGETS:
        budget = {quantity: selection.Budget(value=share / 100, relative=True)}
        chosen = selection.SelectRanks(**budget)(explored).fact(selection.Selection).chosen
        plans.append([[c.layer, c.method, c.ranks, c.divergence] for c in chosen])
    candidates = [
        [c.layer, c.method, c.ranks, c.error, c.divergence]
        for space in explored.fact(selection.DesignSpace).spaces
        for c in space.candidates
    ]
    out.write_text(json.dumps({"candidates": candidates, "plans": plans}))


def explored(network: str, checkout: Path, *, fitted: bool = False) -> dict[str, Any]:
    """Return what ``explore`` writes in a process of the checkout, with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "choices.json")
        path = os.pathsep.join((str(checkout), str(checkout / "benchmarks")))
        subprocess.run(  # noqa: S603  our own command
            [
                *(sys.executable, __file__, "--explore", network, str(out)),
                *(["--fitted"] if fitted else []),
            ],
            env=os.environ | {"PYTHONPATH": path, "LRFC_CACHE": f"{folder}/cache"},
            check=True,
        )
        return json.loads(out.read_text())  # type: ignore[no-any-return]


def by_key(candidates: list[Any], value: int) -> dict[Key, float]:
    """Return one column of the candidates, by layer, method and ranks."""
    return {(row[0], row[1], tuple(row[2])): row[value] for row in candidates}


def compare_errors(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each method."""
    before, after = (by_key(each["candidates"], 3) for each in (old, new))
    rows = []
    for method in sorted({key[1] for key in before if key[1]}):
        mine = [key for key in before if key[1] == method]
        ratios = [after[key] / before[key] for key in mine if key in after and before[key] > 0]
        rows.append(
            {
                "method": method,
                "old_candidates": len(mine),
                "new_candidates": sum(key[1] == method for key in after),
                "both": len(ratios),
                **{f"ratio_{q}%": f"{np.percentile(ratios, q):.5f}" for q in (0, 5, 50, 95, 100)},
                "larger": sum(ratio > 1.001 for ratio in ratios),
                "smaller": sum(ratio < 0.999 for ratio in ratios),
            }
        )
    return rows


def looked_up(plan: list[Any], known: dict[Key, float]) -> tuple[float, int]:
    """Return the divergence of a plan by these candidates, and how many ranks are beyond them."""
    total, beyond = 0.0, 0
    for layer, method, ranks, own in plan:
        key = (layer, method, tuple(ranks))
        if key in known:
            total += known[key]
            continue
        tried = sorted(
            (r[0], known[layer, method, r])
            for at, way, r in known
            if (at, way) == (layer, method) and len(r) == len(ranks) == 1
        )
        if not tried or not tried[0][0] < ranks[0] < tried[-1][0]:
            total, beyond = total + own, beyond + 1
            continue
        x, y = (np.log(np.maximum(column, 1e-12)) for column in zip(*tried, strict=True))
        total += float(np.exp(np.interp(np.log(ranks[0]), x, y)))
    return total, beyond


def compare_plans(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each budget."""
    by_old, by_new = (by_key(each["candidates"], 4) for each in (old, new))
    rows = []
    for (quantity, share), before, after in zip(BUDGETS, old["plans"], new["plans"], strict=True):
        found, beyond = looked_up(after, by_old)
        rows.append(
            {
                "quantity": quantity.removeprefix("max_"),
                "share": share,
                "ratio_by_old": f"{found / looked_up(before, by_old)[0]:.4f}",
                "ratio_by_new": f"{looked_up(after, by_new)[0] / looked_up(before, by_new)[0]:.4f}",
                "beyond": beyond,
            }
        )
    return rows


def main() -> None:
    """Compare the checkouts on each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="OLD NEW")
    parser.add_argument("--networks", nargs="+", default=["resnet20_cifar10", "resnet56_cifar10"])
    parser.add_argument("--explore", nargs=2, metavar=("NETWORK", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--fitted", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.explore:
        explore(given.explore[0], Path(given.explore[1]), fitted=given.fitted)
        return
    if len(given.checkouts) != 2:
        parser.error("two checkouts are compared")
    errors, plans = (Table(HERE / f"choices_{name}.csv") for name in ("errors", "plans"))
    for network in given.networks:
        if plans.knows(network=network):
            continue
        fits = (explored(network, each.resolve(), fitted=True) for each in given.checkouts)
        for row in compare_errors(*fits):
            errors.add({"network": network, **row, "method": f"{row['method']}, fitted"})
        old, new = (explored(network, checkout.resolve()) for checkout in given.checkouts)
        for row in compare_errors(old, new):
            errors.add({"network": network, **row})
        for row in compare_plans(old, new):
            plans.add({"network": network, **row})


if __name__ == "__main__":
    main()
