"""Losses, and the assignment of predictions to objects."""
