"""A sequence detector that may copy from proposals: what `pix2seq` and `patchseq` share in that form."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from boxwright.config import require
from boxwright.models.backbones.backbone import Backbone
from boxwright.models.layers.class_rows import copy_rows, copy_weights, shared_rows
from boxwright.models.sequence.proposal_decoder import ProposalDecoder
from boxwright.models.sequence.proposal_targets import decoder_losses
from boxwright.models.sequence.proposals import STRIDES, ProposalEncoder, ProposalOutputs, proposal_losses
from boxwright.models.sequence.sequence_detector import SequenceDetector
from boxwright.types import Batch, CellPredictions, FeatureMaps, image_mask, pixels

BY_CLASS = ("proposer.head.many", "proposer.rescore", "decoder.own_class", "decoder.rescore")  # a row for each class


@dataclass(frozen=True, kw_only=True)
class CopyingConfig:
    """What the shapes of detectors have in common that may copy.

    Attributes:
        proposals: cells of a dense head from which objects are copied, one decoder step each; 0 for none.
        channels, depth: width of the head's pyramid, and convolutions of each of its towers.
    """

    proposals: int = 0
    channels: int = 96
    depth: int = 2

    @property
    def published(self) -> bool:
        """Whether it has no proposals."""
        return not self.proposals


class CopyingDetector(SequenceDetector):
    """A sequence detector with a `proposer` has a decoder that copies from its proposals; without, it is as published.

    Attributes:
        proposer: finds the proposals, or None.
    """

    # With a decoder as published none of these exist; what is computed object by object is in fp32 anyway.
    fp32_modules = (
        "many", "distance", "enter", "place", "refine", "spread", "rescore", "point_key", "from_proposal",
    )  # fmt: skip
    capacity_hint = "; `detector.lengthen({})` makes room"
    proposer: ProposalEncoder | None

    def __init__(self) -> None:
        super().__init__()
        self.proposer = None

    def add_proposals(self, layers: int, dim: int, hidden: int, heads: int, pretrained: bool) -> None:
        """Make the backbone, the proposer and the decoder.

        Args:
            layers, dim, hidden, heads: of the decoder; proposals have its width, too.
            pretrained: start the backbone from ImageNet weights.
        """
        c, classes = self.config, len(self.names)
        self.backbone = Backbone(c.backbone, STRIDES, pretrained)
        self.proposer = ProposalEncoder(self.backbone.channels, classes, c.proposals, c.channels, c.depth, dim)
        self.decoder = ProposalDecoder(classes, layers, dim, hidden, heads, c.dropout, c.drop_path)

    def propose(self, images_BCHW: Tensor, sizes_B2: Tensor) -> ProposalOutputs:
        """The proposals of a batch; H and W may be any size, padding is filled with the mean colour."""
        assert self.proposer is not None
        mask_B1HW = image_mask(images_BCHW, sizes_B2)[:, None]
        filled_BCHW = torch.where(mask_B1HW, pixels(images_BCHW), self.backbone.mean)
        features = self.backbone(filled_BCHW.contiguous(memory_format=torch.channels_last))
        return self.proposer(features, images_BCHW.shape[-2:], self.canvas_vocabulary(images_BCHW.shape[-2:]))

    def lengthen(self, objects: int) -> None:
        """Make room for more objects in a sequence.

        Predictions of the first objects stay the same; the others are learned from images with more objects. Without
        proposals, they begin with the positions of the last object that there was room for.

        Args:
            objects: how many, at least as many as there is room for.

        Raises:
            UserError: if there is room for more already, or positions are sines.
        """
        most = self.config.max_objects
        require(objects >= most, f"a sequence has room for {most} objects already, not {objects}.")
        if self.proposer is None:  # with proposals, objects have no positions
            self.lengthen_positions(objects - most)
        self.config = self.config_for(objects)

    def lengthen_positions(self, more: int) -> None:
        """Add positions of objects to the decoder's table."""
        raise NotImplementedError

    def config_for(self, objects: int) -> Any:
        """The configuration with this `max_objects`."""
        return replace(self.config, max_objects=objects)

    def canvas_vocabulary(self, size: torch.Size) -> Any:
        """The token ids for a canvas of this height and width."""
        raise NotImplementedError

    def copying_loss(self, outputs: ProposalOutputs, batch: Batch) -> dict[str, Tensor]:
        """`cell_...` and `proposal_...`: of the dense head and the proposals; `box` and `class`: of the decoder."""
        return proposal_losses(outputs, batch) | decoder_losses(self.decoder, outputs, batch, self.config.max_objects)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the timm network; published backbones of `pix2seq` have no pretrained weights."""
        return self.backbone.known_parameters()

    def feature_maps(self) -> FeatureMaps:
        """The pyramid, where there is one, else the backbone's map."""
        if self.proposer is not None:
            return FeatureMaps(self.proposer.pyramid, list(STRIDES))
        return FeatureMaps(self.backbone, self.backbone.strides if self.backbone.known_parameters() else [])

    def cell_predictions(self, outputs: Any) -> CellPredictions | None:
        """Scores and boxes of all cells of the dense head, where there is one."""
        if self.proposer is None:
            return None
        return CellPredictions(outputs.cells.many_BQK, outputs.cells.boxes_BQ4)

    def decoder_memory(self, outputs: Any) -> Any:
        """The proposals, where there are any, else what the encoder gives."""
        return outputs if self.proposer is None else outputs.proposals

    def copy_to(self, detector: "CopyingDetector") -> None:
        """Copy the weights to a detector with proposals, for other classes; those of the same name keep theirs."""
        assert self.proposer is not None
        pairs = shared_rows(self.names, range(len(self.names)), detector.names)
        by_row = {f"{name}.{kind}": pairs for name in BY_CLASS for kind in ("weight", "bias")}
        untold = (len(self.names), len(detector.names))
        by_row |= {"decoder.class_embedding": [*pairs, untold], "proposer.enter.weight": []}
        copy_weights(self, detector, by_row)
        width = self.proposer.enter.in_features - len(self.names)
        columns = [(n, n) for n in range(width)] + [(width + old, width + new) for old, new in pairs]
        old, new = (part.proposer.enter.weight.detach().T for part in (self, detector))  # type: ignore[union-attr]
        copy_rows(old, new, columns)
