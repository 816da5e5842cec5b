"""Benchmarks: what is timed, by whom, how it is compared, and what bounds it."""
