"""Hugging Face's DETR and Deformable DETR behind the contract of our detectors, in the shape of ours.

Used by `peers.py` and `detr_step.py`. Networks, losses and initialisation are those of the installed
`transformers`, with the losses of all decoder layers (`auxiliary_loss=True`) and dropout inside the MLPs, as published.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm import create_model
from torch import Tensor, nn

from boxwright.boxes import cxcywh_to_xyxy
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.deformable import DeformableConfig
from boxwright.models.detr import DetrConfig
from boxwright.models.layers.padding import cut, valid_ratios
from boxwright.models.losses.set_criterion import targets_of
from boxwright.types import Batch, Detector, Predictions

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class OurBackbone(nn.Module):
    """Our backbone, with its weights and frozen parts, in place of Hugging Face's."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.model = backbone

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        masks = pixel_mask[None].float()
        return [(x, F.interpolate(masks, size=x.shape[-2:])[0].bool()) for x in self.model(pixel_values)]


class HuggingFace(Detector):
    """A network of `transformers`.

    Args:
        shape: the dims; a `DeformableConfig` must be of a published form with one stage.
        names: the classes.
        pretrained: our backbone with ImageNet weights, instead of Hugging Face's own without weights.
    """

    def __init__(self, shape: DetrConfig | DeformableConfig, names: tuple[str, ...], pretrained: bool = True):
        super().__init__()
        self.names, self.image_size, self.softmax = names, shape.image_size, isinstance(shape, DetrConfig)
        strides = (shape.stride,) if isinstance(shape, DetrConfig) else shape.strides
        self.network = network(shape, strides, len(names))
        self.normalises = pretrained  # whether the backbone normalises by itself
        mean, std = (torch.tensor(colour).view(3, 1, 1) for colour in IMAGENET)
        if pretrained:
            ours = Backbone(shape.backbone, strides, dilated=shape.dilated)
            self.network.model.backbone, mean = OurBackbone(ours), ours.mean.clone()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("rows_K", torch.arange(len(names)))

    def backbone_parameters(self) -> list[nn.Parameter]:
        return list(self.network.model.backbone.parameters())

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor, targets: Batch | None = None) -> tuple[Any, ...]:
        """The inputs of the network, which computes its own loss; and valid ratios."""
        filled_BCHW, mask_BHW = cut(images_BCHW, sizes_B2, self.mean)
        if not self.normalises:
            filled_BCHW = (filled_BCHW - self.mean) / self.std
        return filled_BCHW, mask_BHW.long(), valid_ratios(images_BCHW, sizes_B2)

    def loss(self, inputs: tuple[Any, ...], batch: Batch) -> dict[str, Tensor]:
        images_BCHW, mask_BHW, valid_ratios_B4 = inputs
        targets = targets_of(batch, valid_ratios_B4, self.rows_K)
        rows = zip(targets.rows_BN, targets.boxes_BN4, targets.valid_BN, strict=True)
        labels = [{"class_labels": classes[valid], "boxes": boxes[valid]} for classes, boxes, valid in rows]
        return {"all": self.network(images_BCHW, mask_BHW, labels=labels).loss}

    @torch.no_grad()
    def decode(self, inputs: tuple[Any, ...]) -> Predictions:
        """See `post_process_object_detection` of each: the best class per query, or the best pairs of both."""
        images_BCHW, mask_BHW, valid_ratios_B4 = inputs
        outputs = self.network(images_BCHW, mask_BHW)
        boxes_BQ4 = cxcywh_to_xyxy(outputs.pred_boxes).clamp(0, 1) * valid_ratios_B4[:, None]
        if self.softmax:
            scores_BQ, labels_BQ = outputs.logits.softmax(-1)[..., :-1].max(-1)
            return Predictions(boxes_BQ4, scores_BQ, labels_BQ).best_first()
        scores_BD, index_BD = outputs.logits.sigmoid().flatten(1).topk(100)
        query_BD1 = (index_BD // len(self.names))[..., None]
        return Predictions(boxes_BQ4.gather(1, query_BD1.expand(-1, -1, 4)), scores_BD, index_BD % len(self.names))


def package() -> Any:
    """Hugging Face's package; exits with one line on how to install it where it is missing."""
    try:
        import transformers
    except ImportError:
        raise SystemExit("this needs Hugging Face's package: pip install transformers") from None
    transformers.utils.logging.set_verbosity_error()
    return transformers


def network(shape: DetrConfig | DeformableConfig, strides: tuple[int, ...], classes: int) -> nn.Module:
    """The network of `transformers` with random weights."""
    transformers = package()
    reductions = create_model(shape.backbone, features_only=True).feature_info.reduction()
    last = len(reductions) - 1
    backbone = {
        "model_type": "timm_backbone", "backbone": shape.backbone, "features_only": True,
        "use_pretrained_backbone": False, "out_indices": [last - reductions[::-1].index(s) for s in strides],
    }  # fmt: skip
    settings = {
        "backbone_config": backbone, "d_model": shape.dim, "encoder_ffn_dim": shape.hidden,
        "decoder_ffn_dim": shape.hidden, "encoder_attention_heads": shape.heads,
        "decoder_attention_heads": shape.heads, "encoder_layers": shape.encoder_layers,
        "decoder_layers": shape.decoder_layers, "num_queries": shape.queries, "dropout": shape.dropout,
        "activation_dropout": shape.dropout, "num_labels": classes, "auxiliary_loss": True,
    }  # fmt: skip
    if isinstance(shape, DetrConfig):
        return transformers.DetrForObjectDetection(transformers.DetrConfig(**settings))
    settings |= {"num_feature_levels": len(strides) + shape.extra_levels, "with_box_refine": shape.refine}
    settings |= {"encoder_n_points": shape.encoder_points, "decoder_n_points": shape.decoder_points}
    return transformers.DeformableDetrForObjectDetection(transformers.DeformableDetrConfig(**settings))
