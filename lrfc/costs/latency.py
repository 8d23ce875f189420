"""How long ops and networks take on a device: a profile of readable numbers, fitted to measurements and corrected by further ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import platformdirs
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrfc.costs.features import table, terms, work
from lrfc.costs.workload import Workload
from lrfc.errors import UsageError
from lrfc.system import files, reader

#: Which family stands for one that was not measured.
_LIKE = {
    "conv": "pointwise",
    "pointwise": "conv",
    "grouped": "conv",
    "transposed": "conv",
    "dense": "pointwise",
    "depthwise": "conv",
    "reduce": "pool",
    "pool": "add",
    "add": "other",
    "other": "add",
}
#: What is known of a measured total and of the factors that ``corrected`` looks for, as standard
#: deviations of their logarithms.
_NOISE, _COMMON, _OWN = 0.005, 0.5, 0.15

#: (alignment, block); see CostProfile.
Layout = tuple[int, int]
_Positive = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
#: Channels and positions that a kernel works on at once.
_Tile = Annotated[int, Field(ge=1, le=1 << 20)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeldOut(_Part):
    """Relative error on samples that the fit had not seen: their number, mean and 90th percentile."""

    n: int
    mean: float
    p90: float


class Family(_Part):
    """What ops of one family cost.

    ``tile``: of their kernels (rows, columns, depth). ``costs``: of one of each term of
    ``lrfc.costs.features.terms``. ``factor``: by which later measurements correct them.
    """

    tile: tuple[_Tile, _Tile, _Tile]
    costs: Mapping[str, _Positive]
    factor: Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)] = 1.0


class CostProfile(_Part):
    """What a device takes for an op, in one format and precision with so many threads.

    ``unit``: of all times. ``overhead``: of an inference, beside its ops. ``layout``: where a
    runtime stores channels in blocks, the alignment that its blocked kernels need and the channels
    of a block, (1, 1) elsewhere (onnxruntime: 4, and 8 or 16). ``machine``, ``runtime``,
    ``runtime_version``: what it was fitted on. ``held_out``: error by family, and of 'networks'.
    ``estimated``: computed from public figures, ``source``, and not measured.
    """

    device: str
    format: str
    precision: str
    threads: Annotated[int, Field(ge=1)] = 1
    unit: Literal["ms", "cycles"] = "ms"
    estimated: bool = False
    source: str | None = None
    machine: str = ""
    runtime: str = ""
    runtime_version: str = ""
    overhead: _Positive = 0.0
    layout: tuple[_Tile, _Tile] = (1, 1)
    families: Mapping[str, Family]
    held_out: Mapping[str, HeldOut] = {}

    def op(self, workload: Workload) -> float:
        """The time of one op."""
        return float(self.ops([workload])[0])

    def ops(self, workloads: Sequence[Workload]) -> NDArray[np.float64]:
        """The time of each op."""
        times = np.zeros(len(workloads))
        for family, places in self.grouped(workloads).items():
            numbers = table(work(workloads[i]) for i in places)
            model = self.families[family]
            values = terms(
                family.partition(".")[0], numbers, model.tile, by_row=self.layout != (1, 1)
            )
            if unknown := sorted(set(model.costs) - set(values)):
                name = (
                    f"the cost profile of device '{self.device}' counts"
                    f" '{reader.shown(unknown[0])}' in {family}, which is nothing of an op"
                )
                raise UsageError(f"{name}; calibrate it: lrfc devices calibrate {self.device}")
            times[places] = model.factor * sum(
                cost * values[name] for name, cost in model.costs.items()
            )
        return times

    def predict(
        self, workloads: Iterable[Workload], known: Mapping[Workload, float] | None = None
    ) -> float:
        """The time of a whole network. ``known``: measured times of ops, taken as they are."""
        found, rest = [], []
        for each in workloads:
            if known is not None and each in known:
                found.append(known[each])
            else:
                rest.append(each)
        return float(self.overhead + sum(found) + self.ops(rest).sum())

    def grouped(self, workloads: Sequence[Workload]) -> dict[str, list[int]]:
        """The places of the ops of each family, by the family of this profile that stands for theirs.

        UsageError when there is none.
        """
        places: dict[str, list[int]] = {}
        for i, workload in enumerate(workloads):
            places.setdefault(family_of(workload, self.layout), []).append(i)
        found: dict[str, list[int]] = {}
        for family, own in places.items():
            found.setdefault(self._standing(family, workloads[own[0]]), []).extend(own)
        return found

    def _standing(self, family: str, example: Workload) -> str:
        tried = []
        while family not in self.families:
            tried.append(family)
            own, dot, _ = family.partition(".")
            family = own if dot else _LIKE[own]
            if family in tried:
                raise UsageError(
                    f"the cost profile of device '{self.device}' has no op like '{example}';"
                    f" calibrate it: lrfc devices calibrate {self.device}"
                )
        return family


class CostFile(_Part):
    """A file NAME.cost.json: the profiles of one device."""

    schema_version: Literal[1] = 1
    profiles: tuple[CostProfile, ...]

    def with_profile(self, profile: CostProfile) -> CostFile:
        """This file with the profile in the place of the one for the same format, precision and threads."""
        others = [each for each in self.profiles if _key(each) != _key(profile)]
        return CostFile(profiles=tuple(sorted([*others, profile], key=_key)))

    def write(self, path: Path) -> None:
        """Write the file, readable, whole or not at all."""
        text = json.dumps(_rounded(self.model_dump()), indent=1) + "\n"
        files.write(path, text, parents=True, way_out=files.CONFIG)


def _key(profile: CostProfile) -> tuple[str, str, int]:
    return profile.format, profile.precision, profile.threads


def _rounded(value: Any) -> Any:
    """Numbers to five digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def family_of(workload: Workload, layout: Layout = (1, 1)) -> str:
    """The op's family: that of ``work``, and behind it which kernels run it where a runtime stores channels in blocks (see CostProfile).

    '.small' is a convolution of fewer input channels than a block, '.odd' an op whose channels are
    no multiple of the alignment.
    """
    alignment, block = layout
    found = work(workload)
    if alignment == 1:
        return found.family
    depth = (
        found.depth
        if found.family in ("conv", "pointwise")
        else found.groups
        if found.family == "depthwise"
        else found.columns
    )
    if found.family in ("conv", "pointwise") and depth < block:
        return f"{found.family}.small"
    return (
        f"{found.family}.odd"
        if found.family in ("conv", "pointwise", "depthwise", "pool") and depth % alignment
        else found.family
    )


def user_file(device: str) -> Path:
    """Where the user's own cost profiles of a device lie."""
    return (
        Path(platformdirs.user_config_dir("lrfc", appauthor=False))
        / "devices"
        / f"{device}.cost.json"
    )


def read(path: Path) -> CostFile:
    """The profiles in a file. UsageError when it is damaged."""
    where = str(path)
    try:
        return CostFile.model_validate(
            reader.plain(reader.json_object(reader.contents(path), where))
        )
    except ValidationError as error:
        raise UsageError(
            f"{where} is no file of cost profiles: {reader.refused(error)}; calibrate the device"
            " again or delete the file"
        ) from error


def load(device: str, format: str, precision: str, threads: int) -> CostProfile | None:  # noqa: A002 - the word of Artifact and Device
    """The profile of a device, the user's own before the one that ships; None when there is none for this format, precision and number of threads."""
    shipped = (
        Path(str(resources.files("lrfc")))
        / "targets"
        / "devices"
        / "profiles"
        / f"{device}.cost.json"
    )
    for path in (user_file(device), shipped):
        if reader.kind(path) is not None:
            for profile in read(path).profiles:
                if _key(profile) == (format, precision, threads):
                    return profile
    return None


def corrected(
    profile: CostProfile, rounds: Sequence[tuple[Sequence[Workload], float]]
) -> CostProfile:
    """The profile with factors under which networks that were measured are predicted as measured.

    ``rounds``: the ops of each network and its time. One factor is common to all, one is each
    family's own: the most likely ones (a posteriori) when their logarithms are normal around 0, the
    common one's with far more spread, so that one round moves everything alike and further rounds
    tell the families apart.
    """
    from scipy.optimize import least_squares

    if not rounds:
        return profile
    names = sorted({family for ops, _ in rounds for family in profile.grouped(ops)})
    parts = np.zeros((len(rounds), len(names)))
    for row, (ops, _) in zip(parts, rounds, strict=True):
        times = profile.ops(ops)
        for family, places in profile.grouped(ops).items():
            row[names.index(family)] = times[places].sum()
    measured = np.log([time for _, time in rounds])

    def residuals(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        predicted = np.exp(logs[0]) * (profile.overhead + parts @ np.exp(logs[1:]))
        return np.concatenate(
            [(np.log(predicted) - measured) / _NOISE, logs[:1] / _COMMON, logs[1:] / _OWN]
        )

    factors = np.exp(least_squares(residuals, np.zeros(len(names) + 1)).x)
    own = dict(zip(names, factors[1:], strict=True))
    families = {
        name: family.model_copy(
            update={"factor": float(family.factor * factors[0] * own.get(name, 1.0))}
        )
        for name, family in profile.families.items()
    }
    return profile.model_copy(
        update={"overhead": float(profile.overhead * factors[0]), "families": families}
    )
