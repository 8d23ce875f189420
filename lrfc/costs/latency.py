"""Cost profiles: readable models of a device's latency, fitted and corrected by measurements."""

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

#: The family that predicts another one which was not measured.
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
#: Standard deviations of logarithms in ``corrected``: of a measured latency, of the common factor,
#: and of the factor of one family.
_NOISE, _COMMON, _OWN = 0.005, 0.5, 0.15

#: (alignment, block); see CostProfile.
Layout = tuple[int, int]
_Positive = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
#: Channels or positions that a kernel processes at once.
_Tile = Annotated[int, Field(ge=1, le=1 << 20)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeldOut(_Part):
    """Relative errors in cross-validation: number of samples, mean and 90th percentile."""

    n: int
    mean: float
    p90: float


class Family(_Part):
    """The costs of one family of ops.

    ``tile``: (rows, columns, depth) of its kernels. ``costs``: per unit of each term of
    ``lrfc.costs.features.terms``. ``factor``: correction of all costs by later measurements.
    """

    tile: tuple[_Tile, _Tile, _Tile]
    costs: Mapping[str, _Positive]
    factor: Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)] = 1.0


class CostProfile(_Part):
    """A model of a device's latency for one format, precision and number of threads.

    ``unit``: of all times. ``overhead``: of an inference, in addition to its ops. ``layout``: where
    a runtime stores channels in blocks, the alignment that its blocked kernels need and the
    channels of a block (onnxruntime: 4, and 8 or 16); (1, 1) elsewhere. ``machine``, ``runtime``,
    ``runtime_version``: of the measurements. ``held_out``: error by family, and of 'networks'.
    ``estimated``: computed from published figures (``source``) and not measured.
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
        """The predicted time of one op."""
        return float(self.ops([workload])[0])

    def ops(self, workloads: Sequence[Workload]) -> NDArray[np.float64]:
        """The predicted time of each op."""
        times = np.zeros(len(workloads))
        for family, places in self.grouped(workloads).items():
            numbers = table(work(workloads[i]) for i in places)
            model = self.families[family]
            values = terms(
                family.partition(".")[0], numbers, model.tile, by_row=self.layout != (1, 1)
            )
            if unknown := sorted(set(model.costs) - set(values)):
                raise UsageError(
                    f"the cost profile of device '{self.device}' has a cost of"
                    f" '{reader.shown(unknown[0])}' in family '{family}', which has no such term;"
                    f" calibrate it: lrfc devices calibrate {self.device}"
                )
            times[places] = model.factor * sum(
                cost * values[name] for name, cost in model.costs.items()
            )
        return times

    def predict(
        self, workloads: Iterable[Workload], known: Mapping[Workload, float] | None = None
    ) -> float:
        """The predicted time of a network. ``known``: measured times, which replace predictions."""
        known = known or {}
        ops = list(workloads)
        measured = sum(known[op] for op in ops if op in known)
        return float(
            self.overhead + measured + self.ops([op for op in ops if op not in known]).sum()
        )

    def grouped(self, workloads: Sequence[Workload]) -> dict[str, list[int]]:
        """The indices of the ops, by the family of this profile that predicts them.

        UsageError when there is none.
        """
        places: dict[str, list[int]] = {}
        for i, workload in enumerate(workloads):
            places.setdefault(family_of(workload, self.layout), []).append(i)
        groups: dict[str, list[int]] = {}
        for family, own in places.items():
            groups.setdefault(self._predictor(family, workloads[own[0]]), []).extend(own)
        return groups

    def _predictor(self, family: str, example: Workload) -> str:
        tried = []
        while family not in self.families:
            tried.append(family)
            base, dot, _ = family.partition(".")
            family = base if dot else _LIKE[base]
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
        """The file with this profile; it replaces one of the same format, precision and threads."""
        others = [other for other in self.profiles if _key(other) != _key(profile)]
        return CostFile(profiles=tuple(sorted([*others, profile], key=_key)))

    def write(self, path: Path) -> None:
        """Write the file as indented JSON, whole or not at all."""
        text = json.dumps(_rounded(self.model_dump()), indent=1) + "\n"
        files.write(path, text, parents=True, way_out=files.CONFIG)


def _key(profile: CostProfile) -> tuple[str, str, int]:
    return profile.format, profile.precision, profile.threads


def _rounded(value: Any) -> Any:
    """The value with five significant digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def family_of(workload: Workload, layout: Layout = (1, 1)) -> str:
    """The family of an op, with a suffix where a runtime stores channels in blocks (CostProfile).

    The suffix tells its kernels apart: '.small' for a convolution of fewer input channels than a
    block, '.odd' for an op whose channels are no multiple of the alignment.
    """
    alignment, block = layout
    features = work(workload)
    if alignment == 1:
        return features.family
    depth = (
        features.depth
        if features.family in ("conv", "pointwise")
        else features.groups
        if features.family == "depthwise"
        else features.columns
    )
    if features.family in ("conv", "pointwise") and depth < block:
        return f"{features.family}.small"
    return (
        f"{features.family}.odd"
        if features.family in ("conv", "pointwise", "depthwise", "pool") and depth % alignment
        else features.family
    )


def user_file(device: str) -> Path:
    """The path of the user's own cost profiles of a device."""
    return (
        Path(platformdirs.user_config_dir("lrfc", appauthor=False))
        / "devices"
        / f"{device}.cost.json"
    )


def read(path: Path) -> CostFile:
    """Read the profiles in a file; UsageError when it is damaged."""
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


def load(
    device: str,
    format: str,  # noqa: A002 - the word of Artifact and Device
    precision: str,
    threads: int,
) -> CostProfile | None:
    """The profile of a device for a format, precision and number of threads; None without one.

    The user's own profile comes before the one that ships.
    """
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
    """Correct a profile by measured networks.

    ``rounds``: the ops of each network and its time. There is a common factor and one for each
    family: the maximum a posteriori when their logarithms are normal around 0, that of the common
    factor with far more spread. So one round scales all costs alike, and further rounds tell the
    families apart.
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
    by_family = dict(zip(names, factors[1:], strict=True))
    families = {
        name: family.model_copy(
            update={"factor": float(family.factor * factors[0] * by_family.get(name, 1.0))}
        )
        for name, family in profile.families.items()
    }
    return profile.model_copy(
        update={"overhead": float(profile.overhead * factors[0]), "families": families}
    )
