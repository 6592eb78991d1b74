"""A detector that waits."""

from threading import Event

import numpy as np

from boxwright.detections import Detections
from boxwright.runtime.predictor_base import BasePredictor


class Slow(BasePredictor):
    """Finds nothing, once it is let go; remembers its batches."""

    names, image_size = ("box",), 64

    def __init__(self):
        self.go, self.begun, self.batches = Event(), Event(), []

    def detect(self, images, threshold, classes):
        self.begun.set()
        assert self.go.wait(20)
        self.batches.append(len(images))
        if any(one.size == (13, 13) for one in images):
            raise RuntimeError("cannot")
        nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), self.names)
        return [nothing] * len(images)
