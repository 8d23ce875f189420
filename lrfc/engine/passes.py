"""The passes of a build, in order, and those that a precision adds."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from lrfc.config.build import BuildConfig
from lrfc.config.formats import FORMATS
from lrfc.config.precision import PRECISIONS
from lrfc.engine.destinations import Destination
from lrfc.engine.replay import Locked
from lrfc.ir.head_pairs import pairs
from lrfc.passes.canonicalise import Canonicalise
from lrfc.passes.equalize_stages import EqualizeStages
from lrfc.passes.explore_filters import ExploreFilters
from lrfc.passes.explore_layers import ExploreLayers
from lrfc.passes.factorize import Factorize
from lrfc.passes.finetune import FineTune, Tuning
from lrfc.passes.lock_filters import LockFilters
from lrfc.passes.lock_layers import LockLayers
from lrfc.passes.prune_filters import PruneFilters
from lrfc.passes.recalibrate import RecalibrateBatchNorm
from lrfc.passes.refit import Refit
from lrfc.passes.rotate_heads import RotateHeads
from lrfc.passes.select_ranks import SelectRanks
from lrfc.passes.weigh_rounding import WeighRounding
from lrfc.pipeline import name_of
from lrfc.protocols import Pass
from lrfc.pruning.facts import Selection
from lrfc.search.cache import place
from lrfc.search.statistics import repairable
from lrfc.state import State

#: Pass → the stage of the accuracy by stage that ends with it.
RUNGS = {
    "Factorize": "factorized",
    "PruneFilters": "pruned",
    "RecalibrateBatchNorm": "recalibrated",
    "Refit": "refitted",
    "FineTune": "finetuned",
}


def canonical(config: BuildConfig) -> tuple[Pass, ...]:
    """The passes in front of everything that is lossy, and that is compared with their result."""
    rotates = config.prune != "off" and config.heads == "narrow"
    return (Canonicalise(), RotateHeads()) if rotates else (Canonicalise(),)


def exploring(
    config: BuildConfig,
    goals: Sequence[Destination],
    locked: Locked | None,
    state: State,
) -> tuple[Pass, ...]:
    """The passes that give the canonical graph its candidates: explored, or from a manifest.

    ``state``: with the canonical graph.
    """
    # Who stops after a pass wants it to run.
    prunes = config.prune in ("on", "only") or config.stop_after == name_of(ExploreFilters())
    if locked is not None:
        layers = LockLayers(locked.choices, config.keep, config.only)
        if not locked.filters and not prunes:
            return (layers,)
        whole = config.heads == "whole"
        return layers, LockFilters(locked.filters, config.keep, config.only, whole)
    explore = exploration(config, _multiple(config, goals))
    prunes = prunes or (config.prune == "auto" and _needs_filters(state))
    return (explore, filter_exploration(config, goals)) if prunes else (explore,)


def _needs_filters(state: State) -> bool:
    """Whether ranks alone are not enough for a network, whatever the budgets are.

    In a block with a depthwise convolution, nearly all MACs are in the 1×1 convolutions before and
    behind it. Their kernels have little to factorize, but the channels between them can be fewer.
    The same holds for the dimensions of the heads of an attention layer. With few samples, the
    layers behind are refitted on those that plans are judged by, which then tell nothing.
    """
    narrow = any(op.info.is_depthwise for op in state.graph) or any(pairs(state.graph))
    return narrow and repairable(state) and not state.data.few


def filter_exploration(config: BuildConfig, goals: Sequence[Destination]) -> ExploreFilters:
    """The pass that explores the filters of the layers."""
    return ExploreFilters(
        keep=config.keep,
        only=config.only,
        multiple=_multiple(config, goals),
        whole_heads=config.heads == "whole",
    )


def _multiple(config: BuildConfig, goals: Sequence[Destination]) -> int:
    """The number that ranks, and the filters of a layer, are multiples of.

    A rank below the device's vector width saves no time; with several devices, ranks suit all.
    """
    return config.rank_multiple or lcm(*(goal.device.rank_multiple for goal in goals))


def exploration(config: BuildConfig, multiple: int = 1) -> ExploreLayers:
    """The pass that explores the layers. Ranks are multiples of ``multiple``."""
    return ExploreLayers(
        methods=config.methods,
        keep=config.keep,
        only=config.only,
        rank_multiple=multiple,
        cached=config.resume,
    )


def weighing(precision: str, form: str = "tflite", *, cached: bool = False) -> tuple[Pass, ...]:
    """The passes that estimate the rounding of explored layers in a precision and format.

    Empty for a precision in float.
    """
    if not PRECISIONS[precision].integer:
        return ()
    return (WeighRounding(precision, cached=cached, steps=FORMATS[form].weight_steps),)


def pipeline(config: BuildConfig, select: SelectRanks) -> tuple[Pass, ...]:
    """The passes after exploration, in order. Each comment is the reason for a pass's place."""
    return (
        # One candidate for each layer, once the candidates of all layers are known.
        select,
        Factorize(),
        # After the factors are in place: the filters to cut were selected with the ranks.
        PruneFilters(),
        # The statistics of the original no longer fit; wrong ones would cost the fine-tune its
        # first epochs.
        RecalibrateBatchNorm(),
        # In closed form first; gradients start from the result.
        Refit(),
        *([finetune(config)] if config.finetunes else []),
    )


def finetune(config: BuildConfig) -> FineTune:
    """The one fine-tune of a build."""
    # A killed build continues after its last epoch, as its exploration does.
    checkpoints = place().parent / "finetune" if config.resume else None
    return FineTune(
        epochs=FineTune.epochs if config.epochs is None else config.epochs,
        as_needed=config.epochs is None,
        time_budget=config.time_budget,
        augment=config.augment,
        metric=config.metric,
        class_weights=config.class_weights,
        training=config.training,
        log_dir=config.log_dir,
        checkpoints=checkpoints,
    )


def rounding(config: BuildConfig, precision: str) -> tuple[Pass, ...]:
    """The passes after FoldBatchNorm for an integer precision; none for other precisions."""
    if not PRECISIONS[precision].integer:
        return ()
    # The network computes the same, with ranges that suit the rounding that follows.
    bits = 8 * PRECISIONS[precision].activation
    return (EqualizeStages(bits=bits, convolutions=config.qat),)


def until(passes: Sequence[Pass], name: str | None) -> tuple[tuple[Pass, ...], bool]:
    """The passes up to and including the one of that name, and whether it is among them."""
    for number, step in enumerate(passes, 1):
        if name_of(step) == name:
            return tuple(passes[:number]), True
    return tuple(passes), False


def rung(step: Pass, state: State) -> str | None:
    """The stage of the accuracy by stage that a pass ends; None for a pass that ends none.

    One with nothing to do ends none: no layer to factorize, no filter to cut, no step of training.
    """
    selection, tuning = state.known(Selection), state.known(Tuning)
    if selection is not None and isinstance(step, Factorize):
        idle = all(candidate.method is None for candidate in selection.chosen)
    elif selection is not None and isinstance(step, PruneFilters):
        idle = not selection.removed
    elif tuning is not None and isinstance(step, FineTune):
        idle = not tuning.steps
    else:
        idle = False
    return None if idle else RUNGS.get(name_of(step))
