"""Benchmarks: `python -m benchmarks.<name> --help`, from the root of a checkout."""

from eavatar import threads

threads.set_environment()  # as for a verb
