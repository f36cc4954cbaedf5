"""By how much each expert leads each other one since it was last level with it or behind.

Page's cumulative sums (Page, "Continuous inspection schemes", Biometrika 41, 1954, section 4), one
for each pair: a lead is counted from where it began, so that nobody must first work off what it
once was behind. Gains come in batches of accesses, and chance is what batches scatter: hits come in
bursts, so that single ones are no independent evidence. A batch far out of the usual, as when all
popularity has just changed, counts in full for the leads and little for chance.
"""

from __future__ import annotations

import math

_OUTLIER = 9.0  # times the usual variance, that a batch adds to it at most


class Leads:
    """Of all experts over all others. The cost of a batch is the square of their number."""

    __slots__ = ("_chance", "_half_life_turnovers", "_leads")

    def __init__(self, num_experts: int, half_life_turnovers: float) -> None:
        self._half_life_turnovers = half_life_turnovers
        self._leads = [[0.0] * num_experts for _ in range(num_experts)]  # of whom, over whom
        self._chance = [[0.0] * num_experts for _ in range(num_experts)]  # variance of a turnover

    def add(self, gains: list[float], slack: float, least: float, turnovers: float) -> None:
        """One batch: what each expert gained. Of a difference `slack` counts for nothing, and a
        turnover's variance is taken to be `least` at least."""
        kept = 0.5 ** (turnovers / self._half_life_turnovers)
        for leads, chance, gain in zip(self._leads, self._chance, gains, strict=True):
            for other, other_gain in enumerate(gains):
                ahead = gain - other_gain
                usual = max(chance[other], least)
                scatter = min(ahead * ahead / turnovers, _OUTLIER * usual)
                chance[other] = kept * usual + (1.0 - kept) * scatter
                leads[other] = max(leads[other] + ahead - slack, 0.0)

    def leader(self, in_charge: int, standard_errors: float) -> int | None:
        """Who leads the one in charge by most, and by more than chance gives in a turnover."""
        best, best_lead = None, 0.0
        for expert, leads in enumerate(self._leads):
            needed = standard_errors * math.sqrt(self._chance[expert][in_charge])
            if leads[in_charge] > max(needed, best_lead):
                best, best_lead = expert, leads[in_charge]
        return best

    def start_anew(self, in_charge: int) -> None:
        """Whoever would take over from `in_charge` must lead it from now on."""
        for leads in self._leads:
            leads[in_charge] = 0.0
