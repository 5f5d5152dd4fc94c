"""A visitor's file name, made safe to show. It is never a path to open."""

from __future__ import annotations

import re
import unicodedata

MAX_NAME = 80
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that are invisible or turn the text around (control, bidi, zero-width, private, unassigned)."""


def display_name(name: str) -> str:
    """The last part of a file name without invisible and bidi characters, at most 80 characters, its suffix kept.

    Not escaped for HTML: whoever displays it does that.
    """
    last = re.split(r"[/\\]", name)[-1]
    seen = "".join(" " if char.isspace() else char for char in last if char.isspace() or not _unseen(char))
    tidy = " ".join(seen.split())
    if not tidy.strip(". "):
        return "unnamed file"
    if len(tidy) <= MAX_NAME:
        return tidy
    suffix = re.search(r"\.\w{1,8}$", tidy)
    tail = "…" + (suffix.group() if suffix else "")
    return tidy[: MAX_NAME - len(tail)] + tail


def _unseen(char: str) -> bool:
    return unicodedata.category(char) in _UNSEEN
