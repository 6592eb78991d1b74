"""Tensors of google-research/pix2seq checkpoints, under our names and in our layout."""

import re
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from boxwright.config import UserError

_BLOCK = r"model/encoder/resnet/block_groups/(\d+)/layers/(\d+)"
_LAYER = r"(?:model/encoder/transformer_encoder/enc_layers|model/decoder/decoder/dec_layers)/(\d+)"
_MODULES: list[tuple[str, str | Callable[[re.Match], str]]] = [  # of `_PARAMETERS`, what follows is appended
    (r"model/encoder/stem_conv", "backbone.projection"),
    (r"model/encoder/resnet/initial_conv_relu_max_pool/0/conv2d", "backbone.conv1"),
    (r"model/encoder/resnet/initial_conv_relu_max_pool/2/bn", "backbone.bn1"),
    (rf"{_BLOCK}/conv_relu_dropblock_layers/([036])/conv2d", lambda m: _block(m, f"conv{int(m[3]) // 3 + 1}")),
    (rf"{_BLOCK}/conv_relu_dropblock_layers/([147])/bn", lambda m: _block(m, f"bn{int(m[3]) // 3 + 1}")),
    (rf"{_BLOCK}/projection_layers/([01])/(?:conv2d|bn)", lambda m: _block(m, f"downsample.{m[3]}")),
    (r"model/encoder/stem_projection", "encoder.stem_projection"),
    (r"model/encoder/stem_ln", "encoder.stem_norm"),
    (r"model/encoder/output_ln", "encoder.norm"),
    (r"model/encoder/\w+\.Svis_pos_embedding", "encoder.positions.embedding"),
    (r"model/encoder/\w+\.Scls_token_embedding", "encoder.cls_token_embedding"),
    (rf"{_LAYER}/(?:mha|self)_ln", lambda m: _layer(m, "self_norm")),
    (rf"{_LAYER}/cross_ln", lambda m: _layer(m, "cross_norm")),
    (rf"{_LAYER}/(?:mha|self_mha)/_(query|key|value|output)_dense", lambda m: _layer(m, f"self_attention.{m[2]}")),
    (rf"{_LAYER}/cross_mha/_(query|key|value|output)_dense", lambda m: _layer(m, f"cross_attention.{m[2]}")),
    (rf"{_LAYER}/mlp/layernorms/0", lambda m: _layer(m, "mlp.norm")),
    (rf"{_LAYER}/mlp/mlp_layers/0/dense1", lambda m: _layer(m, "mlp.widen")),
    (rf"{_LAYER}/mlp/mlp_layers/0/dense2", lambda m: _layer(m, "mlp.narrow")),
    (r"model/proj", "bridge.projection"),
    (r"model/proj_ln", "bridge.norm"),
    (r"model/proj\.Svis_pos_embedding", "bridge.positions.embedding"),
    (r"model/proj_mlp/layernorms/0", "bridge.mlp.norm"),
    (r"model/proj_mlp/mlp_layers/0/dense1", "bridge.mlp.widen"),
    (r"model/proj_mlp/mlp_layers/0/dense2", "bridge.mlp.narrow"),
    (r"model/decoder/output_ln", "decoder.norm"),
    (r"model/decoder/\w+\.S(?:inp_)?token_embedding", "decoder.token_embedding"),
    (r"model/decoder/\w+\.Soutp_token_embedding", "decoder.output_embedding"),
    (r"model/decoder/\w+\.Sseq_pos_embedding", "decoder.position_embedding"),
    (r"model/decoder/\w+\.Soutp_bias", "decoder.output_bias"),
]
_PARAMETERS = {
    "": "",
    "/kernel": ".weight",
    "/bias": ".bias",
    "/gamma": ".weight",
    "/beta": ".bias",
    "/moving_mean": ".running_mean",
    "/moving_variance": ".running_var",
}
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def official_to_ours(tensors: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The state of a `Pix2Seq` of the same configuration.

    Args:
        tensors: by their names in the checkpoint, with or without the ending ``/.ATTRIBUTES/VARIABLE_VALUE``; only
            those of the model, none of the optimizer.

    Raises:
        UserError: for names that are not of such a network, all in one error.
    """
    names = {name: our_name(name.removesuffix(_SUFFIX)) for name in tensors}
    unknown = [name for name, ours in names.items() if ours is None]
    if unknown:
        raise UserError(f"no tensors of an official pix2seq: {', '.join(unknown)}.")
    state = {ours: _ours(name.removesuffix(_SUFFIX), tensors[name]) for name, ours in names.items() if ours}
    counters = [name.replace("running_mean", "num_batches_tracked") for name in state if name.endswith("running_mean")]
    return state | {name: torch.tensor(0) for name in counters}


def our_name(name: str) -> str | None:
    """Our parameter or buffer for an official tensor, by its name without the ending; None for an unknown one."""
    for pattern, module in _MODULES:
        match = re.fullmatch(rf"{pattern}(/\w+)?", name)
        if match and (match[match.re.groups] or "") in _PARAMETERS:
            return (module if isinstance(module, str) else module(match)) + _PARAMETERS[match[match.re.groups] or ""]
    return None


def _ours(name: str, values: np.ndarray) -> Tensor:
    """A tensor in torch's layout: outputs first, and heads, on an axis of their own in Keras, side by side."""
    if name.endswith("/kernel") and values.ndim == 4:
        values = values.transpose(3, 2, 0, 1)
    elif name.endswith("_output_dense/kernel"):
        values = values.reshape(-1, values.shape[-1]).T
    elif name.endswith("/kernel"):
        values = values.reshape(len(values), -1).T
    elif name.endswith("/bias"):
        values = values.reshape(-1)
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _block(match: re.Match, part: str) -> str:
    return f"backbone.stages.{match[1]}.{match[2]}.{part}"


def _layer(match: re.Match, part: str) -> str:
    stack = "encoder" if match[0].startswith("model/encoder") else "decoder"
    return f"{stack}.layers.{match[1]}.{part}"
