"""boxwright: annotated images in, transformer object detectors out.

The contents page: the verbs of the command line as functions, and what they give back. `models` is `list_models` here;
`export` and `serve` are in `boxwright.deployment`. Each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from boxwright.extras import how_to_install

if TYPE_CHECKING:
    from boxwright.bundled.catalogue import list_models
    from boxwright.bundled.demo import demo
    from boxwright.checkpoints.detector_file import merge
    from boxwright.comparison.compare import Comparison, compare
    from boxwright.config import Augment, Optim, UserError
    from boxwright.data.convert import convert
    from boxwright.data.read import read
    from boxwright.data.shards.write import shard
    from boxwright.detections import Detections
    from boxwright.drawing import draw
    from boxwright.evaluation.evaluate import evaluate
    from boxwright.explanation.explain import explain
    from boxwright.inference.merge_results import merge_results
    from boxwright.inference.predict import predict
    from boxwright.inference.predictor import Predictor, load
    from boxwright.inspection.check import check
    from boxwright.interop.import_weights import import_weights
    from boxwright.training.distill import distill
    from boxwright.training.run import train
    from boxwright.types import Batch, Detector, Predictions

__version__ = "0.1.0"

_PLACES = {
    "Augment": "boxwright.config",
    "Batch": "boxwright.types",
    "Comparison": "boxwright.comparison.compare",
    "Detections": "boxwright.detections",
    "Detector": "boxwright.types",
    "Optim": "boxwright.config",
    "Predictions": "boxwright.types",
    "Predictor": "boxwright.inference.predictor",
    "UserError": "boxwright.config",
    "check": "boxwright.inspection.check",
    "compare": "boxwright.comparison.compare",
    "convert": "boxwright.data.convert",
    "demo": "boxwright.bundled.demo",
    "distill": "boxwright.training.distill",
    "draw": "boxwright.drawing",
    "evaluate": "boxwright.evaluation.evaluate",
    "explain": "boxwright.explanation.explain",
    "import_weights": "boxwright.interop.import_weights",
    "list_models": "boxwright.bundled.catalogue",
    "load": "boxwright.inference.predictor",
    "merge": "boxwright.checkpoints.detector_file",
    "merge_results": "boxwright.inference.merge_results",
    "predict": "boxwright.inference.predict",
    "read": "boxwright.data.read",
    "shard": "boxwright.data.shards.write",
    "train": "boxwright.training.run",
}
__all__ = [
    "Augment", "Batch", "Comparison", "Detections", "Detector", "Optim", "Predictions", "Predictor", "UserError",
    "check", "compare", "convert", "demo", "distill", "draw", "evaluate", "explain", "import_weights", "list_models",
    "load", "merge", "merge_results", "predict", "read", "shard", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'boxwright' has no attribute {name!r}")
    try:
        return getattr(import_module(_PLACES[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(how_to_install(f"boxwright.{name}", error.name), name=error.name) from error


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
