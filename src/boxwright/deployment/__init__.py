"""A detector as one file that runs without torch, proven equal to its source."""
