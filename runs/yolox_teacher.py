"""YOLOX-nano (Megvii, Apache-2.0), as its authors export it to ONNX, as a teacher for `distill`: runs on the CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from boxwright.types import Batch, CellPredictions, Detector, FeatureMaps, Predictions, image_mask, pixels

SIDE, STRIDES = 416, (8, 16, 32)
PADDING = 114  # grey, from 0 to 255
MAPS = ("1028", "1070", "1112")  # tensors of the graph: the maps that the heads read, 64 channels
MIN_SCORE, MAX_IOU, DETECTIONS = 0.01, 0.45, 100


class Network(nn.Module):
    """Runs the network, gives the feature maps, and keeps the predictions of its cells."""

    def __init__(self, file: Path):
        super().__init__()
        model = onnx.load(file)
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in MAPS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        self.register_buffer("file", torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8))  # identity
        self.cells_BQX = torch.empty(0)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Maps (B, 64, H, W) of BGR images of 0 to 255."""
        rows = [self.session.run(("output", *MAPS), {"images": image[None].numpy()}) for image in images_BCHW]
        self.cells_BQX, *maps = (torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
        return maps


class YoloxNano(Detector):
    """A detector that can only teach.

    Args:
        file: `yolox_nano.onnx`, for one image of 416 x 416 pixels.
        names: COCO's 80 classes, in COCO's order.
    """

    def __init__(self, file: Path, names: tuple[str, ...]):
        super().__init__()
        self.names, self.image_size, self.config = names, SIDE, SimpleNamespace()
        self.network = Network(file)
        sides = [SIDE // stride for stride in STRIDES]
        corners = [torch.stack(torch.meshgrid(*[torch.arange(n)] * 2, indexing="xy"), -1).view(-1, 2) for n in sides]
        self.register_buffer("corners_Q2", torch.cat(corners))
        lengths = torch.tensor([n * n for n in sides])
        self.register_buffer("strides_Q1", torch.tensor(STRIDES).repeat_interleave(lengths)[:, None])

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> CellPredictions:
        """Scores of all classes and boxes of all cells."""
        mask_B1HW = image_mask(images_BCHW, sizes_B2)[:, None]
        self.network(torch.where(mask_B1HW, pixels(images_BCHW) * 255, float(PADDING)).flip(1).contiguous())
        cells_BQX = self.network.cells_BQX
        centres_BQ2 = (cells_BQX[..., :2] + self.corners_Q2) * self.strides_Q1 / SIDE
        halves_BQ2 = cells_BQX[..., 2:4].exp() * self.strides_Q1 / SIDE / 2
        boxes_BQ4 = torch.cat([centres_BQ2 - halves_BQ2, centres_BQ2 + halves_BQ2], -1).clamp(0, 1)
        return CellPredictions((cells_BQX[..., 4:5] * cells_BQX[..., 5:]).clamp(1e-6, 1 - 1e-6).logit(), boxes_BQ4)

    def cell_predictions(self, outputs: CellPredictions) -> CellPredictions:
        """All cells."""
        return outputs

    def feature_maps(self) -> FeatureMaps:
        """The maps that the heads read."""
        return FeatureMaps(self.network, list(STRIDES))

    def decode(self, outputs: CellPredictions) -> Predictions:
        """The best boxes of each class after NMS; rows without a box have score 0."""
        images: list[Any] = [self._decode_image(*rows) for rows in zip(*outputs, strict=True)]
        return Predictions(*(torch.stack(column) for column in zip(*images, strict=True)))

    def _decode_image(self, logits_QK: Tensor, boxes_Q4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cells_X, labels_X = (logits_QK.sigmoid() > MIN_SCORE).nonzero(as_tuple=True)
        scores_X = logits_QK[cells_X, labels_X].sigmoid()
        kept_X = batched_nms(boxes_Q4[cells_X], scores_X, labels_X, MAX_IOU)[:DETECTIONS]
        rows = boxes_Q4[cells_X[kept_X]], scores_X[kept_X], labels_X[kept_X]
        missing = DETECTIONS - len(kept_X)
        return tuple(torch.cat([x, x.new_zeros(missing, *x.shape[1:])]) for x in rows)  # type: ignore[return-value]
