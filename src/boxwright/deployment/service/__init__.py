"""The HTTP service: its routes, limits, batches and answers. Nothing here needs torch."""
