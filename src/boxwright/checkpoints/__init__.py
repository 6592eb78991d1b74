"""Detectors as files: weights, adapters, and where they are found."""
