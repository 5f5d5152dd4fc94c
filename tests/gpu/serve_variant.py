"""`python -m omni_app serve`, with values of the planned deploy file or switches of the quick start changed, to measure
what each is worth.

    python -m tests.gpu.serve_variant MODEL --set codec_chunk_frames=10 --switches parallel,no-locks,no-sampler-warm-up
    python -m tests.gpu.serve_variant MODEL --set talker.compilation_config.cudagraph_capture_sizes=[1,2,4,8,64]
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import yaml

from omni_app.server import foreground, prepare
from omni_app.server.fast_start import SWITCHES
from omni_app.server.prepare import Order, Prepared
from omni_app.server.profile import Wishes
from omni_app.settings import Settings

STAGES = ("thinker", "talker", "code2wav")


def put(text: str, path: str, value: str) -> str:
    """The deploy file with the value at `stage.key.key`, which need not be there yet."""
    stage, *keys, last = path.split(".")
    deploy = yaml.safe_load(text)
    node = deploy["stages"][STAGES.index(stage)]
    for key in keys:
        node = node.setdefault(key, {})
    node[last] = yaml.safe_load(value)
    return yaml.safe_dump(deploy, sort_keys=False)


def changed(prepared: Prepared, values: list[str], switches: str) -> Prepared:
    """The same start with `key=value` put in place of each key's value, wherever it stands, `stage.key=value` there."""
    launch = prepared.launch
    text, argv = launch.deploy_yaml, list(launch.argv)
    for given in sorted(values, key=lambda given: "." in given.partition("=")[0]):  # `put` drops the comments
        key, _, value = given.partition("=")
        if "." in key:
            text = put(text, key, value)
            continue
        text, found = re.subn(rf"(?m)^(\s*(?:- )?{re.escape(key)}:) [^#]*#.*$", rf"\1 {value}  # a variant", text)
        if not found:
            raise SystemExit(f"the deploy file has no {key}")
    if switches:
        if unknown := set(switches.split(",")) - set(SWITCHES):
            raise SystemExit(f"unknown switches: {', '.join(sorted(unknown))}")
        argv[argv.index("serve") - 1] = switches
    return replace(prepared, launch=replace(launch, deploy_yaml=text, argv=tuple(argv)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the deploy file")
    parser.add_argument("--switches", default="", help=f"in place of the plan's: {', '.join(SWITCHES)}")
    given = parser.parse_args()
    settings = Settings()
    prepared = prepare.prepare(settings, Order(given.model, Wishes(users=given.users)))
    prepared = changed(prepared, given.set, given.switches)
    print("\n".join([prepared.launch.deploy_yaml, " ".join(prepared.launch.argv)]), flush=True)
    foreground.serve(settings, prepared)


if __name__ == "__main__":
    main()
