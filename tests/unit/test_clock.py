"""The slot clock: exact at any distance, and the same clock from any reference."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkdhw.events.clock import ONE_TICK_Q32, SlotClock

clocks = st.builds(
    SlotClock,
    st.integers(-(1 << 40), 1 << 40),
    st.integers(-(1 << 50), 1 << 50),
    st.integers(0, ONE_TICK_Q32 - 1),
    st.integers(2 * ONE_TICK_Q32, 1000 * ONE_TICK_Q32),
)


@given(clocks, st.integers(-(1 << 40), 1 << 40), st.integers(-(1 << 55), 1 << 55))
def test_rebasing_changes_no_slot(clock, steps, ticks):
    moved = clock.rebased(clock.ref_slot + steps)
    assert moved.ref_slot == clock.ref_slot + steps
    assert moved.slot_at(ticks) == clock.slot_at(ticks)
    assert moved.centre_q32(7) == clock.centre_q32(7)
    slot, residual_q32 = clock.assign(np.array([ticks]))
    assert slot[0] == moved.slot_at(ticks)
    assert ticks * ONE_TICK_Q32 == clock.centre_q32(int(slot[0])) + int(residual_q32[0])


def test_corrections_and_a_new_number_apply_at_the_reference():
    clock = SlotClock.nominal(Fraction(25), ref_ticks=1000)
    moved = clock.rebased(10, number=500, shift_q32=-1, stretch_q32=3)
    assert moved == SlotClock(500, 1249, ONE_TICK_Q32 - 1, 25 * ONE_TICK_Q32 + 3)


def test_a_rational_period_keeps_its_phase_for_an_hour():
    clock = SlotClock.nominal(Fraction(40, 3))
    slots = 3 * 10**11
    # 2^-33 ticks of rounding a slot are the only error, and tracking removes them.
    assert abs(clock.centre_q32(slots) - Fraction(40, 3) * slots * ONE_TICK_Q32) <= slots / 2


@pytest.mark.parametrize("period", [Fraction(19, 10), Fraction(1 << 28)])
def test_periods_beyond_the_exact_range_are_refused(period):
    with pytest.raises(ValueError, match="ticks long"):
        SlotClock.nominal(period)


def test_a_time_beyond_the_exact_range_is_refused():
    with pytest.raises(ValueError, match="event 1"):
        SlotClock.nominal(Fraction(25)).assign(np.array([0, 1 << 62]))
