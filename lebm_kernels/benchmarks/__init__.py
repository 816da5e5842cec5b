"""Benchmarks: cases, providers that compute them, their comparison, and the machine's limits."""
