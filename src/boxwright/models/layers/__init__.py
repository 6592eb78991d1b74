"""The layers that detectors are built of."""
