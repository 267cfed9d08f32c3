"""A kernel in memory, with the same contract as the real one, for tests without root."""
