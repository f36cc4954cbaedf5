"""Numbers as people read them: three significant digits, the unit in the heading."""

from __future__ import annotations

from capibench.measure.metrics import BY_NAME

MISSING = "–"


def format_value(metric: str, value: float | None) -> str:
    """`value` of the metric, without its unit (shares as per cent, bytes as MB)."""
    if value is None:
        return MISSING
    unit = BY_NAME[metric].unit
    if unit == "share":
        # 99.97 % is not 100 %: a failed request must not be rounded away.
        return f"{value:.2%}" if 0.999 <= value < 1.0 else f"{value:.1%}"
    if unit == "bytes":
        return _significant(value / 1e6)
    return _significant(value)


def _significant(value: float) -> str:
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:,.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if magnitude >= 0.095 else f"{value:.2g}"


def format_interval(metric: str, low: float | None, high: float | None) -> str:
    """`[40, 45]`; an end that the sample could not bound is left open."""
    if low is None and high is None:
        return ""
    ends = [
        format_value(metric, end).rstrip("%") if end is not None else "?" for end in (low, high)
    ]
    return f"[{ends[0]}, {ends[1]}]"


def display_unit(metric: str) -> str:
    """The unit that `format_value` leaves out."""
    unit = BY_NAME[metric].unit
    return {"share": "", "bytes": "MB", "1": "", "ratio": "×"}.get(unit, unit)
