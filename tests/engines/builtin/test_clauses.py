from __future__ import annotations

import pytest

from omni_app.engines.builtin.clauses import Clause, ClauseSplitter, speakable


def spoken(text: str, limit: int = 70, step: int = 3) -> list[Clause]:
    """What comes out when `text` arrives `step` characters at a time."""
    splitter = ClauseSplitter()
    clauses: list[Clause] = []

    def take() -> Clause | None:
        return splitter.take(limit) if clauses else splitter.take_first()

    for start in range(0, len(text), step):
        splitter.feed(text[start : start + step])
        if clause := take():
            clauses.append(clause)
    splitter.finish()
    while clause := take():
        clauses.append(clause)
    assert splitter.exhausted
    return clauses


def texts(text: str, limit: int = 70, step: int = 3) -> list[str]:
    return [clause.text for clause in spoken(text, limit, step)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris", ["Paris"]),
        ("Paris. ", ["Paris."]),
        ("Sure! I can help.", ["Sure! I can help."]),
        ("In the evening, we ate. Then we slept.", ["In the evening,", "we ate.", "Then we slept."]),
        ("Pi is about 3.14, not 3.2 at all.", ["Pi is about 3.14,", "not 3.2 at all."]),
        ("Ask Dr. Smith, e.g. at 10 a.m. tomorrow.", ["Ask Dr. Smith,", "e.g. at 10 a.m. tomorrow."]),
        ("It costs $1,000.50 or more. Fine.", ["It costs $1,000.50 or more.", "Fine."]),
        ("Look at example.com now. Good.", ["Look at example.com now.", "Good."]),
        ("He met J. R. Smith there. Good.", ["He met J. R. Smith there.", "Good."]),
        ("She said “wait here!” and left. Good.", ["She said “wait here!”", "and left.", "Good."]),
        ("1. First thing\n2. Second thing\n", ["1. First thing", "2. Second thing"]),
        ("今日は良い天気ですから散歩します。明日も晴れ。", ["今日は良い天気ですから散歩します。", "明日も晴れ。"]),
    ],
)
def test_boundaries(text: str, expected: list[str]) -> None:
    assert texts(text) == expected


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_code_block_is_dropped_however_it_arrives(step: int) -> None:
    text = "Here is the code:\n```python\nx = 1. \nprint('a, b')\n```\nThat is all."
    assert texts(text, step=step) == ["Here is the code:", "That is all."]


@pytest.mark.parametrize("text", ["", "   ", "***", "😀👍🏽", "```\ncode only", "---\n\n", "| --- | --- |\n", "`"])
def test_nothing_speakable_is_nothing(text: str) -> None:
    assert spoken(text) == []


def test_first_clause_is_short_even_without_punctuation() -> None:
    first = spoken("The capital of France is the city of Paris which lies on the river Seine")[0]
    assert 5 <= len(first.text.split()) <= 7
    assert first.ending == "word"


def test_first_clause_of_an_instant_voice_is_cut_at_boundaries_only() -> None:
    splitter = ClauseSplitter()
    splitter.feed("The quick brown fox jumps over the lazy dog, they ")
    assert splitter.take_first(by_words=False) == Clause("The quick brown fox jumps over the lazy dog,", "phrase")


def test_first_clause_does_not_wait_for_more_than_it_needs() -> None:
    splitter = ClauseSplitter()
    splitter.feed("In the evening, ")
    assert splitter.take_first() == Clause("In the evening,", "phrase")


def test_no_word_is_lost_or_torn() -> None:
    words = [f"word{number}" for number in range(200)]
    assert " ".join(texts(" ".join(words), limit=40)).split() == words


@pytest.mark.parametrize("limit", [30, 45, 90])
def test_clauses_stay_within_the_limit(limit: int) -> None:
    text = "one two three four, five six seven. " * 20
    assert all(len(clause) <= limit for clause in texts(text, limit)[1:])


def test_run_without_spaces_is_cut() -> None:
    pieces = texts("x" * 300, limit=50)
    assert "".join(pieces) == "x" * 300
    assert max(map(len, pieces)) <= 100


def test_later_clause_prefers_the_last_sentence_end_that_fits() -> None:
    splitter = ClauseSplitter()
    splitter.feed("It is late. We should go. And then there are many other things to say, of course")
    assert splitter.take(40) == Clause("It is late. We should go.", "sentence")


def test_waits_for_the_end_of_a_sentence_unless_hurried() -> None:
    splitter = ClauseSplitter()
    splitter.feed("when the sun goes down, we will go hom")
    assert splitter.take(60) is None
    assert splitter.take(60, hurry=True) == Clause("when the sun goes down,", "phrase")
    assert splitter.take(60, hurry=True) == Clause("we will go", "word")
    assert splitter.take(60, hurry=True) is None, "the last word may still grow"


def test_too_long_sentence_is_cut_before_a_link_word() -> None:
    splitter = ClauseSplitter()
    splitter.feed("many people walk along the river because it is a very quiet place")
    assert splitter.take(50) == Clause("many people walk along the river", "word")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("**Bold**, *italic* and `code_name` ~~old~~", "Bold, italic and code name old"),
        ("## Heading\n- one\n- two", "Heading. one. two"),
        ("> quoted", "quoted"),
        ("See [the docs](https://example.com/a/b?c=1).", "See the docs."),
        ("[the docs", "the docs"),
        ("now](https://example.com/x) and", "now and"),
        ("![a cat](cat.png) sleeps", "a cat sleeps"),
        ("Go to https://www.example.com/a_b?c=1#d, please.", "Go to example.com, please."),
        ("It is at http://example.org.", "It is at example.org."),
        ("a<br>b", "a b"),
        ("| a | b |", "a, b,"),
        ("3 * 4 = 12", "3 × 4 = 12"),
        ("5 < 6 and 7 > 2", "5 < 6 and 7 > 2"),
        ("Great 😀👍🏽!", "Great!"),
        ("family 👨‍👩‍👧 time", "family time"),
        ("20°C, 10%, naïve café", "20°C, 10%, naïve café"),
        ("- , so it goes", "so it goes"),
        ("soft\N{SOFT HYPHEN}ware", "software"),
    ],
)
def test_markup_is_not_spoken(raw: str, expected: str) -> None:
    assert speakable(raw) == expected
