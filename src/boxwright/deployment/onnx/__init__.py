"""Export of a detector to ONNX, its quantisation, and the check that the file computes the same."""
