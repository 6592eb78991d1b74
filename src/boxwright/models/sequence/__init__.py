"""What sequence detectors share: token ids, training sequences, the decoder, and generation."""
