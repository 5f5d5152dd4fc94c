"""HTTPS on request: a certificate for this machine, kept, renewed, and good enough for a client that trusts it."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from omni_app import certificate
from omni_app.errors import EngineUnavailable
from omni_app.runner import Runner
from omni_app.settings import Settings
from omni_app.ui.launch import serve
from tests.scripted import ScriptedEngine

NAMES = ("localhost", "127.0.0.1", "::1", "thor.local")


def test_it_is_kept_until_it_ends_or_the_names_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = certificate.ensure(tmp_path / "https", NAMES)
    assert certificate.ensure(tmp_path / "https", NAMES).fingerprint == first.fingerprint
    moved = certificate.ensure(tmp_path / "https", (*NAMES, "192.0.2.7"))
    assert moved.fingerprint != first.fingerprint
    monkeypatch.setattr(certificate, "RENEW_DAYS", certificate.VALID_DAYS + 1)
    assert certificate.ensure(tmp_path / "https", NAMES).fingerprint != moved.fingerprint


def test_browsers_find_nothing_wrong_but_who_made_it(tmp_path: Path) -> None:
    made = certificate.ensure(tmp_path, NAMES)
    found = x509.load_pem_x509_certificate(made.certificate.read_bytes())
    spoken = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(name.value) for name in spoken} == set(NAMES)
    assert found.not_valid_after_utc - found.not_valid_before_utc <= datetime.timedelta(days=398)
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    told = made.explanation(7860)
    assert "https://thor.local:7860" in told
    assert made.fingerprint in told
    assert made.key.name not in told


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineUnavailable, match="--data-dir"):
        certificate.ensure(tmp_path / "file" / "https", NAMES)


def test_the_page_is_served_over_https_to_who_trusts_the_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path, port=0, https=True)
    demo, url = serve(settings, Runner(ScriptedEngine(), "Chosen by the test.", 4))
    try:
        assert url.startswith("https://127.0.0.1:")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "https" / "certificate.pem"))
        page = httpx.get(url, headers={"accept": "text/html"}, verify=trusted)
        assert page.status_code == 200
        assert "Secure" in page.headers["set-cookie"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
    finally:
        demo.close()
    assert "Compare the fingerprint" in capsys.readouterr().out
