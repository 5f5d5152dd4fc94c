import pytest

from omni_app.conversation import AudioDelta, Heard, ReplyEnd, ReplyStats, TextDelta
from omni_app.meter import ReplyMeter

SECOND = AudioDelta(bytes(48_000), 24_000)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def watched(clock: Clock, *timeline: tuple[float, object]) -> ReplyMeter:
    meter = ReplyMeter(clock)
    for at, event in timeline:
        clock.now = 100.0 + at
        meter.observe(event)  # type: ignore[arg-type]
    return meter


def test_a_spoken_reply(clock: Clock) -> None:
    meter = watched(
        clock,
        (0.1, Heard("hello")),
        (0.2, TextDelta("")),
        (0.25, TextDelta("Well")),
        (0.5, SECOND),
        (1.25, TextDelta(", hello.")),
        (1.6, SECOND),
        (1.7, ReplyStats(5, 58)),
        (1.75, ReplyEnd()),
    )
    clock.now += 50
    figures = meter.figures()
    assert figures.first_text_s == pytest.approx(0.25)
    assert figures.first_sound_s == pytest.approx(0.5)
    assert figures.tokens_per_second == pytest.approx(57)
    assert figures.speech_s == pytest.approx(2)
    assert figures.real_time_factor == pytest.approx(0.8)
    assert figures.total_s == pytest.approx(1.75)
    assert not figures.text_tokens_estimated
    assert meter.line() == "first text 0.25 s · first sound 0.50 s · 57 tokens/s · real-time factor 0.80"


def test_tokens_are_estimated_from_deltas_and_say_so(clock: Clock) -> None:
    meter = watched(clock, *((0.1 * n, TextDelta("你")) for n in range(1, 12)))
    figures = meter.figures()
    assert figures.text_tokens == 11
    assert figures.text_tokens_estimated
    assert meter.line() == "first text 0.10 s · ≈10 tokens/s"


def test_few_long_deltas_are_estimated_by_their_length(clock: Clock) -> None:
    meter = watched(clock, (1, TextDelta("x" * 40)), (2, TextDelta("y" * 40)), (2, ReplyStats(prompt_tokens=3)))
    assert meter.figures().text_tokens == 20
    assert meter.figures().text_tokens_estimated


def test_one_delta_has_no_rate(clock: Clock) -> None:
    meter = watched(clock, (1, TextDelta("a whole answer at once")), (1, ReplyStats(5, 6)))
    assert meter.figures().tokens_per_second is None


def test_nothing_yet(clock: Clock) -> None:
    meter = ReplyMeter(clock)
    clock.now += 3
    figures = meter.figures()
    assert (figures.first_text_s, figures.first_sound_s, figures.real_time_factor) == (None, None, None)
    assert figures.total_s == 3
    assert meter.line() == ""


def test_text_that_came_in_a_few_blocks_uncounted_has_no_decode_rate() -> None:
    clock = iter([0.0, 1.0, 1.001, 1.002, 2.0]).__next__
    meter = ReplyMeter(clock)
    for text in ("A whole paragraph that was composed, not decoded.", "Another one."):
        meter.observe(TextDelta(text))
    assert meter.figures().tokens_per_second is None
