"""Data sets in shards: tar files of many images each, and an index by which any image is read from anywhere."""
