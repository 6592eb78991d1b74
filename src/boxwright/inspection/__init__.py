"""A data set under the magnifying glass: its faults in words and pictures, what it is made of, and a corrected copy."""
