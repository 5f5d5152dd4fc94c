"""Make the two interpreters that `session.py` needs, on a CUDA host without a package index, from folders of wheels.

    python3 prepare_host.py --serve WHEELS --app WHEELS --into /opt/omni

INTO/serve gets the wheels of requirements-serve.txt; what is missing there, such as CUDA's libraries, it takes from
the interpreter that runs this. INTO/app gets those of requirements.txt; the builtin engine's may be left out.
Everything is unpacked and byte-compiled by all cores: an installer takes minutes, and without byte code each process
of the server imports for 20 s longer. Standard library only.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import site
import sysconfig
import venv
import zipfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

VLLM = "#!{python}\nfrom vllm.entrypoints.cli.main import main\n\nmain()\n"
LIBRARIES = ("purelib", "platlib")


def unpack(target: Path, wheel: Path) -> None:
    """What an installer would do with a wheel, but for scripts and headers."""
    with zipfile.ZipFile(wheel) as packed:
        for member in packed.infolist():
            name = _installed(member.filename)
            if name is None or member.is_dir():
                continue
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with packed.open(member) as source, path.open("wb") as out:
                shutil.copyfileobj(source, out, 2**20)
            if member.external_attr >> 16 & 0o111:
                path.chmod(0o755)


def _installed(name: str) -> str | None:
    """Where a wheel's file goes below site-packages; None for one that goes elsewhere."""
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return name
    kind, _, rest = rest.partition("/")
    return rest if kind in LIBRARIES and rest else None


def environment(folder: Path, wheels: Path, over: list[str]) -> Path:
    """A new virtual environment with these wheels before the folders `over`; returns its interpreter."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    if over:
        (packages / "zz_host.pth").write_text("\n".join(over))
    largest_first = sorted(wheels.glob("*.whl"), key=lambda wheel: -wheel.stat().st_size)
    if not largest_first:
        raise SystemExit(f"{wheels} holds no wheel")
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(unpack, packages), largest_first))
    compileall.compile_dir(packages, quiet=2, workers=0)
    print(f"{folder}: {len(largest_first)} wheels", flush=True)
    return folder / "bin/python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=Path, required=True, help="wheels of requirements-serve.txt")
    parser.add_argument("--app", type=Path, required=True, help="wheels of requirements.txt")
    parser.add_argument("--into", type=Path, required=True, help="a new folder for both environments")
    given = parser.parse_args()
    into = given.into.absolute()
    host = sorted({*site.getsitepackages(), *(sysconfig.get_path(kind) for kind in LIBRARIES)})
    python = environment(into / "serve", given.serve, host)
    (into / "serve/bin/vllm").write_text(VLLM.format(python=python))
    (into / "serve/bin/vllm").chmod(0o755)
    environment(into / "app", given.app, [])


if __name__ == "__main__":
    main()
