"""Cost profiles: fits, corrections by measured networks, and files."""

from __future__ import annotations

import json
from math import prod

import numpy as np
import pytest

from lrfc.costs import fitting, latency
from lrfc.costs.features import FAMILIES, terms, work
from lrfc.costs.latency import CostFile, CostProfile, Family
from lrfc.costs.workload import Workload, workloads
from lrfc.errors import UsageError
from lrfc.targets.devices import device as devices
from tests import helpers

ABOUT = {"device": "bench", "format": "tflite", "precision": "fp32"}


def conv(side: int, inputs: int, outputs: int, length: int = 3) -> Workload:
    return Workload(
        "conv",
        ((side, side, inputs),),
        (side, side, outputs),
        (length, length),
        (1, 1),
        (1, 1),
        params=length**2 * inputs * outputs,
        macs=side**2 * length**2 * inputs * outputs,
    )


def depthwise(side: int, channels: int, length: int = 3) -> Workload:
    shape = (side, side, channels)
    return Workload(
        "depthwise",
        (shape,),
        shape,
        (length,) * 2,
        (1, 1),
        (1, 1),
        channels,
        None,
        length**2 * channels,
        side**2 * length**2 * channels,
    )


def truth(op: Workload) -> float:
    """A device with tiles of 6 positions and 16 channels."""
    positions, outputs, inputs = prod(op.output[:-1]), op.output[-1], op.inputs[0][-1]
    if op.kind == "depthwise":
        return 1e-3 + 5e-8 * op.macs
    return (
        2e-3
        + 2e-8 * np.ceil(positions / 6) * 6 * np.ceil(outputs / 16) * 16 * prod(op.kernel) * inputs
        + 1e-7 * (positions * inputs)
    )


def drawn(count: int, rng: np.random.Generator) -> list[Workload]:
    numbers = [int(n) for n in rng.integers(2, 40, count)]
    widths = np.exp(rng.uniform(0, np.log(200), (count, 2))).astype(int) + 1
    return [
        depthwise(n, a) if i % 4 == 3 else conv(n, a, b, 1 if i % 4 == 2 else 3)
        for i, (n, (a, b)) in enumerate(zip(numbers, widths.tolist(), strict=True))
    ]


@pytest.fixture(scope="module")
def profile() -> CostProfile:
    rng = np.random.default_rng(0)
    samples = [
        (op, truth(op) * float(np.exp(0.01 * rng.standard_normal()))) for op in drawn(160, rng)
    ]
    return fitting.fit(samples, layouts=((1, 1),), **ABOUT)


def test_a_fit_recovers_tiles_and_costs(profile: CostProfile) -> None:
    family = profile.families["conv"]
    assert family.tile[:2] == (6, 16)
    assert family.costs["macs"] == pytest.approx(2e-8, rel=0.05)
    assert profile.families["depthwise"].costs["macs"] == pytest.approx(5e-8, rel=0.1)
    assert profile.overhead == 0, "single ops do not tell it"
    assert profile.held_out["conv"].mean < 0.03
    assert sum(error.n for error in profile.held_out.values()) == 160


def test_ops_never_seen_are_predicted(profile: CostProfile) -> None:
    fresh = drawn(200, np.random.default_rng(1))
    errors = np.abs(profile.ops(fresh) / [truth(op) for op in fresh] - 1)
    assert errors.mean() < 0.03


def test_networks_separate_the_overhead_from_their_ops() -> None:
    rng = np.random.default_rng(2)
    networks = [drawn(int(rng.integers(1, 8)), rng) for _ in range(120)]
    fitted = fitting.fit(
        [(ops, 0.01 + sum(map(truth, ops))) for ops in networks], layouts=((1, 1),), **ABOUT
    )
    assert fitted.overhead == pytest.approx(0.01, rel=0.1)
    assert fitted.held_out["networks"].n == 120
    fresh = drawn(10, rng)
    assert fitted.predict(fresh) == pytest.approx(0.01 + sum(map(truth, fresh)), rel=0.05)


def test_a_layout_is_found_where_other_kernels_run_odd_channels() -> None:
    rng = np.random.default_rng(3)
    ops = [
        conv(int(rng.integers(4, 30)), int(rng.integers(2, 80)), 16 * int(rng.integers(1, 6)))
        for _ in range(160)
    ]
    fitted = fitting.fit(
        [
            (op, truth(op) * (3 if op.inputs[0][-1] % 4 and op.inputs[0][-1] >= 16 else 1))
            for op in ops
        ],
        **ABOUT,
    )
    assert fitted.layout == (4, 16)
    assert fitted.op(conv(8, 33, 32)) == pytest.approx(3 * truth(conv(8, 33, 32)), rel=0.1)


def test_a_fit_is_robust_to_an_outlier() -> None:
    rng = np.random.default_rng(4)
    samples = [(op, truth(op)) for op in drawn(120, rng)]
    samples[0] = (samples[0][0], 50 * samples[0][1])
    fitted = fitting.fit(samples, layouts=((1, 1),), **ABOUT)
    fresh = drawn(50, rng)
    assert np.abs(fitted.ops(fresh) / [truth(op) for op in fresh] - 1).mean() < 0.05


def test_too_few_or_impossible_times_are_refused() -> None:
    with pytest.raises(UsageError, match="2 measurements are too few"):
        fitting.fit([(conv(4, 4, 4), 1.0)] * 2, **ABOUT)
    with pytest.raises(UsageError, match="not positive"):
        fitting.fit([(conv(4, 4, 4), 0.0)] * 6, **ABOUT)


def test_measured_times_replace_predictions(profile: CostProfile) -> None:
    first, second = conv(8, 16, 16), depthwise(8, 16)
    assert profile.predict([first, second], {first: 7.0}) == pytest.approx(7 + profile.op(second))
    assert profile.predict([]) == 0


# -- corrections -----------------------------------------------------------------------------------


def test_one_round_scales_all_families_alike(profile: CostProfile) -> None:
    network = [conv(16, 8, 32), depthwise(16, 32), conv(16, 32, 32, 1)]
    before = profile.predict(network)
    corrected = latency.corrected(profile, [(network, 1.4 * before)])
    assert corrected.predict(network) == pytest.approx(1.4 * before, rel=1e-3)
    other = [conv(9, 20, 20)]
    assert corrected.predict(other) == pytest.approx(1.4 * profile.predict(other), rel=0.05)


def test_further_rounds_scale_families_differently(profile: CostProfile) -> None:
    networks = [
        [conv(16, 8, 32)] * 4,
        [depthwise(16, 64)] * 4,
        [conv(12, 16, 16), depthwise(12, 64), depthwise(12, 16)],
    ]

    def real(ops: list[Workload]) -> float:
        return float(sum(profile.op(op) * (1.2 if op.kind == "depthwise" else 0.9) for op in ops))

    corrected = latency.corrected(profile, [(ops, real(ops)) for ops in networks[:2]])
    assert corrected.predict(networks[2]) == pytest.approx(real(networks[2]), rel=0.02)
    factors = {name: family.factor for name, family in corrected.families.items()}
    assert factors["depthwise"] / factors["conv"] == pytest.approx(1.2 / 0.9, rel=0.05)


def test_corrections_do_not_accumulate(profile: CostProfile) -> None:
    network = [conv(16, 8, 32), depthwise(16, 32)]
    rounds = [(network, profile.predict(network))]
    corrected = latency.corrected(profile, rounds)
    assert all(
        family.factor == pytest.approx(1, abs=1e-6) for family in corrected.families.values()
    )
    assert latency.corrected(profile, []) is profile


# -- families, files -------------------------------------------------------------------------------


def test_every_op_of_a_network_has_a_family_and_its_terms() -> None:
    graph = helpers.graph_of(helpers.branches())
    for _, op in workloads(graph):
        features = work(op)
        assert features.family in FAMILIES
        assert all(size >= 0 for size in (features.positions, features.columns, features.depth))


def test_a_part_of_a_tile_costs_a_whole_one() -> None:
    from lrfc.costs.features import table

    small, whole, more = (
        terms("conv", table([work(conv(4, 8, n))]), (4, 16, 1))["macs"][0] for n in (9, 16, 17)
    )
    assert small == whole
    assert more == 2 * whole


def test_a_family_that_was_not_measured_is_like_another_one() -> None:
    only = CostProfile(**ABOUT, families={"conv": Family(tile=(1, 1, 1), costs={"macs": 1e-6})})
    assert only.op(depthwise(4, 8)) > 0
    with pytest.raises(
        UsageError, match=r"no op like 'sigmoid 8 -> 8 .* lrfc devices calibrate bench"
    ):
        only.op(Workload("sigmoid", ((8,),), (8,)))


def test_the_users_file_comes_before_the_one_that_ships(profile: CostProfile) -> None:
    shipped = latency.load("cortex-m7", "tflite", "int8", 1)
    assert shipped is not None
    assert shipped.estimated
    own = profile.model_copy(update={"device": "cortex-m7", "precision": "int8"})
    CostFile(profiles=(own,)).write(latency.user_file("cortex-m7"))
    loaded = latency.load("cortex-m7", "tflite", "int8", 1)
    assert loaded is not None
    assert not loaded.estimated
    assert loaded.op(conv(8, 9, 9)) == pytest.approx(own.op(conv(8, 9, 9)), rel=1e-3)
    assert latency.load("cortex-m7", "tflite", "int8", 8) is None
    latency.user_file("cortex-m7").unlink()


def test_a_profile_replaces_that_of_the_same_conditions(profile: CostProfile) -> None:
    more = profile.model_copy(update={"threads": 2})
    file = (
        CostFile(profiles=(profile,))
        .with_profile(more)
        .with_profile(profile.model_copy(update={"overhead": 3.0}))
    )
    assert [(p.threads, p.overhead) for p in file.profiles] == [
        (1, 3.0),
        (2, profile.overhead),
    ]


def test_a_damaged_file_is_named(tmp_path) -> None:
    path = tmp_path / "x.cost.json"
    path.write_text(json.dumps({"schema_version": 1, "profiles": [{"device": "x"}]}))
    with pytest.raises(
        UsageError, match=r"x\.cost\.json is no file of cost profiles: profiles\.0\.format"
    ):
        latency.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"x\.cost\.json is not JSON"):
        latency.read(path)


@pytest.mark.parametrize(
    ("device", "forms"),
    [("host", ("tflite", "onnx")), ("cortex-m7", ("tflite",)), ("cortex-m4", ("tflite",))],
)
def test_the_profiles_that_ship_are_complete(device: str, forms: tuple[str, ...]) -> None:
    precision = "fp32" if device == "host" else "int8"
    graph = helpers.graph_of(helpers.branches())
    for form in forms:
        loaded = latency.load(device, form, precision, devices.load(device).threads)
        assert loaded is not None
        assert loaded.device == device
        assert loaded.predict([op for _, op in workloads(graph)]) > 0
        assert loaded.estimated == (device != "host")
        assert (loaded.source is not None) == loaded.estimated


def test_the_network_that_the_cortex_m7_figures_come_from() -> None:
    loaded = latency.load("cortex-m7", "tflite", "int8", 1)
    assert loaded is not None
    layers = [conv(32, 3, 32, 5), conv(16, 32, 32, 5), conv(8, 32, 64, 5)]
    pools = [
        Workload("pool", ((2 * n, 2 * n, c),), (n, n, c), (3, 3), (2, 2))
        for n, c in ((16, 32), (8, 32), (4, 64))
    ]
    dense = Workload("dense", ((1024,),), (10,), params=10_250, macs=10_240)
    assert loaded.predict([*layers, *pools, dense]) == pytest.approx(99.1, rel=0.03)
