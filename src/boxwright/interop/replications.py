"""Checkpoints of the replications: which of the four wrote them, their configuration, and tensors under our names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.interop.renaming import Shapes, heads_of
from boxwright.models.replication import Replication, ReplicationConfig, Variant, max_classes

_STABLE = ReplicationConfig("stable", coordinates=1000, first_class=1500, vocabulary=2003, length=501)
PUBLISHED: dict[Variant, ReplicationConfig] = {
    "pretrained": ReplicationConfig(),
    "mmdet": ReplicationConfig("mmdet"),
    "stable": _STABLE,
    "unofficial": replace(_STABLE, variant="unofficial", hidden=2048, length=500, max_objects=20),
}
REPOSITORIES: dict[Variant, str] = {
    "pretrained": "gaopengcuhk/Pretrained-Pix2Seq",
    "mmdet": "Sharpiless/Pix2seq-mmdetection",
    "stable": "gaopengcuhk/Stable-Pix2Seq",
    "unofficial": "gaopengcuhk/Unofficial-Pix2Seq",
}
COCO_IDS = 91  # 0 to 90; the first and ten others are unused

_MMDET = [  # from Pix2seq-mmdetection's names to Pretrained-Pix2Seq's
    (r"^backbone\.", "backbone.0.body."),
    (r"^bbox_head\.(?=vocal_|det_embed)", "transformer."),
    (r"^bbox_head\.", ""),
    (r"\.attentions\.0\.attn\.", ".self_attn."),
    (r"\.attentions\.1\.attn\.", ".multihead_attn."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".linear1."),
    (r"\.ffns\.0\.layers\.1\.", ".linear2."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.norms\.2\.", ".norm3."),
    (r"\.decoder\.post_norm\.", ".decoder.norm."),
]
_OURS = [  # from the names of the other three to ours
    (r"^backbone\.0\.body\.", "backbone."),
    (r"^input_proj\.(?=weight|bias)", "projection.0."),
    (r"^input_proj\.", "projection."),
    (r"^transformer\.encoder\.layers\.(\d+)\.self_attn\.", r"encoder.\1.attention."),
    (r"^transformer\.encoder\.layers\.", "encoder."),
    (r"^transformer\.decoder\.", "decoder."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.multihead_attn\.", ".cross_attention."),
    (r"attention\.(?:out_proj|proj)\.", "attention.output."),
    (r"\.linear1\.", ".mlp.0."),
    (r"\.linear2\.", ".mlp.3."),
    (r"^transformer\.vocal_classifier\.", "decoder.head.0."),
    (r"^vocab_embed\.layers\.0\.", "decoder.head.0."),
    (r"^vocab_embed\.layers\.1\.", "decoder.head.2."),
    (r"^vocab_embed\.layers\.2\.", "decoder.head.4."),
    (r"^transformer\.embedding\.LayerNorm\.", "decoder.input_norm."),
    (r"^transformer\.embedding\.position_embeddings\.weight$", "decoder.position_embedding"),
    (r"^transformer\.(?:embedding\.word_embeddings|vocal_embed)\.weight$", "decoder.token_embedding"),
    (r"^transformer\.det_embed\.weight$", "decoder.start_embedding"),
]
_FUSED = re.compile(r"(.*attention)\.(?:in_proj_|qkv\.)(weight|bias)")  # one tensor for queries, keys and values
_UNUSED = re.compile(r".*\.num_batches_tracked|bbox_head\.empty_weight")  # a counter; weights of the loss


def convert(tensors: Mapping[str, Tensor], heads: Any = None) -> ForeignCheckpoint | None:
    """A replication, or None if the tensors are of another network.

    Args:
        tensors: by their names in the file.
        heads: of all attention, which no shape shows; by default 8, as in all published files, which counts as a guess.

    Raises:
        UserError: for an impossible number of heads, or missing layers.
    """
    variant = recognise(tensors)
    if variant is None:
        return None
    tensors = {name: value for name, value in tensors.items() if not _UNUSED.fullmatch(name)}
    state, sources = to_ours(tensors, variant)
    heads, _, guesses = heads_of({"nheads": heads})
    config = describe(state, replace(PUBLISHED[variant], heads=heads))
    ids = range(max_classes(config))
    coco_ids = config.has_positions or len(ids) == COCO_IDS
    return ForeignCheckpoint(REPOSITORIES[variant], Replication, config, state, sources, [], ids, coco_ids, guesses)


def recognise(tensors: Mapping[str, Tensor]) -> Variant | None:
    """Which of the four wrote the file, by names that the others don't have; or None."""
    if "bbox_head.vocal_embed.weight" in tensors:
        return "mmdet"
    if "transformer.vocal_embed.weight" in tensors:
        return "pretrained"
    positions = tensors.get("transformer.embedding.position_embeddings.weight")
    if positions is None or not positions.ndim:
        return None
    return "unofficial" if len(positions) == PUBLISHED["unofficial"].length else "stable"


def to_ours(tensors: Mapping[str, Tensor], variant: Variant) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under our names, and the name of each in the file; unknown names stay, or nearly so."""
    state, sources = {}, {}
    for source, value in tensors.items():
        names = our_names(source, variant)
        parts = value.tensor_split(len(names)) if len(names) > 1 else (value,)
        state |= dict(zip(names, parts, strict=True))
        sources |= dict.fromkeys(names, source)
    tokens, start = state.get("decoder.token_embedding"), state.get("decoder.start_embedding")
    if tokens is not None and start is not None and tokens.shape[1:] == start.shape[1:]:
        state["decoder.token_embedding"] = torch.cat([tokens, state.pop("decoder.start_embedding")])
    return state, sources


def our_names(name: str, variant: Variant) -> list[str]:
    """The parameters or buffers that a tensor becomes."""
    for pattern, ours in _MMDET * (variant == "mmdet") + _OURS:
        name = re.sub(pattern, ours, name)
    fused = _FUSED.fullmatch(name)
    return [f"{fused[1]}.{part}.{fused[2]}" for part in ("query", "key", "value")] if fused else [name]


def describe(state: Mapping[str, Tensor], published: ReplicationConfig) -> ReplicationConfig:
    """The configuration, from the shapes of the tensors; where one is missing, as published."""
    p, shapes = published, Shapes(state)
    return replace(
        p,
        backbone="resnet101" if "backbone.layer3.22.conv1.weight" in state else "resnet50",
        encoder_layers=shapes.count(r"encoder\.(\d+)\.", p.encoder_layers),
        decoder_layers=shapes.count(r"decoder\.layers\.(\d+)\.", p.decoder_layers),
        dim=shapes.size("decoder.norm.weight", 0, p.dim),
        hidden=shapes.size("encoder.0.mlp.0.weight", 0, p.hidden),
        vocabulary=shapes.size(f"decoder.head.{4 * p.has_positions}.weight", 0, p.vocabulary),
        length=shapes.size("decoder.position_embedding", 0, p.length),
    )
