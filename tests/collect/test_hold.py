"""The common delay of red-team replies: the slowest arm's running 95th percentile, one number for all arms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from filled import Talk, add_arm

from truing.collect import tables as t
from truing.collect.store import Store, new_id, now
from truing.collect.work import HOLD_WINDOW, percentile95, slowest

MINUTE = 60.0


class Made:
    """A store with offered arms; ``jobs`` puts in some that were done, so many seconds ago."""

    def __init__(self, store: Store, *arms: str) -> None:
        self.store = store
        with store.write() as db:
            self.arms = {name: add_arm(db, name) for name in arms}
            for arm in self.arms.values():
                db.execute(t.arm_weight.insert(), {"arm_id": arm, "mode": "redteam", "weight": 1.0, "at": now()})

    def jobs(self, arm: str, seconds: Sequence[float], ago: float, state: str = "done") -> None:
        with self.store.write() as db:
            talk = Talk(db, "redteam").id
            for turn, lasted in enumerate(seconds):
                begun = now() - int(ago * 1e6) + turn
                row = {"id": new_id(), "conversation_id": talk, "turn": turn, "arms": [self.arms[arm]] * 2}
                row |= {"weights": {}, "state": state, "created_at": begun, "done_at": begun + int(lasted * 1e6)}
                db.execute(t.job.insert(), row)

    def hold(self, first: float = 8.0) -> float:
        with self.store.read() as db:
            return slowest(db, first)


def test_it_is_that_of_the_slowest_arm_whichever_answers(store: Store):
    made = Made(store, "fast", "slow")
    slow = np.linspace(1.0, 2.0, 40).tolist()
    made.jobs("fast", np.linspace(0.1, 0.2, 100).tolist(), MINUTE)
    assert made.hold(8.0) == 8.0  # the slow one is not known
    made.jobs("slow", slow, MINUTE)
    made.jobs("slow", [90.0] * 40, MINUTE, state="failed")
    assert made.hold() == pytest.approx(percentile95(slow)) and np.mean(np.array(slow) > made.hold()) <= 0.05


def test_a_rush_does_not_slow_down_the_quiet_hours_after_it(store: Store):
    """Two hundred people began at once; half an hour later 20 quiet replies of each arm set the delay again."""
    made = Made(store, "fast", "slow")
    for arm in made.arms:
        made.jobs(arm, [60.0] * 150, HOLD_WINDOW + MINUTE)
    assert made.hold() == 60.0
    made.jobs("fast", [0.5] * 25, MINUTE)
    made.jobs("slow", [2.0] * 19, MINUTE)
    assert made.hold() == pytest.approx(60.0, rel=0.1)  # one of the rush is among the last 20 of the slow arm
    made.jobs("slow", [2.0], MINUTE)
    assert made.hold() == 2.0


def test_a_rush_sets_it_while_it_lasts_and_the_last_200_are_enough(store: Store):
    made = Made(store, "one")
    made.jobs("one", [1.0] * 100, 20 * MINUTE)
    made.jobs("one", [30.0] * 20, MINUTE)
    assert made.hold() == 30.0
    made.jobs("one", [3.0] * 200, MINUTE / 2)
    assert made.hold() == 3.0


def test_what_is_retired_counts_no_more(store: Store):
    made = Made(store, "kept", "gone")
    made.jobs("kept", [1.0] * 30, MINUTE)
    made.jobs("gone", [50.0] * 30, MINUTE)
    assert made.hold() == 50.0
    with store.write() as db:
        row = {"arm_id": made.arms["gone"], "mode": "redteam", "weight": 0.0, "at": now()}
        db.execute(t.arm_weight.insert(), row)
    assert made.hold() == 1.0


@pytest.mark.parametrize("known", [20, 60, 200])
def test_one_reply_in_twenty_comes_later_however_few_are_known(known: int):
    rng = np.random.default_rng(known)
    later = [np.exp(-percentile95(rng.exponential(size=known).tolist())) for _ in range(4000)]
    assert abs(np.mean(later) - 0.05) < 0.005
