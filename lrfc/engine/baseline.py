"""The drop of the original itself in the precision of a destination."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lrfc.config.build import Drop
from lrfc.config.formats import FORMATS
from lrfc.config.precision import PRECISIONS, listed
from lrfc.costs.totals import totals
from lrfc.data.counts import CALIBRATED
from lrfc.engine import original_file
from lrfc.engine.destinations import Destination
from lrfc.engine.reference_kernels import kernels
from lrfc.errors import ModelError
from lrfc.ir.fold import inference_form
from lrfc.ir.keras import io as keras_io
from lrfc.metrics.contract import Contract, held
from lrfc.metrics.metric import Metric
from lrfc.metrics.outcome import short
from lrfc.state import State
from lrfc.system.spans import span


@dataclass(frozen=True)
class Baseline:
    """The drop of the original's own file, and options that may lose less."""

    precision: str
    contract: Contract
    ways_out: tuple[str, ...]

    def __str__(self) -> str:
        allowed = self.contract.allowed
        limit = (
            ""
            if allowed is None
            else f" where {allowed.text(short(self.contract.unit))} is allowed"
        )
        return (
            f"the original itself loses {self.contract} in {self.precision}{limit}:"
            f" {listed(self.ways_out)} may keep more"
        )


@span("baseline of the original")
def baseline(
    metric: Metric,
    state: State,
    goal: Destination,
    folder: Path,
    allowed: Drop | None,
    *,
    qat: bool,
) -> Baseline:
    """Test the accuracy contract on the original's own file for a destination.

    ``folder``: where the file is written. ``qat``: whether the build trains with the rounding.

    On devices that round as LiteRT's reference kernels do, the drop by these kernels counts too, as
    in the contract of a build.
    """
    test, target = state.data.test, goal.target
    whole = inference_form(state.original)
    samples = state.data.train.head(CALIBRATED).inputs
    file = target.emit(whole, folder / f"original-alone{target.suffix}", samples)
    outputs = original_file.outputs(state, target, file)
    contract = held(metric, test, keras_io.outputs(state.original, test.inputs), outputs, allowed)
    # The reference kernels are slow: they run only where they may change the answer.
    if contract.met and goal.device.rounds_like_reference:
        try:
            rounded = kernels(file, metric, test, outputs, totals(whole)["macs"])
        except ModelError as error:
            state.progress.log(
                f"  LiteRT's reference kernels do not run the original's file: {error}"
            )
        else:
            contract = contract if rounded is None else contract.then(rounded.change)
    return Baseline(target.precision, contract, ways_out(goal, qat=qat))


def ways_out(goal: Destination, *, qat: bool) -> tuple[str, ...]:
    """Options of the device and format that round less, or train with the rounding."""
    form, precision = goal.target.name, goal.target.precision
    ways = ["--qat"] if precision in FORMATS[form].trained and not qat else []
    wider = [
        name
        for name in ("int16x8", "fp16")
        if PRECISIONS[name].activation > PRECISIONS[precision].activation
    ]
    if not PRECISIONS[precision].integer:
        wider = ["fp16"]
    supported = set(goal.device.precisions) & set(FORMATS[form].precisions)
    ways += [f"--precision {name}" for name in wider if name in supported]
    return (*ways, "a larger --max-drop")
