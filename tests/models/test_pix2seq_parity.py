"""`pix2seq` against outputs of google-research/pix2seq (commit eabd4e9, Apache-2.0, TensorFlow 2.15.1), kept in
`golden/pix2seq_official`: two tiny networks of the family, whose weights are a formula of their names."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from boxwright.config import UserError
from boxwright.interop.pix2seq_official import official_to_ours, our_name
from boxwright.models.backbones.pix2seq_stems import BatchNorm, make_stem, pool_same
from boxwright.models.layers.position_encoding import sincos, sincos_2d, spread
from boxwright.models.pix2seq import Pix2Seq
from helpers import pix2seq_golden
from helpers.parity_scripts import parity_modules

official, networks, golden = parity_modules("official", "official_networks", "golden")
FOLDER = pix2seq_golden.FOLDER / "pix2seq_official"


@pytest.fixture(scope="module")
def manifest() -> dict:
    return json.loads((FOLDER / "manifest_tiny_vit.json").read_text())


def other_kind(manifest: dict) -> dict:
    """The family's other choices: learned positions, a cls token, separate tables, no bias, fixed decoder positions."""
    chosen = {
        "pos_encoding": "learned", "pos_encoding_dec": "sin_cos", "use_cls_token": True, "dec_proj_mode": "linear_p",
        "shared_decoder_embedding": False, "decoder_output_bias": False,
    }  # fmt: skip
    return manifest | {"model_config": manifest["model_config"] | chosen}


def test_networks_training_steps_and_schedules_equal_the_official_ones():
    results = {result.case: result for result in official.check(FOLDER)}
    assert {"tiny_vit", "tiny_resnet", "tiny_vit training step", "tiny_resnet training step", "optimizer"} < set(
        results
    )
    assert {case: result.failures(1e-4) for case, result in results.items() if result.failures(1e-4)} == {}
    assert results["tiny_vit"].differences["logits"] < 1e-5
    assert results["tiny_resnet"].differences["logits"] < 1e-5
    assert results["tiny_vit training step"].differences["gradients"] < 1e-4
    assert all(result.identical.get("greedy tokens", True) for result in results.values())


def test_a_wrong_weight_is_noticed(manifest):
    arrays = golden.read_arrays(FOLDER / "model_tiny_vit.npz")
    [bias] = [v for v in manifest["variables"] if v["name"].endswith("proj/bias")]
    wrong = manifest | {
        "variables": [v | {"kind": "moving_variance"} if v is bias else v for v in manifest["variables"]]
    }
    assert {"encoded", "logits", "loss"} <= set(official.check_network("wrong", wrong, arrays).failures(1e-4))


def test_the_other_choices_have_the_names_and_shapes_of_the_official_code(manifest):
    other = other_kind(manifest)
    state = networks.build(other).state_dict()
    extra = {
        "model/encoder/vit.Svis_pos_embedding": (24, 32),
        "model/encoder/vit.Scls_token_embedding": (1, 32),
        "model/proj.Svis_pos_embedding": (24, 24),
        "model/decoder/ar_decoder.Sinp_token_embedding": (180, 24),
        "model/decoder/ar_decoder.Soutp_token_embedding": (180, 24),
    }
    gone = ("proj_mlp", "ar_decoder.Stoken", "ar_decoder.Sseq_pos", "ar_decoder.Soutp_bias")
    shapes = {v["name"]: v["shape"] for v in manifest["variables"] if not any(part in v["name"] for part in gone)}
    blank = {name: np.zeros(shape, np.float32) for name, shape in (shapes | extra).items()}
    assert {k: v.shape for k, v in official_to_ours(blank).items()} == {k: v.shape for k, v in state.items()}


def test_the_other_choices_give_the_same_logits_step_by_step_as_at_once(manifest):
    torch.manual_seed(0)
    network = networks.build(other_kind(manifest)).eval()
    images, tokens = torch.rand(2, 3, 64, 96), torch.randint(0, 180, (2, 12))
    memory = network(images, torch.tensor([[64, 96]] * 2))
    assert memory.shape == (2, 4 * 6 + 1, 24)
    at_once = network.decoder(tokens, memory)
    steps = official.step_logits(network, memory, torch.cat([tokens, tokens[:, :1]], 1), 3)
    torch.testing.assert_close(steps, at_once[:, 2:], rtol=0, atol=1e-5)


def test_learned_positions_are_resized_to_another_grid(manifest):
    network = networks.build(other_kind(manifest)).eval()
    assert network(torch.rand(1, 3, 101, 75), torch.tensor([[101, 75]])).shape == (1, 6 * 4 + 1, 24)


@pytest.mark.parametrize("bridge", ["linear", "linear_p", "mlp"])
def test_each_bridge_and_odd_grids_learn(manifest, bridge):
    config = replace(networks.network_config(manifest), bridge=bridge, backbone="pix2seq_resnet50x0.125")
    network = Pix2Seq(replace(config, decoder_heads=5, encoder_heads=3), ("cat",), pretrained=False)
    memory = network(torch.rand(2, 3, 101, 75), torch.tensor([[101, 75]] * 2))
    assert memory.shape == (2, 7 * 5, 24)
    network.decoder(torch.zeros(2, 4, dtype=torch.long), memory).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("stride", "grid"), [(32, (4, 3)), (16, (7, 5))])
def test_the_resnet_rounds_its_grid_up(stride, grid):
    stem = make_stem("pix2seq_resnet50x0.125", stride, 8)
    assert stem(torch.rand(2, 3, 101, 75))[0].shape == (2, stem.channels[0], *grid)


def test_patches_drop_what_is_left_over():
    assert make_stem("patches", 16, 8)(torch.rand(1, 3, 101, 75))[0].shape == (1, 8, 6, 4)


@pytest.mark.parametrize("name", ["pix2seq_resnet34", "pix2seq_resnet50x0"])
def test_unknown_resnets_are_refused(name):
    with pytest.raises(UserError, match="depths 50, 101, 152, 200"):
        make_stem(name, 32, 8)


def test_a_blocks_last_norm_begins_at_zero():
    stem = make_stem("pix2seq_resnet50x0.125", 32, 8)
    last = [parameter for name, parameter in stem.named_parameters() if name.endswith("bn3.weight")]
    assert len(last) == 16
    assert all((parameter == 0).all() for parameter in last)


def test_running_variances_are_those_of_the_batches():
    torch.manual_seed(0)
    norm, batches = BatchNorm(3), torch.randn(40, 2, 3, 2, 2) * 3
    for batch in batches:
        norm(batch)
    own = batches.var((1, 3, 4), correction=0)
    expected = torch.ones(3)
    for variance in own:
        expected = 0.9 * expected + 0.1 * variance
    torch.testing.assert_close(norm.running_var, expected)


def test_the_pool_pads_even_sides_at_their_end_only():
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert pool_same(ramp)[0, 0, 0].tolist() == [2, 3]
    assert pool_same(ramp[..., :3, :3])[0, 0, 0].tolist() == [1, 2]


def test_a_row_of_cells_has_the_encodings_of_a_line():
    assert (sincos_2d(1, 7, 10) == sincos(spread(7), 10)).all()
    assert sincos_2d(3, 4, 18).shape == (12, 18)


def test_unknown_names_are_one_error():
    with pytest.raises(UserError, match="model/nose/kernel, optimizer/beta"):
        official_to_ours(dict.fromkeys(["model/proj/kernel", "model/nose/kernel", "optimizer/beta"], np.zeros((2, 2))))
    assert our_name("model/proj/kernel") == "bridge.projection.weight"
