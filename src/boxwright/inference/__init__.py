"""A detector at work: images from anywhere in, boxes out."""
