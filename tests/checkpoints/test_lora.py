import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import boxwright
from boxwright.checkpoints.detector_file import load_detector, load_together, merge, save_detector
from boxwright.checkpoints.lora import adapt, checksum, inject, is_a_or_b, merge_adapter, own_state
from boxwright.config import Optim, UserError
from boxwright.models import registry
from boxwright.models.deformable import SIZES as DEFORMABLE_SIZES
from boxwright.models.deformable import Deformable
from boxwright.models.dense import Dense, DenseConfig
from boxwright.models.detr import SIZES as DETR_SIZES
from boxwright.models.detr import Detr
from boxwright.models.patchseq import PatchSeq, PatchSeqConfig
from boxwright.models.pix2seq import SIZES as PIX2SEQ_SIZES
from boxwright.models.pix2seq import Pix2Seq
from boxwright.training.optim import make_optimizer

OPTIM = Optim(lr=1e-2, backbone_factor=0.1, weight_decay=0.05, rule="torch", beta2=0.999)
NAMES, OTHERS = ("cat", "dog"), ("dog", "emu", "cow")
SMALL = {"backbone": "test_efficientnet", "image_size": 64}


def make(model):
    """A small detector with random weights."""
    torch.manual_seed(0)
    if model == "dense":
        return Dense(DenseConfig(**SMALL, channels=32), NAMES, pretrained=False)
    if model == "vit":
        return Dense(DenseConfig("test_vit", 64, channels=32), NAMES, pretrained=False)
    if model == "detr":
        config = replace(DETR_SIZES["nano"], **SMALL, dim=32, hidden=64, heads=4, encoder_layers=1, decoder_layers=2)
        return Detr(config, NAMES, pretrained=False)
    if model == "deformable":
        config = replace(DEFORMABLE_SIZES["nano"], **SMALL, dim=32, hidden=64, heads=4, queries=20)
        return Deformable(replace(config, encoder_layers=1, decoder_layers=2), NAMES, pretrained=False)
    if model == "copying":
        config = replace(PIX2SEQ_SIZES["nano"], **SMALL, decoder_layers=1, decoder_dim=32, decoder_hidden=64)
        return Pix2Seq(replace(config, max_objects=4, proposals=30, channels=32, depth=1), NAMES, pretrained=False)
    if model == "patchseq":
        shape = {"encoder_layers": 1, "decoder_layers": 1, "dim": 32, "hidden": 64, "heads": 2, "max_objects": 4}
        return PatchSeq(PatchSeqConfig(**SMALL, **shape), NAMES, pretrained=False)
    config = replace(
        PIX2SEQ_SIZES["nano"], **SMALL, encoder_layers=1, decoder_layers=1, encoder_dim=32, decoder_dim=32,
        encoder_hidden=64, decoder_hidden=64, encoder_heads=2, decoder_heads=2, max_objects=4, length=20, bins=20,
        first_coordinate=110, vocabulary=140, proposals=0,
    )  # fmt: skip
    return Pix2Seq(config, NAMES, pretrained=False)


MODELS = ("dense", "vit", "detr", "deformable", "pix2seq", "copying", "patchseq")


@torch.no_grad()
def learn(detector, seed=1):
    """As if it had been trained: whatever learns has moved."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            size = 0.1 if is_a_or_b(name) else 0.02
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return detector


def adapted(base: Path, names=OTHERS, rank=2, seed=1):
    """A detector of other classes from the checkpoint, adapted and trained a little."""
    source = load_detector(base)
    detector = source.with_classes(names)
    adapt(detector, rank, source, "the base", base)
    return learn(detector, seed).eval()


@torch.no_grad()
def outputs(detector, batch):
    """Losses, and outputs whose order is fixed."""
    torch.manual_seed(0)
    made = detector.eval()(batch.images_BCHW, batch.sizes_B2, batch)
    ordered = {
        Dense: lambda: made.boxes_BQ4,
        Detr: lambda: made.layers.logits_LBQR,
        Deformable: lambda: made.cells.x_BTE,
        PatchSeq: lambda: made.patches_BPE,
        Pix2Seq: lambda: made.cells.boxes_BQ4 if detector.proposer else made,
    }
    return [ordered[type(detector)](), *detector.loss(made, batch).values()]


def assert_alike(first, second, tolerance=1e-5):
    for one, other in zip(first, second, strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max().clamp(min=1)


@pytest.fixture
def base(tmp_path):
    save_detector(tmp_path / "base" / "best.safetensors", make("dense"), {})
    return tmp_path / "base" / "best.safetensors"


@pytest.mark.parametrize("model", MODELS)
def test_an_adapter_is_small_and_merges_to_equal_outputs(model, batch, tmp_path):
    base, file = tmp_path / "base.safetensors", tmp_path / "run" / "best.safetensors"
    save_detector(base, make(model), {})
    detector = adapted(base)
    save_detector(file, detector, {"epoch": 1})
    batch.labels_BN.clamp_(max=1)
    merged = load_detector(file)
    assert merged.names == OTHERS
    assert merged.card == {"epoch": 1}
    assert set(merged.state_dict()) == set(make(model).with_classes(OTHERS).state_dict())
    assert_alike(outputs(detector, batch), outputs(merged, batch))
    shared = load_together({"it": file})["it"]
    assert_alike(outputs(detector, batch), outputs(shared, batch))
    unmoved = outputs(load_detector(base).with_classes(OTHERS), batch)[0]
    assert (unmoved - outputs(merged, batch)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_a_step_moves_only_what_the_adapter_stores(model, batch):
    source = make(model)
    detector = source.with_classes(NAMES)
    adapt(detector, 2, source, "base")
    learn(detector)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    optimizer = make_optimizer(detector, OPTIM)
    assert {group["peak"] for group in optimizer.param_groups} == {OPTIM.lr}, "adapters learn at the full rate"
    detector.train()
    sum(detector.loss(detector(batch.images_BCHW, batch.sizes_B2, batch), batch).values()).backward()
    optimizer.step()
    own = own_state(detector)
    moved = {key for key, value in detector.state_dict().items() if not torch.equal(value, before[key])}
    assert moved <= set(own)
    pairs = [key for key in own if is_a_or_b(key)]
    assert any(key.startswith("backbone.") for key in pairs)
    assert set(pairs) <= moved
    assert any(not key.startswith("backbone.") for key in pairs)


def test_with_the_head_alone_the_backbone_is_frozen_and_not_stored(batch, base):
    source = load_detector(base)
    detector = source.with_classes(NAMES)
    adapt(detector, None, source, "base", base)
    assert not any(p.requires_grad for p in detector.backbone.parameters())
    assert all(p.requires_grad for p in detector.head.parameters())
    detector.train()(batch.images_BCHW, batch.sizes_B2)
    for key, value in detector.state_dict().items():
        if key.startswith("backbone."):
            assert torch.equal(value, source.state_dict()[key]), "statistics of norms are frozen, too"
    assert not any(key.startswith("backbone.") for key in own_state(detector))


def test_timm_weights_are_a_base_of_their_own(batch, tmp_path):
    torch.manual_seed(0)
    detector = Dense(DenseConfig(image_size=64, channels=32), NAMES)
    adapt(detector, 4, None, detector.config.backbone)
    assert detector.head.many.weight.requires_grad, "what begins at random learns in full"
    stem = detector.backbone.net.conv_stem
    assert isinstance(stem, torch.nn.Conv2d), "what would not learn gets no adapter"
    save_detector(tmp_path / "best.safetensors", learn(detector), {})
    header = safe_open(tmp_path / "best.safetensors", framework="pt").metadata()
    assert json.loads(header["base"])["name"] == "tf_efficientnet_lite0"
    assert_alike(outputs(detector, batch), outputs(load_detector(tmp_path), batch))
    with pytest.raises(UserError, match=r"timm's tf_efficientnet_lite0, which need not be given"):
        load_detector(tmp_path, base=tmp_path)


def test_other_weights_of_timm_are_refused(tmp_path, monkeypatch):
    detector = Dense(DenseConfig(image_size=64, channels=32), NAMES)
    adapt(detector, None, None, detector.config.backbone)
    save_detector(tmp_path / "best.safetensors", detector, {})
    make_any = registry.rebuild
    monkeypatch.setattr(registry, "rebuild", lambda *given, pretrained=False: make_any(*given))
    with pytest.raises(UserError, match="adapts other weights of tf_efficientnet_lite0 than timm has here"):
        load_detector(tmp_path)


def test_the_pyramid_of_a_plain_transformer_learns_in_full(tmp_path):
    detector = make("vit")
    adapt(detector, 2, None, "test_vit")
    own = own_state(detector)
    assert {key for key in detector.state_dict() if ".pyramid." in key} <= set(own)
    assert not any(key.endswith("base_layer.weight") for key in own)


def test_adapters_of_different_ranks_and_classes_share_one_base(base, batch, tmp_path):
    files = {"plain": base}
    expected = {"plain": load_detector(base)}
    for rank, names in ((1, OTHERS), (3, NAMES)):
        expected[f"rank{rank}"] = adapted(base, names, rank, seed=rank)
        files[f"rank{rank}"] = tmp_path / f"{rank}.safetensors"
        save_detector(files[f"rank{rank}"], expected[f"rank{rank}"], {})
    together = boxwright.load(files, device="cpu")
    assert list(together) == list(files)
    batch.labels_BN.zero_()
    for name in (*files, *reversed(files)):
        assert together[name].names == expected[name].names
        assert_alike(outputs(expected[name], batch), outputs(together[name].detector, batch))
    files = [
        {value.data_ptr() for value in predictor.detector.backbone.state_dict().values() if value.numel() > 1}
        for predictor in together.values()
    ]
    plain, *others = files
    assert all(plain <= other for other in others), "there is one copy of the base"
    merge_adapter(together["rank1"].detector)
    assert_alike(outputs(expected["plain"], batch), outputs(together["plain"].detector, batch))


def test_a_merged_checkpoint_needs_no_base(base, batch, tmp_path):
    detector = adapted(base)
    save_detector(tmp_path / "run" / "best.safetensors", detector, {"epoch": 2})
    merged = merge(tmp_path / "run", tmp_path / "merged.safetensors")
    base.unlink()
    loaded = load_detector(merged)
    assert loaded.card == {"epoch": 2}
    batch.labels_BN.zero_()
    assert_alike(outputs(detector, batch), outputs(loaded, batch))
    with pytest.raises(UserError, match=r"merged.safetensors is there already"):
        merge(tmp_path / "run", merged)


def test_the_base_is_found_where_it_may_be_and_known_by_its_checksum(base, batch, tmp_path):
    file = tmp_path / "moved" / "run" / "best.safetensors"
    detector = adapted(base)
    save_detector(tmp_path / "run" / "best.safetensors", detector, {})
    batch.labels_BN.zero_()
    wanted = outputs(load_detector(tmp_path / "run"), batch)

    def found(**given):
        assert_alike(wanted, outputs(load_detector(file, **given), batch))

    file.parent.mkdir(parents=True)
    (tmp_path / "run" / "best.safetensors").rename(file)
    found()
    together = tmp_path / "moved" / "base" / "best.safetensors"
    together.parent.mkdir()
    base.rename(together)
    found()
    beside = file.with_name("base.safetensors")
    together.rename(beside)
    found()
    beside.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(
        UserError, match=r"adapts the base \(checksum \w{12}\), but .* is not there; put that one beside"
    ):
        load_detector(file)
    found(base=tmp_path / "elsewhere")
    save_detector(tmp_path / "other.safetensors", learn(make("dense")), {})
    with pytest.raises(UserError, match=r"adapts the base \(checksum \w{12}\), but .*other.safetensors is another"):
        load_detector(file, base=tmp_path / "other")


def test_a_base_in_half_precision_is_known_again(batch, tmp_path):
    """The bundled detector is stored so, and loaded in full precision."""
    save_detector(tmp_path / "half.safetensors", make("dense").half(), {})
    detector = adapted(tmp_path / "half.safetensors")
    save_detector(tmp_path / "run" / "best.safetensors", detector, {})
    batch.labels_BN.zero_()
    assert_alike(outputs(detector, batch), outputs(load_detector(tmp_path / "run"), batch))
    assert_alike(outputs(detector, batch), outputs(load_together({"cells": tmp_path / "run"})["cells"], batch))


def test_a_whole_checkpoint_has_no_base(base):
    with pytest.raises(UserError, match="is no adapter and has no base"):
        load_detector(base, base=base)


@pytest.mark.parametrize("harm", ["cut", "no base", "other base", "fewer tensors"])
def test_a_damaged_adapter_is_one_clear_error(base, tmp_path, harm):
    file = tmp_path / "best.safetensors"
    save_detector(file, adapted(base), {})
    header, tensors = safe_open(file, framework="pt").metadata(), load_file(file)
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "fewer tensors":
        save_file({key: value for key, value in tensors.items() if "head.many" not in key}, file, metadata=header)
    else:
        save_file(tensors, file, metadata=header | {"base": "{" if harm == "no base" else '{"who": 1}'})
    with pytest.raises(UserError, match=r"best.safetensors (is damaged|(is not|does not fit) .*damaged)"):
        load_detector(file)


def test_a_rank_beyond_all_layers_is_refused():
    source = make("dense")
    detector = source.with_classes(NAMES)
    with pytest.raises(UserError, match="no layer is large enough for an adapter of rank 4096; take a smaller --rank"):
        adapt(detector, 4096, source, "base")


def test_the_checksum_sees_values_and_names_but_not_the_order_in_memory():
    tensors = {"a": torch.rand(2, 3, 4, 4), "b": torch.tensor(3)}
    same = {"b": tensors["b"], "a": tensors["a"].to(memory_format=torch.channels_last)}
    assert checksum(tensors) == checksum(same)
    assert checksum(tensors) != checksum({"a": tensors["a"], "c": tensors["b"]})
    changed = tensors["a"].clone()
    changed[0, 0, 0, 0] += 1e-6
    assert checksum(tensors) != checksum(tensors | {"a": changed})


def test_layers_that_are_only_read_get_no_adapter(batch):
    """A layer whose weights are used past its own forward would learn nothing, and be changed by merging."""
    source = make("vit")
    detector = source.with_classes(NAMES)
    block = detector.backbone.net.vit.blocks[0]
    block.mlp.fc1.forward = None  # a call would fail
    block.mlp.forward = lambda x: x + block.mlp.fc1.weight.sum() * 0
    adapt(detector, 2, source, "base")
    names = [key for key in own_state(detector) if is_a_or_b(key)]
    assert not any("blocks.0.mlp" in key for key in names)
    assert any("blocks.1.mlp" in key for key in names)


def test_what_is_stored_does_not_depend_on_what_learns_at_the_moment(base):
    detector = adapted(base)
    stored = set(own_state(detector))
    detector.backbone.requires_grad_(False)
    assert set(own_state(detector)) == stored


def test_copies_stay_adapted(base):
    detector = deepcopy(adapted(base))
    assert set(own_state(detector)) < set(detector.state_dict())
    inject(make("dense"), ["backbone.net.conv_stem"], 1)
