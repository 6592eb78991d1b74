"""Checkpoints of DETR, of its authors and of Hugging Face: their configuration, and tensors under our names."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.interop.renaming import Shapes, rename, shared_settings
from boxwright.interop.resnets import TO_TIMM, Rules
from boxwright.models.detr import PUBLISHED, Detr, DetrConfig

AUTHORS, HUGGING_FACE = "facebookresearch/detr", "Hugging Face's DETR"
SIDE = 1333  # pixels; the longest side of an image in all published runs
COCO_ROWS = 91  # 0 to 90

_COMMON: Rules = [
    (r"^encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.(?:multihead|encoder)_attn\.", ".cross_attention."),
    (r"attention\.(?:out_proj|o_proj)\.", "attention.output."),
    (r"attention\.q_proj\.", "attention.query."),
    (r"attention\.k_proj\.", "attention.key."),
    (r"attention\.v_proj\.", "attention.value."),
    (r"^locate\.layers\.(\d+)\.", lambda m: f"locate.{2 * int(m[1])}."),
]
_AUTHORS: Rules = [
    (r"^backbone\.0\.body\.", "backbone.net."),
    (r"^input_proj\.", "projection."),
    (r"^transformer\.(?=encoder|decoder)", ""),
    (r"^query_embed\.weight$", "decoder.query_embedding"),
    (r"^class_embed\.", "classify."),
    (r"^bbox_embed\.", "locate."),
    (r"\.linear1\.", ".mlp.0."),
    (r"\.linear2\.", ".mlp.3."),
    *_COMMON,
]
_HUGGING_FACE: Rules = [
    (r"^model\.backbone\.(?:conv_encoder\.)?model\.", "backbone.net."),
    *TO_TIMM,
    (r"^model\.input_projection\.", "projection."),
    (r"^model\.query_position_embeddings\.weight$", "decoder.query_embedding"),
    (r"^model\.decoder\.layernorm\.", "decoder.norm."),
    (r"^model\.(?=encoder|decoder)", ""),
    (r"^class_labels_classifier\.", "classify."),
    (r"^bbox_predictor\.", "locate."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"^encoder(.*)\.final_layer_norm\.", r"encoder\1.norm2."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.(?:mlp\.)?fc1\.", ".mlp.0."),
    (r"\.(?:mlp\.)?fc2\.", ".mlp.3."),
    *_COMMON,
]


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any], file: str = "") -> ForeignCheckpoint | None:
    """A DETR, or None if the tensors are of another network.

    Args:
        tensors: by their names in the file.
        options: of the authors' run, as far as the file has them, or Hugging Face's configuration.
        file: its name: `dc5` in it means a dilated backbone, where no option tells.

    Raises:
        UserError: for a backbone that is no ResNet.
    """
    from_hub = "class_labels_classifier.weight" in tensors
    if not from_hub and not ({"query_embed.weight", "transformer.decoder.norm.weight"} <= tensors.keys()):
        return None
    state, sources, conflicts = rename(tensors, _HUGGING_FACE if from_hub else _AUTHORS)
    config, guesses = describe(state, options, file)
    project, rows = HUGGING_FACE if from_hub else AUTHORS, config.class_rows
    return ForeignCheckpoint(project, Detr, config, state, sources, conflicts, range(rows), rows == COCO_ROWS, guesses)


def describe(state: Mapping[str, Tensor], options: Mapping[str, Any], file: str) -> tuple[DetrConfig, list[str]]:
    """The configuration, from tensors and options, and the guesses made."""
    p, shapes = PUBLISHED, Shapes(state)
    settings, guesses = shared_settings(state, options, file, p)
    config = replace(
        p,
        **settings,
        image_size=SIDE,
        stride=16 if settings["dilated"] else 32,
        dim=shapes.size("projection.weight", 0, p.dim),
        queries=shapes.size("decoder.query_embedding", 0, p.queries),
        pre_norm="encoder.norm.weight" in state,
        norm_twice="model_type" in options and bool(options.get("auxiliary_loss")),
        class_rows=shapes.size("classify.weight", 0, COCO_ROWS + 1) - 1,
    )
    return config, guesses
