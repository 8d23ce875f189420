"""A setting of the process is restored once all blocks have ended, in any order."""

from __future__ import annotations

import itertools
import random
import threading
from contextlib import ExitStack

import pytest

from lrfc.system.overrides import Override


class Setting:
    value = "original"


def override(setting: Setting) -> Override[str, str]:
    def write(value: str) -> None:
        setting.value = value

    return Override(lambda: setting.value, write, write)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_blocks_that_overlap_end_in_any_order(order: tuple[int, ...]) -> None:
    setting = Setting()
    shared = override(setting)
    blocks = [ExitStack() for _ in range(3)]
    for number, block in enumerate(blocks):
        assert block.enter_context(shared.to(str(number))) == "original"
        assert setting.value == str(number)
    left = [0, 1, 2]
    for number in order:
        blocks[number].close()
        left.remove(number)
        assert setting.value == (str(left[-1]) if left else "original")
    setting.value = "changed by the program"
    with shared.to("4"):
        assert setting.value == "4"
    assert setting.value == "changed by the program"


def test_a_failure_in_a_block_or_at_its_begin_restores() -> None:
    setting = Setting()
    shared = override(setting)
    with pytest.raises(KeyError), shared.to("1"), shared.to("2"):
        raise KeyError

    def refuse(value: str) -> None:
        raise OSError(value)

    def restore(value: str) -> None:
        setting.value = value

    assert setting.value == "original"
    setting.value = "kept"
    with (
        pytest.raises(OSError, match="3"),
        Override(lambda: setting.value, refuse, restore).to("3"),
    ):
        pytest.fail("the block must not run")
    assert setting.value == "kept"


def test_many_threads() -> None:
    setting = Setting()
    shared = override(setting)
    seen: list[str] = []
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        draw = random.Random(seed)
        start.wait()
        for turn in range(200):
            with ExitStack() as stack:
                depths = range(draw.randrange(1, 4))
                seen.extend(
                    stack.enter_context(shared.to(f"{seed} {turn} {depth}")) for depth in depths
                )

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert setting.value == "original"
    assert set(seen) == {"original"}
