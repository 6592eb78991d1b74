"""Prediction without torch: the predictor of an exported file, and what all predictors share.

`from boxwright.runtime import Detector` needs numpy, Pillow and onnxruntime, and nothing else.
"""

from boxwright.classes import Class
from boxwright.config import UserError
from boxwright.detections import Detections
from boxwright.runtime.onnx_detector import Detector
from boxwright.runtime.predictor_base import BasePredictor, ImageResult
from boxwright.runtime.sequence_types import GivenObjects, StreamObject, StreamToken

__all__ = [
    "BasePredictor",
    "Class",
    "Detections",
    "Detector",
    "GivenObjects",
    "ImageResult",
    "StreamObject",
    "StreamToken",
    "UserError",
]
