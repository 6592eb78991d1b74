"""Evaluation of a detector: COCO's numbers, a confusion matrix, pictures and a page."""
