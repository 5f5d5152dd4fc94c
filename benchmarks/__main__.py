"""Runs every benchmark that this machine can run."""

from benchmarks.talk import main

main()
