"""What `make audit` does: known vulnerabilities, bills of materials (CycloneDX) and licences of all that is pinned.

    python .ci/audit.py OUT PYTHON [FILE ...]

Run by an environment that has pip-audit and cyclonedx-bom. OUT is the folder for the results, PYTHON the interpreter
of the app's environment, whose installed packages tell their licences, and FILE the lists of pins. Exit status: 0 no
known vulnerability, 1 some, 2 it could not be found out; the bills and licences are written in any case.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SERVICE_SECONDS = 30
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2


def main(arguments: Sequence[str]) -> int:
    out, python, files = Path(arguments[0]), arguments[1], [Path(name) for name in arguments[2:]]
    out.mkdir(parents=True, exist_ok=True)
    for file in files:
        _cyclonedx(out / f"{_name(file)}.cdx.json", "requirements", str(file))
    _cyclonedx(out / "app-environment.cdx.json", "environment", python)
    licences(json.loads((out / "app-environment.cdx.json").read_text()), out / "licences.txt")
    print(f"Bills of materials (CycloneDX) and the licences of the app's packages are in {out}.")
    return max(_told(file, _audit(file)) for file in files)


def licences(bill: dict[str, Any], file: Path) -> None:
    """One line a package: name, version, licence."""
    rows = sorted(f"{one['name']} {one['version']}: {_licence(one)}" for one in bill.get("components", ()))
    file.write_text("\n".join(rows) + "\n")


def _licence(component: dict[str, Any]) -> str:
    said = (entry.get("expression") or entry.get("license", {}) for entry in component.get("licenses", ()))
    names = [one if isinstance(one, str) else one.get("id") or one.get("name", "") for one in said]
    # Some packages put the whole text where the name belongs.
    return ", ".join(dict.fromkeys(name.strip().splitlines()[0] for name in names if name.strip())) or "not stated"


def _audit(file: Path) -> dict[str, Any] | str:
    """What pip-audit found, or in words why it found nothing out."""
    command = [
        sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json",
        "--timeout", str(SERVICE_SECONDS), "-r", str(file),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return found


def _told(file: Path, found: dict[str, Any] | str) -> int:
    """Print the result of one list; returns its exit status."""
    if isinstance(found, str):
        print(f"{file}: not audited, the vulnerability service cannot be reached ({found}).")
        return UNKNOWN
    packages = found["dependencies"]
    unknown = [one["name"] for one in packages if "skip_reason" in one]
    bad = [one for one in packages if one.get("vulns")]
    for one in bad:
        ids = ", ".join(vulnerability["id"] for vulnerability in one["vulns"])
        fixed = sorted({version for vulnerability in one["vulns"] for version in vulnerability["fix_versions"]})
        print(f"{file}: {one['name']} {one['version']} has {ids}; fixed in {', '.join(fixed) or 'no version yet'}.")
    if len(unknown) == len(packages):
        print(f"{file}: not audited, the vulnerability service knows none of the {len(packages)} packages.")
        return UNKNOWN
    left = f"; unknown to the service: {', '.join(unknown)}" if unknown else ""
    print(f"{file}: {len(bad)} of {len(packages)} packages have known vulnerabilities{left}.")
    return VULNERABLE if bad else CLEAN


def _cyclonedx(target: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "cyclonedx_py", *arguments, "--of", "JSON", "-o", str(target)]
    subprocess.run(command, check=True)


def _name(file: Path) -> str:
    """`quantize/requirements.txt` -> `quantize-requirements`."""
    return "-".join(file.with_suffix("").parts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
