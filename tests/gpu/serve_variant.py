"""`python -m omni_app serve`, with values of the planned deploy file or switches of the quick start changed, to measure
what each is worth.

    python -m tests.gpu.serve_variant MODEL --set codec_chunk_frames=10 --switches parallel,no-locks,no-sampler-warm-up
    python -m tests.gpu.serve_variant MODEL --set talker.compilation_config.cudagraph_capture_sizes=[1,2,4,8,64]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from omni_app.server import foreground, prepare
from omni_app.server.budget import NAMES as STAGES
from omni_app.server.fast_start import NAMES
from omni_app.server.prepare import Order, Prepared
from omni_app.server.profile import Wishes
from omni_app.settings import Settings

Json = dict[str, Any]


def put(deploy: Json, path: str, value: Any) -> None:
    """At `stage.key.key`, which need not be there yet; `key` alone is put in place of its value wherever it stands."""
    if "." not in path:
        if not everywhere(deploy, path, value):
            raise SystemExit(f"the deploy file has no {path}")
        return
    stage, *keys, last = path.split(".")
    if stage not in STAGES:
        raise SystemExit(f"no stage is called {stage}; there are {', '.join(STAGES)}")
    node = deploy["stages"][STAGES.index(stage)]
    for key in keys:
        node = node.setdefault(key, {})
    node[last] = value


def everywhere(node: Any, key: str, value: Any) -> int:
    """How many values of `key` were replaced."""
    if isinstance(node, list):
        return sum(everywhere(item, key, value) for item in node)
    if not isinstance(node, dict):
        return 0
    found = sum(everywhere(item, key, value) for item in node.values())
    if key in node:
        node[key] = value
    return found + (key in node)


def changed(prepared: Prepared, values: list[str], switches: str, without: str = "") -> Prepared:
    """The same start with each `key=value` or `stage.key=value` put into the deploy file, and with other switches than
    the plan's, or without some of them."""
    launch = prepared.launch
    text, argv = launch.deploy_yaml, list(launch.argv)
    if values:
        deploy = yaml.safe_load(text)
        for given in values:
            key, _, value = given.partition("=")
            put(deploy, key, yaml.safe_load(value))
        text = yaml.safe_dump(deploy, sort_keys=False)
    place = argv.index("serve") - 1
    if unknown := {name for name in f"{switches},{without}".split(",") if name} - set(NAMES):
        raise SystemExit(f"unknown switches: {', '.join(sorted(unknown))}")
    if switches or without:
        kept = [name for name in (switches or argv[place]).split(",") if name not in without.split(",")]
        argv[place] = ",".join(kept) or "none"
    return replace(prepared, launch=replace(launch, deploy_yaml=text, argv=tuple(argv)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the deploy file")
    parser.add_argument("--switches", default="", help=f"in place of the plan's: {', '.join(NAMES)}")
    parser.add_argument("--without", default="", help="switches to leave out")
    parser.add_argument("--no-speech", action="store_true", help="text alone")
    parser.add_argument("--only-plan", action="store_true", help="print it and start nothing")
    given = parser.parse_args()
    settings = Settings()
    prepared = prepare.prepare(settings, Order(given.model, Wishes(not given.no_speech, users=given.users)))
    prepared = changed(prepared, given.set, given.switches, given.without)
    print("\n".join([prepared.launch.deploy_yaml, " ".join(prepared.launch.argv)]), flush=True)
    if not given.only_plan:
        foreground.serve(settings, prepared)


if __name__ == "__main__":
    main()
