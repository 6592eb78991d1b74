"""The HTTP service: what it takes, how it is computed together, what it says. Nothing here needs torch."""
