"""What the docs say is so: generated pages are fresh, links lead somewhere, and the house keeps its own rules."""

from __future__ import annotations

import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
MOST_LINES = 400


def files(*suffixes: str) -> list[Path]:
    """Ours: environments, caches and data lie in hidden folders or in none of these."""
    folders = ("assets", "benchmarks", "docker", "docs", "omni_app", "quantize", "tests")
    found = [*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    return sorted(path for path in found if path.suffix in suffixes and path.is_file())


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_pages_are_fresh() -> None:
    stale = [path.name for path, text in generate.pages().items() if path.read_text() != text]
    assert stale == [], "run: python -m docs.generate"


@pytest.mark.parametrize("page", files(".md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for found in LINK.finditer(page.read_text()):
        target = found[1] or found[2]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


def test_no_file_needs_a_map() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files(".py", ".js", ".css", ".html", ".sh")
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


def test_imports_go_one_way() -> None:
    TopologicalSorter(generate.graph()).prepare()


def test_default_start_imports_no_torch() -> None:
    heavy = "torch transformers vllm llmcompressor onnxruntime xllamacpp"
    code = (
        "import sys, omni_app.ui.launch, omni_app.cli; "
        f"print(*[name for name in '{heavy}'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_messages_that_are_explained_are_still_said() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    said = "".join(path.read_text() for path in files(".py", ".js") if "tests" not in path.relative_to(ROOT).parts)
    code = re.sub(r'"\s*\n\s*f?"', "", said)
    quoted = re.findall(r'^\| "([^"]+)" \|', page, re.MULTILINE)
    assert len(quoted) > 10
    assert [quote for quote in quoted if quote not in code] == []
