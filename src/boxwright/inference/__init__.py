"""Prediction with any detector, from Python and from the command line."""
