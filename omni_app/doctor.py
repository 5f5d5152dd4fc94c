"""What works on this machine, what does not, and why: one line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

from omni_app import checks, hardware
from omni_app.checks import Finding, Patient
from omni_app.hardware import Machine
from omni_app.server.state import ServerFolder
from omni_app.settings import Settings

__all__ = ["Finding", "examine", "run"]

_LOOKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    checks.machine, checks.gpu, checks.driver, checks.disk, checks.app_packages, checks.serve_packages, checks.programs,
    checks.engine, checks.builtin_models, checks.model, checks.app_port, checks.serve_port, checks.microphone,
)  # fmt: skip


def examine(settings: Settings, machine: Machine, running: bool = False) -> list[Finding]:
    """Everything worth knowing, in the order in which to put it right. Nothing is changed, fetched or started.

    running: it is the app itself that asks, and so has its port.
    """
    patient = Patient(settings, machine, ServerFolder(settings.data_dir.expanduser()).read())
    looks = [look for look in _LOOKS if not (running and look is checks.app_port)]
    return [finding for look in looks for finding in look(patient)]


def run(settings: Settings, as_json: bool) -> int:
    """Print the findings; the exit status is 1 when one of them is a failure."""
    findings = examine(settings, hardware.detect(checks.folders(settings)))
    print(as_json_text(findings) if as_json else as_text(findings))
    return status(findings)


def status(findings: Iterable[Finding]) -> int:
    return int(any(finding.level == "fail" for finding in findings))


def as_json_text(findings: Iterable[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False)


def as_text(findings: Iterable[Finding]) -> str:
    marks = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
    return "\n".join(f"{marks[one.level]}  {one.name}: {one.value} ({one.reason})" for one in findings)
