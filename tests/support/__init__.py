"""What several tests use: the oracle, the backends under test, random problems, processes."""
