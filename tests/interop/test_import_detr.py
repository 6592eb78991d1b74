import argparse
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from boxwright.checkpoints.detector_file import load_detector
from boxwright.config import UserError
from boxwright.interop.import_weights import import_weights
from boxwright.models.deformable import Deformable
from boxwright.models.detr import Detr
from helpers.detr_files import (
    AUTHORS,
    FORMS,
    HUGGING_FACE,
    convert,
    empty,
    new_names,
    published_config,
    read,
    sample,
    shapes,
)

COUNTS = {"detr": 458, "hf_detr": 530, "hf_detr_plain_resnet": 530}


@pytest.fixture(scope="module")
def small():
    """Small networks and their tensors, by kind; made once."""
    return {which: sample(which) for which in (*AUTHORS, *HUGGING_FACE)}


@torch.no_grad()
def says(network, seed=1):
    """Boxes and scores for two images of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    found = network.decode(network(torch.rand(2, 3, 96, 96, generator=generator), torch.tensor([[96, 80], [64, 96]])))
    return torch.cat([found.boxes_BD4, found.scores_BD[..., None]], -1)


@pytest.mark.parametrize("which", [*AUTHORS, *HUGGING_FACE, "hf_detr_plain_resnet"])
def test_the_published_networks_are_recognised_by_their_tensors(which):
    tensors, options = empty(which), read(which)
    assert len(tensors) == COUNTS.get(which, len(tensors))
    found = convert(tensors, options)
    expected = published_config("hf_detr" if which == "hf_detr_plain_resnet" else which)
    assert found.config == expected
    assert found.ids == range(91)
    assert found.coco_ids
    assert not found.unknown
    with torch.device("meta"):
        own = (Detr if "detr" in which else Deformable)(expected, (), pretrained=False).state_dict()
    own = {name: value.shape for name, value in own.items() if not name.endswith("num_batches_tracked")}
    assert {name: value.shape for name, value in found.state.items()} == own


def options_of(which, config):
    """What a run's options, or a configuration, tell of a small network."""
    if which not in HUGGING_FACE:
        options = {"nheads": config.heads, "dilation": False, "dropout": config.dropout}
        return options | ({"num_queries": config.queries} if "two_stage" in which else {})
    options: dict[str, Any] = {
        "model_type": "detr",
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
    }
    options |= {"dropout": config.dropout}
    if "deformable" in which:
        options |= {"model_type": "deformable_detr", "with_box_refine": config.refine, "num_queries": 300}
        options |= {"two_stage": config.begin == "proposals", "two_stage_num_proposals": config.queries}
    return options


@pytest.mark.parametrize("which", [*AUTHORS, *HUGGING_FACE])
def test_renamed_tensors_give_the_same_outputs(small, which):
    network, tensors = small[which]
    for named in (tensors, new_names(tensors)) if which in HUGGING_FACE else (tensors,):
        found = convert(named, options_of(which, network.config))
        assert replace(found.config, image_size=96) == network.config
        other = found.detector(found.config, network.names, pretrained=False).eval()
        other.load_state_dict(dict(found.state))
        assert torch.equal(says(other), says(network))


@pytest.mark.parametrize("which", ["detr", "deformable_two_stage"])
def test_files_of_the_authors_are_imported(small, tmp_path, which, capsys):
    network, tensors = small[which]
    options = argparse.Namespace(**options_of(which, network.config))
    torch.save({"model": tensors, "args": options, "epoch": 49}, tmp_path / "x.pth")
    import_weights(tmp_path / "x.pth", tmp_path / "ours", classes=",".join(network.names), image_size=96)
    ours = load_detector(tmp_path / "ours")
    assert replace(ours.config, class_ids=()) == network.config
    assert torch.equal(says(ours), says(network))
    assert "guessed" not in capsys.readouterr().out
    assert ours.card["parity"]["tensors of the file"] == len(tensors)


def test_pre_norm_is_recognised(tmp_path):
    network, tensors = sample("detr", pre_norm=True)
    found = convert(tensors, options_of("detr", network.config))
    assert found.config == replace(network.config, image_size=1333)
    assert {name: value.shape for name, value in found.state.items()} == {
        name: value.shape for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }


def test_what_no_tensor_shows_is_guessed_and_noted():
    tensors = empty("detr")
    plain = convert(tensors, {}, "detr-r50-e632da11.pth")
    dilated = convert(tensors, {}, "detr-r50-dc5-f0fb7ef5.pth")
    assert (plain.config.stride, plain.config.dilated) == (32, False)
    assert (dilated.config.stride, dilated.config.dilated) == (16, True)
    assert [len(found.guesses) for found in (plain, dilated)] == [2, 2]
    assert "dilated (DC5), by the file's name" in dilated.guesses[0]
    assert convert(tensors, {"nheads": 8, "dilation": True}).config == dilated.config
    assert convert(tensors, {"nheads": 8, "dilation": True}).guesses == []


def test_a_deeper_resnet_is_recognised():
    tensors = empty("detr")
    for block in range(6, 23):
        for name, shape in shapes("detr").items():
            if "layer3.5." in name:
                tensors[name.replace("layer3.5.", f"layer3.{block}.")] = torch.zeros(()).expand(shape)
    assert convert(tensors, {}).config.backbone == "resnet101"
    del tensors["backbone.0.body.layer4.2.conv1.weight"]
    tensors = {name: value for name, value in tensors.items() if "layer4.2" not in name}
    with pytest.raises(UserError, match=r"3 \+ 4 \+ 23 \+ 2 blocks in four stages, which is none of resnet101, "):
        convert(tensors, {})


def test_levels_points_and_dilation_of_a_deformable():
    tensors = empty("hf_deformable_plain")
    options = {**read("hf_deformable_plain"), "encoder_attention_heads": 4, "decoder_attention_heads": 16}
    config = convert(tensors, options).config
    assert (config.heads, config.decoder_heads) == (4, 16)
    assert (config.encoder_points, config.decoder_points) == (8, 2)
    tensors["model.level_embed"] = torch.zeros(5, 256)
    assert convert(tensors, {**options, "dilation": True}).config.strides == (8, 16, 16)
    assert convert(tensors, options).config.extra_levels == 2
    tensors["model.level_embed"] = torch.zeros(1, 256)
    assert convert(tensors, options).config.strides == (32,)


@pytest.mark.parametrize("which", ["hf_deformable_plain", "hf_deformable_box_refine", "hf_deformable_two_stage"])
def test_any_one_of_the_names_of_a_tensor_is_enough(small, which):
    network, tensors = small[which]
    options = options_of(which, network.config)
    inside = {
        (f"model.decoder.{name}" if name.startswith(("class_embed", "bbox_embed")) else name): value
        for name, value in tensors.items()
    }
    one, other = convert(tensors, options), convert(inside, options)
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    both = convert(tensors | inside, options)
    assert not both.unknown
    name = "model.decoder.bbox_embed.0.layers.0.weight"
    assert convert(tensors | inside | {name: inside[name] + 1}, options).unknown == [name]


def test_heads_that_a_file_leaves_out_are_equal_to_the_first(small):
    network, tensors = small["hf_deformable_box_refine"]
    lean = {name: value for name, value in tensors.items() if not name.startswith("class_embed.1")}
    found = convert(lean, options_of("hf_deformable_box_refine", network.config))
    assert torch.equal(found.state["classify.1.weight"], tensors["class_embed.0.weight"])


def test_layers_of_a_plain_network_share_one_head(small):
    network, tensors = small["deformable_plain"]
    again = {name.replace("_embed.0.", "_embed.1."): value for name, value in tensors.items() if "_embed.0." in name}
    options = options_of("deformable_plain", network.config)
    assert convert(tensors | again, options).state.keys() == convert(tensors, options).state.keys()
    again["class_embed.1.bias"] = again["class_embed.1.bias"] + 1
    assert convert(tensors | again, options).unknown == ["class_embed.1.bias"]


def refused(source, out, match):
    with pytest.raises(UserError, match=match) as error:
        import_weights(source, out)
    assert "\n" not in str(error.value)
    assert not out.with_suffix(".safetensors").exists()
    return str(error.value)


def test_all_faults_are_listed_at_once(small, tmp_path):
    network, tensors = small["deformable_two_stage"]
    changes = {
        "transformer.tgt_embed.weight": torch.ones(2, 2),
        "transformer.encoder.layers.0.norm1.weight": torch.ones(3),
        "transformer.decoder.layers.0.self_attn.in_proj_bias": torch.full((192,), torch.nan),
    }
    kept = {name: value for name, value in tensors.items() if name != "transformer.enc_output.bias"}
    torch.save({"model": kept | changes, "args": argparse.Namespace(nheads=4)}, tmp_path / "x.pth")
    error = refused(tmp_path / "x.pth", tmp_path / "ours", "looks like fundamentalvision/Deformable-DETR, but does not")
    assert "unknown: tgt_embed.weight" in error or "unknown: transformer.tgt_embed.weight" in error
    assert "missing (by our names): propose.0.bias" in error
    assert "misshapen: transformer.encoder.layers.0.norm1.weight (3,) instead of (64,)" in error
    assert "not finite: transformer.decoder.layers.0.self_attn.in_proj_bias" in error
    assert network.config.begin == "proposals"


@pytest.mark.parametrize("value", [torch.zeros(()), torch.zeros(3), torch.zeros(0, 0), torch.zeros(2, 2, 2)])
@pytest.mark.parametrize("which", AUTHORS)
def test_absurd_shapes_are_one_error(small, tmp_path, which, value):
    _, tensors = small[which]
    names = ("query_embed.weight", "transformer.level_embed", "class_embed.weight", "input_proj.weight")
    odd = {name: value for name in names if name in tensors}
    odd |= {name: value for name in tensors if "class_embed.0.weight" in name or ".linear1." in name}
    torch.save(tensors | odd, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", tmp_path / "ours", "x.pth")


def test_a_second_norm_is_recognised():
    options = {**read("hf_detr"), "auxiliary_loss": True}
    assert convert(empty("hf_detr"), options).config == replace(published_config("hf_detr"), norm_twice=True)
    assert FORMS["detr"].norm_twice is False
    network, _ = sample("detr", norm_twice=True)
    before, last = [], []
    network.decoder.layers[1].register_forward_pre_hook(lambda _, given: before.append(given[0]))
    network.decoder.layers[1].register_forward_hook(lambda _, __, out: last.append(out))
    heard = []
    network.classify.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    says(network)
    torch.testing.assert_close(heard[0][0], before[0])
    norm = network.decoder.norm
    torch.testing.assert_close(heard[0][1], norm(norm(last[0])))
    assert isinstance(norm, nn.LayerNorm)
