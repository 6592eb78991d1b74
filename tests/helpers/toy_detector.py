"""A sixth detector, as small as one can be: what somebody has to write who adds one."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from boxwright.models.backbones.backbone import Backbone
from boxwright.types import Batch, Detector, Predictions, pixels


@dataclass(frozen=True)
class ToyConfig:
    backbone: str = "test_efficientnet"
    image_size: int = 64


class Toy(Detector):
    """Predicts one box from the mean of a feature map: the first object of each image."""

    def __init__(self, config: ToyConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        self.config, self.names, self.image_size = config, tuple(names), config.image_size
        self.backbone = Backbone(config.backbone, [16], pretrained)
        self.head = nn.Linear(self.backbone.channels[0], 4 + len(names))

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> Tensor:
        return self.head(self.backbone(pixels(images_BCHW))[0].mean((2, 3)))

    def loss(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        l1 = (outputs[:, :4].sigmoid() - batch.boxes_BN4[:, 0]).abs().mean()
        return {"l1": l1, "class": cross_entropy(outputs[:, 4:], batch.labels_BN[:, 0])}

    def decode(self, outputs: Tensor) -> Predictions:
        scores_B1, labels_B1 = outputs[:, None, 4:].softmax(-1).max(-1)
        return Predictions(outputs[:, None, :4].sigmoid(), scores_B1, labels_B1)

    def backbone_parameters(self) -> list[nn.Parameter]:
        return self.backbone.known_parameters()

    def with_classes(self, names: tuple[str, ...], image_size: int | None = None, pretrained: bool = True) -> Any:
        toy = Toy(replace(self.config, image_size=image_size or self.image_size), names, pretrained=False)
        toy.backbone.load_state_dict(self.backbone.state_dict())
        return toy
