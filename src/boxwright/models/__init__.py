"""The detectors, one a file, and what several of them share."""
