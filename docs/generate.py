"""Writes the parts of the docs that come from the code: `python -m docs.generate`, or `--check` to only compare.

docs/settings.md      every option, from omni_app/settings.py
docs/architecture.md  the picture between its two markers, from the imports of omni_app
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from omni_app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BEGIN, END = "<!-- picture: begin -->", "<!-- picture: end -->"
GROUPS = ("ui", "server", "engines", "media", "wire")
"""Packages that stand in the picture as one box each; single files stand for themselves."""
EVERYWHERE = ("conversation", "errors", "settings", "scratch", "metrics", "__init__", "__main__", "pins")
"""Vocabulary that nearly every file imports; arrows to it would hide the road."""
MACHINE_DEPENDENT = {
    "data_dir": "the user's data folder; on Linux `~/.local/share/omni-app`",
    "cache_dir": "the user's cache folder; on Linux `~/.cache/omni-app`",
}
SETTINGS_HEAD = """# Settings

Every option of the app, made from `omni_app/settings.py` by `python -m docs.generate`. A flag (as in
`python app.py --port 8000` or `make run ARGS="--port 8000"`) wins over its environment variable, which wins over the
default.

| environment variable | flag | default | |
| --- | --- | --- | --- |
"""


def pages() -> dict[Path, str]:
    """The generated files' texts as they should be."""
    architecture = DOCS / "architecture.md"
    head, _, rest = architecture.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    return {
        DOCS / "settings.md": SETTINGS_HEAD + "\n".join(_rows()) + "\n",
        architecture: f"{head}{BEGIN}\n```mermaid\n{_picture()}\n```\n{END}{tail}",
    }


def _rows() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        flag = name.replace("_", "-")
        yield f"| `OMNI_{name.upper()}` | `--{flag}` | {_default(name, field)} | {field.description} |"


def _default(name: str, field: FieldInfo) -> str:
    if name in MACHINE_DEPENDENT:
        return MACHINE_DEPENDENT[name]
    value = field.default
    shown = value.get_secret_value() if hasattr(value, "get_secret_value") else value
    return f"`{str(shown).lower() if isinstance(shown, bool) else shown}`" if str(shown) else "empty"


def _picture() -> str:
    """A Mermaid flowchart of who imports whom; an arrow that a longer road says already is left out."""
    arrows = graph()
    lines = [f"  {start} --> {end}" for start in sorted(arrows) for end in sorted(_nearest(arrows, start))]
    return "\n".join(["flowchart TD", *lines])


def graph() -> dict[str, set[str]]:
    """Which box imports which."""
    arrows: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "omni_app").rglob("*.py")):
        for start, end in _arrows(path):
            arrows[start].add(end)
    return dict(arrows)


def _nearest(arrows: dict[str, set[str]], start: str) -> set[str]:
    beyond = set[str]().union(*(_reached(arrows, near) for near in arrows[start]))
    return arrows[start] - beyond


def _reached(arrows: dict[str, set[str]], start: str) -> set[str]:
    found = set[str]()
    waiting = [start]
    while waiting:
        new = arrows.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _arrows(path: Path) -> Iterator[tuple[str, str]]:
    start = _box(path.relative_to(ROOT).with_suffix("").parts)
    for name in _imported(ast.parse(path.read_text())):
        end = _box(tuple(name.split(".")))
        if start and end and start != end:
            yield start, end


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            base = node.module
            yield from (f"{base}.{alias.name}" if base == "omni_app" else base for alias in node.names)


def _box(parts: tuple[str, ...]) -> str:
    """The box that a module belongs to, empty for what is not ours or not shown."""
    if parts[0] != "omni_app" or len(parts) < 2 or parts[1] in EVERYWHERE:
        return ""
    return parts[1] if parts[1] in GROUPS else parts[1] + ".py"


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python -m docs.generate")
        return bool(stale)
    for path in stale:
        path.write_text(pages()[path])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
