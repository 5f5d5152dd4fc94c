"""What the models' libraries do behind our back."""

import os
import subprocess
import sys
from pathlib import Path

LOAD = "import omni_app.engines.builtin.kokoro, onnxruntime; assert onnxruntime.get_available_providers()"


def identified(home: Path, **environ: str) -> bool:
    """Whether loading the speech model's runtime, in a fresh home, leaves the number by which it reports its use.

    The environment is a bare one, because the runtime keeps quiet where a variable such as ``CI`` is set.
    """
    bare = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_CACHE_HOME": str(home), **environ}
    subprocess.run([sys.executable, "-c", LOAD], env=bare, check=True, timeout=60)
    return any(home.rglob("deviceid"))


def test_onnxruntime_reports_nothing(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    assert not identified(tmp_path / "ours")
    assert identified(tmp_path / "theirs", ORT_DISABLE_TELEMETRY="0"), "it no longer says so here; look elsewhere"
