import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from boxwright.interop.replications import PUBLISHED, convert
from boxwright.models.replication import Replication
from helpers.foreign_files import GOLDEN, formula, their_shapes, their_weights

SMALL = {"encoder_layers": 1, "decoder_layers": 2, "dim": 32, "hidden": 48, "heads": 4}
COUNTS = {"pretrained": 455, "mmdet": 455, "stable": 459, "unofficial": 459}  # tensors of the published networks


@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_published_shape_is_recognised_by_its_tensors(variant):
    shapes = their_shapes(PUBLISHED[variant])
    assert len(shapes) == COUNTS[variant]
    found = convert({name: torch.empty(0).expand(0).new_empty(()).expand(shape) for name, shape in shapes.items()})
    assert found is not None
    assert found.config == PUBLISHED[variant]
    assert found.coco_ids
    assert not found.unknown


@pytest.mark.parametrize("variant", PUBLISHED)
def test_other_shapes_are_recognised(variant):
    config = replace(PUBLISHED[variant], **SMALL, backbone="resnet101")
    found = convert(their_weights(config), heads=4)
    assert found is not None
    assert found.config == config
    with torch.device("meta"):
        own = {name: value.shape for name, value in Replication(config, ()).state_dict().items()}
    assert {name: value.shape for name, value in found.state.items()} == own
    assert found.ids == (range(91) if not config.has_positions else range(497))


def test_fewer_classes_are_numbered_from_zero():
    found = convert(their_weights(replace(PUBLISHED["pretrained"], **SMALL, vocabulary=2001 + 20 + 2)), heads=4)
    assert found is not None
    assert found.ids == range(20)
    assert not found.coco_ids


def test_queries_keys_and_values_are_split_in_this_order():
    weights = their_weights(replace(PUBLISHED["stable"], **SMALL))
    found = convert(weights, heads=4)
    assert found is not None
    fused = weights["transformer.decoder.layers.1.multihead_attn.in_proj_weight"]
    parts = [found.state[f"decoder.layers.1.cross_attention.{part}.weight"] for part in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts), fused)


def test_other_networks_are_not_recognised():
    assert convert({"transformer.encoder.layers.0.linear1.weight": torch.zeros(4, 4)}) is None


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mmdet", "stable"])
def test_outputs_equal_those_of_the_originals(variant):
    shapes = their_shapes(PUBLISHED[variant])
    found = convert({n: torch.from_numpy(np.asarray(formula(n, s, math.prod(s[1:])))) for n, s in shapes.items()})
    detector = Replication(found.config, tuple(map(str, found.ids))).eval()
    detector.load_state_dict(dict(found.state))
    with np.load(GOLDEN / "replications.npz") as stored:
        read, logits, encoder, written = (
            torch.from_numpy(stored[f"{variant}_{what}"]) for what in ("read", "logits", "encoder", "written")
        )
    sizes_B2 = torch.tensor([[256, 256]] if len(read) == 1 else [[230, 301], [261, 200]])
    images_BCHW = torch.zeros(len(read), 3, *sizes_B2.amax(0).tolist())
    for phase, (height, width) in enumerate(sizes_B2.tolist()):
        h, w, c = np.ogrid[:height, :width, :3]
        picture_HWC = 0.5 + 0.5 * np.sin(0.05 * h * (c + 1) + 0.07 * w + phase)
        images_BCHW[phase, :, :height, :width] = torch.from_numpy(picture_HWC).permute(2, 0, 1)
    with torch.no_grad():
        outputs = detector(images_BCHW, sizes_B2)
        given_BL = read.long() if found.config.has_positions else nn.functional.pad(read.long(), (1, 0), value=2092)
        ours = detector.decoder(given_BL, outputs.memory)[:, :, ::2][:, ::5, ::25]
        torch.testing.assert_close(outputs.memory.values_BME[:, ::9, ::16], encoder, rtol=0, atol=5e-5)
        torch.testing.assert_close(ours, logits, rtol=0, atol=5e-5)
        assert torch.equal(detector.generate(outputs).tokens_BL[:, :100], written.long())
