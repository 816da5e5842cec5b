"""Checks of the gradients, the accuracy promise, and the facts of this machine for a bug report."""
