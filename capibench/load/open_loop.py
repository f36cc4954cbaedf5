"""An open-loop plan from a rule for arrivals: warm-up first, the measured schedule right after."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from capibench.corpus.corpus import Question
from capibench.load.load import Plan
from capibench.load.mix import RequestMix
from capibench.load.streams import DrawStreams, LoadStreams
from capibench.records import Phase


def open_plan(
    mix: RequestMix,
    questions: Sequence[Question],
    streams: LoadStreams,
    arrivals: Callable[[int, DrawStreams], list[float]],
) -> Plan:
    """Plan with `arrivals(count, streams)`: seconds after the beginning of the phase, ascending.

    The measured window begins when the last warm-up request is due; each phase begins with a gap,
    so that `n` requests span `n` gaps and the offered rate is requests / (last - begin).
    """
    warm_questions, questions_asked = mix.draw_questions(questions, streams)
    warm_s = arrivals(mix.warmup_requests, streams.warmup)
    begin_s = warm_s[-1] if warm_s else 0.0
    measured_s = [begin_s + time_s for time_s in arrivals(mix.num_requests, streams.measure)]
    return Plan(
        warmup=mix.requests(warm_questions, warm_s, Phase.WARMUP, 0, streams.warmup),
        measured=mix.requests(
            questions_asked, measured_s, Phase.MEASURE, mix.warmup_requests, streams.measure
        ),
        window_begin_s=begin_s,
        closed_loop=None,
        facts={},
    )
