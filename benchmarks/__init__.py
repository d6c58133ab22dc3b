"""Benchmarks: `python -m benchmarks.<name> --help`, from the root of a checkout."""
