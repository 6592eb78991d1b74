"""The networks of google-research/pix2seq as manifests describe them, and their test images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boxwright.interop.pix2seq_official import official_to_ours
from boxwright.models.pix2seq import Pix2Seq, Pix2SeqConfig
from golden import Arrays, draw, smooth_image


def network_config(manifest: Mapping[str, Any], dropout: bool = False) -> Pix2SeqConfig:
    """Our configuration of a manifest's network."""
    m = manifest["model_config"]
    task = manifest.get("task_config") or manifest["repo_full_config"]["task"]
    patches = m["resnet_variant"] == "c1"
    resnet = f"pix2seq_resnet{m.get('resnet_depth')}x{m.get('resnet_width_multiplier')}"
    stride = m["patch_size"] if patches else {"standard": 32, "c4": 16}[m["resnet_variant"]]
    positions = {"sin_cos": "sincos", "learned": "learned"}
    return Pix2SeqConfig(
        backbone="patches" if patches else resnet,
        image_size=max(m["image_size"]),
        stride=stride,
        grid=tuple(manifest["encoder_grid"]),
        encoder_positions=positions[m["pos_encoding"]],  # type: ignore[arg-type]
        cls_token=m["use_cls_token"],
        bridge=m["dec_proj_mode"],
        encoder_layers=m["num_encoder_layers"],
        encoder_dim=m["dim_att"],
        encoder_hidden=m["dim_att"] * (m["dim_mlp"] // m["dim_att"]),
        encoder_heads=m["num_heads"],
        decoder_layers=m["num_decoder_layers"],
        decoder_dim=m["dim_att_dec"],
        decoder_hidden=m["dim_att_dec"] * (m["dim_mlp_dec"] // m["dim_att_dec"]),
        decoder_heads=m["num_heads_dec"],
        decoder_positions=positions[m["pos_encoding_dec"]],  # type: ignore[arg-type]
        shared_embedding=m["shared_decoder_embedding"],
        output_bias=m["decoder_output_bias"],
        max_objects=task["max_instances_per_image_test"],
        length=m["max_seq_len"],
        bins=task["quantization_bins"],
        first_coordinate=m["coord_vocab_shift"],
        vocabulary=m["vocab_size"],
        dropout=m["drop_units"] if dropout else 0.0,
        drop_path=m["drop_path"] if dropout else 0.0,
        grammar=False,
    )


def build(manifest: Mapping[str, Any]) -> Pix2Seq:
    """The network with random weights; every class token is a class."""
    config = network_config(manifest)
    names = tuple(f"label {n}" for n in range(1, config.first_coordinate - 100))
    return Pix2Seq(config, names, pretrained=False)


def with_weights(manifest: Mapping[str, Any]) -> Pix2Seq:
    """The network with the weights of the formula."""
    network = build(manifest)
    weights = {v["name"]: draw(v["name"], v["shape"], v["kind"], v["fan_in"]) for v in manifest["variables"]}
    network.load_state_dict(official_to_ours(weights))
    return network.eval()


def stored_images(manifest: Mapping[str, Any], golden: Arrays) -> tuple[Tensor, Tensor]:
    """The images of a case, stored or by the formula, and their sizes: the whole canvas."""
    height, width = manifest["model_config"]["image_size"]
    count = len(golden["input_seq"])
    computed = [smooth_image(height, width, 1.3 * b) for b in range(count)]
    images_BHWC = golden["image"] if "image" in golden else np.stack(computed).astype(np.float32)
    return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), torch.tensor([[height, width]] * count)
