"""Text as it streams out of a language model, cut into clauses that can be spoken one after the other. No I/O."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Ending = Literal["sentence", "phrase", "word"]

_FIRST_MIN_CHARS = 12  # shorter ones ("Yes.") would be over before the next clause is made
_FIRST_MAX_CHARS = 60
_FIRST_WORDS_MIN, _FIRST_WORDS_MAX = 5, 7
_FENCE = "```"

_ABBREVIATION = re.compile(
    r"(?:\b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|no|fig|vol|approx|dept|inc|ltd|co|est|gen|cf|al|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)|\b(?:[a-z]\.)*[a-z])\.$",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(r"(?:^|\n)[ \t]*\d{1,3}[.)]$")
_BOUNDARY = re.compile(
    r"(?P<sentence>[.!?…]+[)\]\"'”’*_`]*(?=\s)|[。！？]|\n)"
    r"|(?P<phrase>[,;:][)\"'”’*_`]*(?=\s)|\s[—–-](?=\s)|[、，；：])"
)
_LINK_WORD_LIST = """
    and or but so because although while which who whose where when that than if unless until since
    to in on at by for from with without of about into over under between after before as
"""
_LINK_WORDS = frozenset(_LINK_WORD_LIST.split())


@dataclass(frozen=True, slots=True)
class Clause:
    text: str
    """Cleaned of markup; never empty."""
    ending: Ending
    """What it ends with, which says how long the pause after it should be."""


class ClauseSplitter:
    """Collects text deltas; hands out clauses no longer than the speaker has time to make.

    Code blocks are dropped. What is cut off is always whole words, except in a run of text without any space.
    """

    def __init__(self) -> None:
        self._fences = _FenceFilter()
        self._text = ""
        self._finished = False

    def feed(self, delta: str) -> None:
        self._text = (self._text + self._fences.feed(delta)).lstrip()

    def finish(self) -> None:
        """No more text will come; what is left may be taken whole."""
        self._text = (self._text + self._fences.finish()).strip()
        self._finished = True

    @property
    def pending_chars(self) -> int:
        return len(self._text)

    @property
    def exhausted(self) -> bool:
        return self._finished and not self._text

    def take_first(self, by_words: bool = True) -> Clause | None:
        """A short clause that can be heard soon: up to the first boundary, or (`by_words`) five to seven words."""
        return self._take(lambda: self._first_cut(by_words))

    def take(self, limit_chars: int, hurry: bool = False) -> Clause | None:
        """The most that fits in `limit_chars` and ends well; None means that it is better to wait for more text.

        `hurry` takes what is there up to the best boundary or the last whole word.
        """
        return self._take(lambda: self._later_cut(limit_chars, hurry))

    def _take(self, find_cut: Callable[[], _Cut | None]) -> Clause | None:
        while self._text:
            cut = find_cut()
            if cut is None:
                return None
            raw, self._text = self._text[: cut.end], self._text[cut.end :].lstrip()
            if spoken := speakable(raw):
                return Clause(spoken, cut.ending)
        return None

    def _first_cut(self, by_words: bool) -> _Cut | None:
        cuts = _boundaries(self._text)
        early = next((cut for cut in cuts if cut.end >= _FIRST_MIN_CHARS), None)
        words = [match.end() for match in re.finditer(r"\S+(?=\s)", self._text)]
        longest = words[_FIRST_WORDS_MAX - 1] if by_words and len(words) >= _FIRST_WORDS_MAX else None
        if early and (longest is None or early.end <= longest):
            return early
        if longest is not None:
            return _before_link_word(self._text, words[_FIRST_WORDS_MIN - 1], longest)
        if self._finished or len(self._text) > _FIRST_MAX_CHARS:
            return self._later_cut(_FIRST_MAX_CHARS, hurry=False)
        return None

    def _later_cut(self, limit: int, hurry: bool) -> _Cut | None:
        cuts = [cut for cut in _boundaries(self._text) if cut.end <= limit]
        sentences = [cut for cut in cuts if cut.ending == "sentence"]
        overfull = len(self._text) > limit
        if not overfull and self._finished:
            return _Cut(len(self._text), "sentence")
        if sentences:
            return sentences[-1]
        if not (overfull or hurry):
            return None
        long_enough = [cut for cut in cuts if cut.end >= limit // 3 or not overfull]
        return long_enough[-1] if long_enough else self._word_cut(min(limit, len(self._text)))

    def _word_cut(self, limit: int) -> _Cut | None:
        """At the last space before `limit`, or through a run without spaces that has become far too long."""
        words = [match.end() for match in re.finditer(r"\S+(?=\s)", self._text[: limit + 1])]
        if words:
            return _before_link_word(self._text, words[-1] // 2, words[-1])
        if self._finished or len(self._text) > 2 * limit:
            return _Cut(next_space if 0 < (next_space := self._text.find(" ")) <= 2 * limit else limit, "word")
        return None


@dataclass(frozen=True, slots=True)
class _Cut:
    end: int
    ending: Ending


def _boundaries(text: str) -> list[_Cut]:
    """Where a sentence or a phrase of `text` ends for certain; the character after it has been seen."""
    cuts = []
    for match in _BOUNDARY.finditer(text):
        if match["phrase"]:
            cuts.append(_Cut(match.end(), "phrase"))
        elif not _is_inner_dot(text, match):
            cuts.append(_Cut(match.end(), "sentence"))
    return cuts


def _is_inner_dot(text: str, match: re.Match[str]) -> bool:
    """Whether the full stop belongs to an abbreviation, an initial or a list number."""
    if match[0] != ".":
        return False
    before = text[max(0, match.end() - 12) : match.end()]
    return bool(_ABBREVIATION.search(before) or _LIST_NUMBER.search(before))


def _before_link_word(text: str, low: int, high: int) -> _Cut:
    """The last place in text[low:high] where a phrase may start (before "and", "because", "in", ...), else `high`."""
    spots = [m.start() for m in re.finditer(r"\s+(\w+)(?=\s)", text[: high + 1]) if m[1].lower() in _LINK_WORDS]
    fitting = [spot for spot in spots if low <= spot <= high]
    return _Cut(fitting[-1] if fitting else high, "word")


class _FenceFilter:
    """Drops ``` code blocks from a stream; a fence may be split over deltas."""

    def __init__(self) -> None:
        self._held = ""
        self._in_code = False

    def feed(self, delta: str) -> str:
        pieces = (self._held + delta).split(_FENCE)
        tail = pieces[-1]
        kept = len(tail.rstrip("`"))
        pieces[-1], self._held = tail[:kept], tail[kept:]
        out = ""
        for number, piece in enumerate(pieces):
            if number:
                self._in_code = not self._in_code
                out += "\n"
            if not self._in_code:
                out += piece
        return out

    def finish(self) -> str:
        held, self._held = self._held, ""
        return "" if self._in_code else held


_URL = re.compile(r"(?:https?://|\bwww\.)([^\s/()<>\[\]]+)[^\s()<>\[\]]*", re.IGNORECASE)
_REPLACEMENTS = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"!?\[([^\]]*)\]\([^)\s]*\)?", r"\1"),  # [text](address) and pictures
        (r"\]\([^)\s]*\)?", " "),  # the tail of a link that was cut in two
        (r"</?[A-Za-z][^<>]*>", " "),
        (r"^\s*(?:[-*_]\s*){3,}$", " "),  # a rule
        (r"^\s*\|?(?:\s*:?-{2,}:?\s*\|)+.*$", " "),  # the line under a table's head
        (r"^\s*(?:#{1,6}|>+|[-*+•])\s+", ""),
        (r"(?<=\d)\s*\*\s*(?=\d)", " × "),
        (r"[ \t]*\|[ \t]*", ", "),
        (r"(?<=[^\s.,;:!?…。])[*_`)\]]*\s*\n\s*(?=\S)", ". "),
        (r"[*`~#\[\]{}\\^]+", ""),
        (r"_+", " "),
    )
)
_CLEAN_UP = (
    (re.compile(r"\s+"), " "),
    (re.compile(r"\s+([,.;:!?])"), r"\1"),
    (re.compile(r"^[\s,.;:!?)\-—–]+"), ""),
)


def speakable(text: str) -> str:
    """`text` without markup, addresses and pictograms; empty when nothing in it can be said aloud."""
    text = _URL.sub(_spoken_host, text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = "".join(" " if _is_pictogram(char) else char for char in text if unicodedata.category(char) != "Cf")
    for pattern, replacement in _CLEAN_UP:
        text = pattern.sub(replacement, text)
    return text.strip() if any(char.isalnum() for char in text) else ""


def _spoken_host(match: re.Match[str]) -> str:
    """The host alone says where a link leads; a full stop that ended the sentence stays."""
    host = match[1].removeprefix("www.").rstrip(".,;:!?")
    return host + (match[0][-1] if match[0][-1] in ".,;:!?" else "")


def _is_pictogram(char: str) -> bool:
    if char in "°©®":
        return False
    return char == "\N{VARIATION SELECTOR-16}" or unicodedata.category(char) in {"So", "Sk", "Co", "Cs", "Cn", "Me"}
