"""Checkpoints of Deformable DETR in its three published forms, of its authors and of Hugging Face: their configuration,
and tensors under our names.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from boxwright.interop.detr import COCO_ROWS, SIDE
from boxwright.interop.foreign import ForeignCheckpoint
from boxwright.interop.renaming import Renamed, Shapes, first_setting, rename, shared_settings
from boxwright.interop.resnets import TO_TIMM, Rules
from boxwright.models.deformable import PUBLISHED, Deformable, DeformableConfig

AUTHORS, HUGGING_FACE = "fundamentalvision/Deformable-DETR", "Hugging Face's Deformable DETR"

_COMMON: Rules = [
    (r"^(?:decoder\.)?class_embed\.", "classify."),
    (r"^(?:decoder\.)?bbox_embed\.(\d+)\.layers\.(\d+)\.", lambda m: f"locate.{m[1]}.{2 * int(m[2])}."),
    (r"^level_embed$", "encoder.level_embedding"),
    (r"^input_proj\.", "maps.steps."),
    (r"^reference_points\.", "point."),
    (r"^enc_output\.", "propose.0."),
    (r"^enc_output_norm\.", "propose.1."),
    (r"^pos_trans\.", "ask.0."),
    (r"^pos_trans_norm\.", "ask.1."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"\.self_attn\.", ".self_attention."),
    (r"\.(?:cross|encoder)_attn\.", ".attention."),
    (r"attention\.(?:out_proj|o_proj|output_proj)\.", "attention.output."),
    (r"attention\.q_proj\.", "attention.query."),
    (r"attention\.k_proj\.", "attention.key."),
    (r"attention\.(?:v_proj|value_proj)\.", "attention.value."),
    (r"attention\.sampling_offsets\.", "attention.offset."),
    (r"attention\.attention_weights\.", "attention.weight."),
]
_AUTHORS: Rules = [
    (r"^backbone\.0\.body\.", "backbone.net."),
    (r"^query_embed\.weight$", "query_embedding"),
    (r"^transformer\.", ""),
    (r"^decoder(.*)\.norm1\.", r"decoder\1.norm_of_points."),  # called norm1 there, but used second
    (r"^decoder(.*)\.norm2\.", r"decoder\1.norm1."),
    (r"\.norm_of_points\.", ".norm2."),
    (r"\.linear1\.", ".mlp.0."),
    (r"\.linear2\.", ".mlp.3."),
    *_COMMON,
]
_HUGGING_FACE: Rules = [
    (r"^model\.backbone\.(?:conv_encoder\.)?model\.", "backbone.net."),
    *TO_TIMM,
    (r"^model\.query_position_embeddings\.weight$", "query_embedding"),
    (r"^model\.", ""),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"^encoder(.*)\.final_layer_norm\.", r"encoder\1.norm2."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
    (r"\.(?:mlp\.)?fc1\.", ".mlp.0."),
    (r"\.(?:mlp\.)?fc2\.", ".mlp.3."),
    *_COMMON,
]
_HEAD = re.compile(r"(classify|locate)\.(\d+)(\..+)")


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any], file: str = "") -> ForeignCheckpoint | None:
    """A Deformable DETR, or None if the tensors are of another network.

    Args:
        tensors: by their names in the file.
        options: of the authors' run, as far as the file has them, or Hugging Face's configuration.
        file: its name: `dc5` in it means a dilated backbone, where no option tells.

    Raises:
        UserError: for a backbone that is no ResNet.
    """
    from_hub = "model.level_embed" in tensors
    if not from_hub and "transformer.level_embed" not in tensors:
        return None
    renamed = rename(tensors, _HUGGING_FACE if from_hub else _AUTHORS)
    refine = first_setting(options, "with_box_refine")
    if refine is None:
        refine = any("decoder.bbox_embed." in name for name in tensors)
    config, guesses = describe(renamed.state, options, file, bool(refine))
    state, sources, conflicts = share_heads(split_queries(renamed, config.dim), config)
    project, rows = HUGGING_FACE if from_hub else AUTHORS, config.class_rows
    return ForeignCheckpoint(
        project, Deformable, config, state, sources, conflicts, range(rows), rows == COCO_ROWS, guesses
    )


def describe(
    state: Mapping[str, Tensor], options: Mapping[str, Any], file: str, refine: bool
) -> tuple[DeformableConfig, list[str]]:
    """The configuration, from tensors and options, and the guesses made."""
    p, shapes = PUBLISHED, Shapes(state)
    settings, guesses = shared_settings(state, options, file, p)
    levels, heads = shapes.size("encoder.level_embedding", 0, 4), settings["heads"]
    strides = (8, 16, 16 if settings["dilated"] else 32)[-1 if levels == 1 else -3 :]
    queries = shapes.size("query_embedding", 0, 0) or first_setting(options, "two_stage_num_proposals", "num_queries")
    if not queries:
        guesses = [*guesses, f"{p.queries} of the proposals are guessed to be used, as in the published file"]
    config = replace(
        p,
        **settings,
        image_size=SIDE,
        strides=strides,
        extra_levels=max(levels - len(strides), 0),
        dim=shapes.size("encoder.level_embedding", 1, p.dim),
        encoder_points=_points(shapes, "encoder", levels * heads),
        decoder_points=_points(shapes, "decoder", levels * (settings["decoder_heads"] or heads)),
        queries=queries or p.queries,
        begin="proposals" if "propose.0.weight" in state else "table",
        refine=refine,
        class_rows=shapes.size("classify.0.weight", 0, COCO_ROWS),
    )
    return config, guesses


def _points(shapes: Shapes, part: str, maps_times_heads: int) -> int:
    """Points that a head samples on each map."""
    weights = shapes.size(f"{part}.layers.0.attention.weight.weight", 0, 4 * maps_times_heads)
    return max(1, weights // max(maps_times_heads, 1))


def split_queries(renamed: Renamed, dim: int) -> Renamed:
    """Split learned queries into positions and contents, which are side by side in the file."""
    state, sources = dict(renamed.state), dict(renamed.sources)
    if "query_embedding" in state and state["query_embedding"].ndim == 2:
        both_Q2E, source = state.pop("query_embedding"), sources.pop("query_embedding")
        state |= {"place_embedding": both_Q2E[:, :dim], "content_embedding": both_Q2E[:, dim:]}
        sources |= dict.fromkeys(("place_embedding", "content_embedding"), source)
    return Renamed(state, sources, renamed.conflicts)


def share_heads(renamed: Renamed, config: DeformableConfig) -> Renamed:
    """As many heads as the network has.

    Without refinement all layers share one head, which a file may have several times; with it, a file may have only one
    of several equal heads.
    """
    heads = (config.decoder_layers if config.refine else 1) + (config.begin == "proposals")
    state, sources, conflicts = dict(renamed.state), dict(renamed.sources), list(renamed.conflicts)
    found = [match for name in renamed.state if (match := _HEAD.fullmatch(name))]
    for group in ("classify", "locate"):
        only_first = {match[2] for match in found if match[1] == group} == {"0"}
        for match in (match for match in found if match[1] == group):
            name, first = match[0], f"{group}.0{match[3]}"
            if only_first:
                state |= {f"{group}.{n}{match[3]}": state[first] for n in range(1, heads)}
                sources |= {f"{group}.{n}{match[3]}": sources[first] for n in range(1, heads)}
            elif heads == 1 and name != first and first in state and int(match[2]) < config.decoder_layers:
                source, value = sources.pop(name), state.pop(name)
                if not value.equal(state[first]):
                    conflicts.append(source)
    return Renamed(state, sources, conflicts)
