"""Every option once: field, environment variable `OMNI_<FIELD>`, command line flag `--<field>`, help and default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that only this machine reaches."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="OMNI_", cli_kebab_case=True, cli_implicit_flags=True, extra="ignore")

    engine: str = Field(
        "auto", description="Which engine answers: auto, builtin, vllm-omni, openai-compatible, transformers."
    )
    endpoint: str = Field("", description="Address of a running model server, for example http://host:8091.")
    endpoint_model: str = Field("", description="Which of that server's models answers; empty takes the first listed.")
    api_key: SecretStr = Field(SecretStr(""), description="Key sent to that server as a bearer token.")
    local_media: Path | None = Field(
        None,
        description="Folder whose files that server may read itself (its --allowed-local-media-path), on a disk that "
        "it shares with this app; media elsewhere are sent whole.",
    )
    silence_seconds: float = Field(
        60, gt=0, description="How long that server may send nothing in the middle of an answer, in seconds."
    )

    host: str = Field("127.0.0.1", description="Address to listen on; anything but loopback opens the app to others.")
    port: int = Field(7860, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    https: bool = Field(
        False, description="Serve over HTTPS with a certificate made on this machine: microphone and camera need it "
        "from other devices."
    )  # fmt: skip
    share: bool = Field(False, description="Open a public Gradio share link.")
    auth: SecretStr = Field(SecretStr(""), description="user:password that visitors must give; empty for none.")
    serve_key: SecretStr = Field(
        SecretStr(""), description="Bearer token that callers of /v1, /metrics and the tools must send; empty for none."
    )

    hub_login: Literal["off", "optional", "required"] = Field(
        "off", description="Sign in with Hugging Face: off; optional, to push models with one's own token; required, "
        "and nobody else gets in. Takes an OAuth application; a Space that has one makes it optional."
    )  # fmt: skip

    serve_model: str = Field(
        "", description="Folder of a model to serve from the start, where a GPU can hold it; until then, or where none "
        "can, the builtin engine answers."
    )  # fmt: skip
    serve_venv: Path = Field(
        Path(".venv-serve"), description="Environment of the model's server; `make serve` builds it."
    )
    serve_host: str = Field("127.0.0.1", description="Address that the model's server listens on.")
    serve_port: int = Field(8091, ge=1, le=65535, description="Port of the model's server.")
    operator: SecretStr = Field(
        SecretStr(""),
        description="Password to start and stop the model's server and to quantize; without one, that works only from "
        "this machine, and only while the app listens on this machine only and no proxy stands in front.",
    )

    data_dir: Path = Field(
        Path(platformdirs.user_data_dir("omni-app")),
        description="Where conversations and their media are kept.",
    )
    cache_dir: Path = Field(
        Path(platformdirs.user_cache_dir("omni-app")),
        description="Where model files are kept.",
    )

    builtin_model: str = Field(
        "", description="Another GGUF for the builtin engine: a path, or hf:owner/repo/file.gguf."
    )
    builtin_speech: Literal["auto", "kokoro", "espeak"] = Field(
        "auto", description="Speech of the builtin engine; auto takes Kokoro where it keeps up with real time."
    )

    transformers_model: str = Field(
        "", description="Model of the transformers engine: the folder of Qwen3-Omni, or its owner/name on the hub."
    )
    transformers_precision: Literal["bf16", "nf4", "fp4", "fp32"] = Field(
        "bf16", description="How its weights are held; nf4 and fp4 are BitsAndBytes 4-bit, fp32 is for processors."
    )
    transformers_talker: bool = Field(
        True, description="Load its voice too; without it the model takes 7 GB less and only writes."
    )

    max_text_chars: int = Field(20_000, ge=1, description="Longest message, in characters.")
    max_upload_mb: int = Field(100, ge=1, description="Largest file, in megabytes.")
    max_image_megapixels: int = Field(50, ge=1, description="Largest picture, in megapixels.")
    max_audio_seconds: int = Field(600, ge=1, description="Longest sound, in seconds.")
    max_video_seconds: int = Field(300, ge=1, description="Longest clip, in seconds.")
    max_media_parts: int = Field(8, ge=1, description="Most files in one message.")
    max_replies: int = Field(16, ge=1, description="Most answers made at one time; more are refused with a clear word.")

    max_waiting: int = Field(64, ge=1, description="Most events of the page that may wait; more are told to come back.")
    visitor_replies: int = Field(
        0, ge=0, description="Most answers made for one visitor at one time; 0 for no limit, on a Space 2."
    )
    visitor_per_minute: int = Field(
        0, ge=0, description="Most questions of one visitor in a minute; 0 for no limit, on a Space 20."
    )
    proxies: int = Field(
        0, ge=0, description="Reverse proxies in front whose X-Forwarded-For tells a visitor's address; on a Space 1."
    )
    idle_minutes: float = Field(
        0, ge=0, description="Let go of the engine's memory after so many minutes without a question; the next one "
        "loads it again. 0 for never, on a Space 30."
    )  # fmt: skip

    @field_validator("local_media", "serve_venv", "data_dir", "cache_dir")
    @classmethod
    def _at_home(cls, path: Path | None) -> Path | None:
        try:
            return path and path.expanduser()
        except RuntimeError as error:
            raise ValueError(f"there is no user whose folder {path} could be in") from error

    @field_validator("auth")
    @classmethod
    def _names_both(cls, auth: SecretStr) -> SecretStr:
        user, _, password = auth.get_secret_value().partition(":")
        if auth.get_secret_value() and not (user and password):
            raise ValueError("write it as user:password; without both, everybody would be let in")
        return auth
