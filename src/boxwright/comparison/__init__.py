"""Comparison: detectors trained on one data set under equal conditions, and which one to take."""
