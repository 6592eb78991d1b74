"""What the detectors that write sentences share: their language, the decoder, and the engine that generates."""
