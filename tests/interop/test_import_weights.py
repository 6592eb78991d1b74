import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import boxwright
from boxwright.__main__ import main
from boxwright.checkpoints.detector_file import load_detector
from boxwright.config import UserError
from boxwright.interop import import_weights as importing
from boxwright.interop.import_weights import import_weights
from boxwright.interop.replications import PUBLISHED
from boxwright.models import replication
from boxwright.models.backbones.pix2seq_stems import Patches
from boxwright.models.pix2seq import Pix2Seq
from helpers.foreign_files import SUFFIX, official_index, their_weights, write_bundle, write_official

SMALL = {"encoder_layers": 1, "decoder_layers": 1, "dim": 32, "hidden": 48, "heads": 8}
LAYOUT = {
    "task": {"quantization_bins": 50, "image_size": [64, 96], "max_instances_per_image_test": 6},
    "model": {"coord_vocab_shift": 120},
}


@pytest.fixture
def stem(monkeypatch):
    """Replications with one convolution for a ResNet."""
    monkeypatch.setattr(replication, "FrozenResNet", lambda name: Patches(32, 2048))


def save(file, variant, **changes):
    """A small replication's file; returns its tensors."""
    weights = their_weights(replace(PUBLISHED[variant], **SMALL)) | changes
    weights = {name: value for name, value in weights.items() if value is not None}
    wrapper = "state_dict" if variant == "mmdet" else "model"
    torch.save({wrapper: weights, "args": argparse.Namespace(nheads=8), "epoch": 299}, file)
    return weights


@pytest.mark.parametrize("variant", PUBLISHED)
def test_replications_are_imported_with_the_names_of_coco(stem, tmp_path, variant, capsys, batch):
    weights = save(tmp_path / "x.pth", variant)
    out = boxwright.import_weights(tmp_path / "x.pth", tmp_path / "ours", image_size=96)
    printed = capsys.readouterr().out
    assert f"{len(weights)} tensors" in printed
    assert "80 classes: person, bicycle, car, ..., toothbrush" in printed
    assert f"next: boxwright predict {out} IMAGE" in printed
    detector = load_detector(tmp_path / "ours")
    assert detector.config.variant == variant
    assert (detector.names[10], detector.config.class_ids[10]) == ("fire hydrant", 11)
    assert (detector.names[11], detector.config.class_ids[11]) == ("stop sign", 13)
    assert detector.image_size == 96
    assert detector.card["imported from"] == "x.pth"
    assert detector.card["parity"]["largest difference on a probe, once written and read"] == 0
    with torch.no_grad():
        found = detector.decode(detector(batch.images_BCHW, batch.sizes_B2))
    assert found.labels_BD.max() < 80
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("name", ["tiny_vit_adamw_legacy", "tiny_resnet_model_only"])
def test_official_checkpoints_are_imported(tmp_path, name, capsys):
    prefix = write_official(tmp_path / "run", name)
    (tmp_path / "run" / "config.json").write_text(json.dumps(LAYOUT))
    import_weights(prefix, tmp_path / "ours", classes="cat,dog")
    detector = load_detector(tmp_path / "ours")
    assert isinstance(detector, Pix2Seq)
    c = detector.config
    assert c.backbone == {"tiny_vit_adamw_legacy": "patches"}.get(name, "pix2seq_resnet50x0.125")
    assert (c.image_size, c.stride) == (96, 16 if c.backbone == "patches" else 32)
    assert (c.bins, c.first_coordinate, c.vocabulary, c.length, c.max_objects) == (50, 120, 180, 32, 6)
    assert (c.encoder_dim, c.encoder_heads, c.encoder_layers) == (32, 4, 2)
    assert (c.decoder_dim, c.decoder_heads, c.decoder_hidden, c.decoder_layers) == (24, 3, 72, 2)
    assert (detector.names, c.class_ids) == (("cat", "dog"), ())
    _, tensors, _ = official_index(name)
    table = tensors[f"model/decoder/ar_decoder.Stoken_embedding{SUFFIX}"]
    assert np.array_equal(detector.state_dict()["decoder.token_embedding"].numpy(), table)
    assert "guessed" not in capsys.readouterr().out


def test_what_no_file_shows_is_called_a_guess(tmp_path, capsys):
    import_weights(write_official(tmp_path, "tiny_vit_adamw_legacy"), tmp_path / "ours")
    printed = capsys.readouterr().out
    assert "coordinates are guessed to begin at word 140 of 180" in printed
    assert "39 classes: class 1, class 2, class 3, ..., class 39" in printed
    assert load_detector(tmp_path / "ours").card["guesses"] != []


def official(vocabulary=3000):
    """Tensors of a network with the published vocabulary and a tiny ViT."""
    _, tensors, _ = official_index("tiny_vit_adamw_legacy")
    for name in ("Stoken_embedding", "Soutp_bias"):
        name = f"model/decoder/ar_decoder.{name}{SUFFIX}"
        tensors[name] = np.resize(tensors[name], (vocabulary, *tensors[name].shape[1:]))
    return tensors


def test_published_vocabularies_get_the_names_and_labels_of_coco(tmp_path):
    write_bundle(tmp_path / "ckpt-1", official(), shards=2)
    import_weights(tmp_path / "ckpt-1.index", tmp_path / "ours")
    detector = load_detector(tmp_path / "ours")
    assert isinstance(detector, Pix2Seq)
    assert len(detector.names) == 80
    assert detector.image_size == 640
    assert detector.vocabulary().class_tokens(torch.tensor([0, 79])).tolist() == [101, 190]
    assert detector.card["guesses"] == []


def test_ids_of_classes_come_from_a_coco_file(stem, tmp_path):
    save(tmp_path / "x.pth", "pretrained")
    rows = [{"id": 7, "name": "tree"}, {"id": 2, "name": "house"}]
    (tmp_path / "a.json").write_text(json.dumps({"categories": rows}))
    import_weights(tmp_path / "x.pth", tmp_path / "ours", classes=str(tmp_path / "a.json"))
    detector = load_detector(tmp_path / "ours")
    assert (detector.names, detector.config.class_ids) == (("house", "tree"), (2, 7))


def refused(source, out, match):
    with pytest.raises(UserError, match=match) as error:
        import_weights(source, out)
    assert "\n" not in str(error.value)
    assert not out.with_suffix(".safetensors").exists()
    return str(error.value)


def test_all_faults_of_a_pickle_are_listed_at_once(stem, tmp_path):
    changes = {
        "transformer.encoder.norm.weight": torch.ones(32),
        "head.extra": torch.ones(2),
        "transformer.decoder.norm.bias": None,
        "transformer.encoder.layers.0.norm1.weight": torch.ones(31),
        "transformer.decoder.layers.0.self_attn.qkv.weight": torch.ones(96, 31),
        "input_proj.1.bias": torch.full((32,), torch.nan),
    }
    save(tmp_path / "x.pth", "pretrained", **changes)
    error = refused(tmp_path / "x.pth", tmp_path / "ours", "x.pth looks like gaopengcuhk/Pretrained-Pix2Seq, but")
    unknown, missing, misshapen, broken = error.split("does not fit: ")[1].rstrip(".").split("; ")
    assert unknown == "unknown: transformer.encoder.norm.weight, head.extra"
    assert missing == "missing (by our names): decoder.norm.bias"
    assert misshapen.startswith("misshapen: transformer.encoder.layers.0.norm1.weight (31,) instead of (32,)")
    assert "transformer.decoder.layers.0.self_attn.qkv.weight (32, 31) instead of (32, 32)" in misshapen
    assert broken == "not finite: input_proj.1.bias"


def test_all_faults_of_a_bundle_are_listed_at_once(tmp_path):
    tensors = official()
    del tensors[f"model/proj_ln/gamma{SUFFIX}"]
    tensors[f"model/proj_ln/beta{SUFFIX}"] = np.zeros(5, np.float32)
    tensors |= {f"model/more/kernel{SUFFIX}": np.zeros(1, np.float32), "average/x": np.zeros(1, np.float32)}
    write_bundle(tmp_path / "ckpt-1", tensors)
    error = refused(tmp_path / "ckpt-1", tmp_path / "ours", "unknown: average/x, model/more/kernel;")
    assert "missing (by our names): bridge.norm.weight;" in error
    assert "misshapen: model/proj_ln/beta (5,) instead of (24,)" in error


def test_files_of_other_projects_are_refused(tmp_path):
    detr = {"class_embed.weight": torch.zeros(92, 256), "query_embed.weight": torch.zeros(1)}
    torch.save({"model": detr}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", tmp_path / "ours", "of no project that can be imported .* class_embed.weight, query")
    write_bundle(tmp_path / "ckpt-1", {"layer_with_weights-0/kernel": np.zeros(3, np.float32)})
    refused(tmp_path / "ckpt-1", tmp_path / "ours", "of no project .* layer_with_weights-0/kernel")
    refused(tmp_path / "nothing", tmp_path / "ours", "nothing does not exist")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty",
        tmp_path / "ours",
        "empty holds no checkpoint that can be imported: a TensorF",
    )


@pytest.mark.parametrize("table", [torch.zeros(()), torch.zeros(3), torch.zeros(0, 0), torch.zeros(2, 2, 2)])
def test_absurd_shapes_are_one_error(stem, tmp_path, table):
    names = ("transformer.vocal_embed.weight", "transformer.vocal_classifier.weight", "transformer.decoder.norm.weight")
    save(tmp_path / "x.pth", "pretrained", **dict.fromkeys(names, table))
    refused(tmp_path / "x.pth", tmp_path / "ours", "x.pth")


def test_what_exists_is_never_overwritten(stem, tmp_path, capsys):
    save(tmp_path / "x.pth", "stable")
    (tmp_path / "ours.safetensors").write_text("precious")
    assert main(["import-weights", str(tmp_path / "x.pth"), str(tmp_path / "ours")]) == 2
    assert "ours.safetensors exists; give another name" in capsys.readouterr().err
    assert (tmp_path / "ours.safetensors").read_text() == "precious"


def test_a_place_that_cannot_be_written_is_one_error(stem, tmp_path):
    save(tmp_path / "x.pth", "stable")
    with pytest.raises(UserError, match="can't be written"):
        import_weights(tmp_path / "x.pth", tmp_path / "x.pth" / "ours")


def test_a_damaged_configuration_is_named(tmp_path):
    prefix = write_official(tmp_path, "tiny_vit_adamw_legacy")
    (tmp_path / "config.json").write_text("[1]")
    refused(prefix, tmp_path / "ours", "config.json is not the configuration of a pix2seq run")


def test_the_command_line(stem, tmp_path, capsys):
    save(tmp_path / "x.pth", "stable")
    arguments = [str(tmp_path / "x.pth"), str(tmp_path / "ours"), "--classes", "a,b", "--image-size"]
    assert main(["import-weights", *arguments, "128"]) == 0
    assert "images of 128 px\n2 classes: a, b\n" in capsys.readouterr().out
    assert main(["import-weights", *arguments, "8"]) == 2
    assert "--image-size must be at least 64, not 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "table",
    [
        torch.zeros(()),
        torch.zeros(0, 32),
        torch.zeros(501, 32).to_sparse(),
        torch.zeros(501, 32, dtype=torch.complex64),
        torch.zeros(501, 32, device="meta"),
    ],
)
def test_invalid_tables_are_one_error(stem, tmp_path, table):
    save(tmp_path / "x.pth", "stable", **{"transformer.embedding.position_embeddings.weight": table})
    refused(tmp_path / "x.pth", tmp_path / "ours", "x.pth")


@pytest.mark.parametrize("variant", ["pretrained", "stable"])
def test_a_missing_layer_is_named_before_any_is_built(stem, tmp_path, variant):
    save(tmp_path / "x.pth", variant, **{"transformer.encoder.layers.100000.norm1.weight": torch.ones(32)})
    error = refused(tmp_path / "x.pth", tmp_path / "ours", "this checkpoint has encoder.100000, but no encoder.1:")
    assert "layers are missing" in error


def test_a_missing_official_layer_is_named(tmp_path):
    tensors = official() | {
        f"model/encoder/transformer_encoder/enc_layers/90000/mha_ln/beta{SUFFIX}": np.zeros(32, "f4")
    }
    write_bundle(tmp_path / "ckpt-1", tensors)
    refused(
        tmp_path / "ckpt-1", tmp_path / "ours", "has encoder.layers.90000, but no encoder.layers.2: layers are missing"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"coord_vocab_shift": 1e9},
        {"coord_vocab_shift": 10**9},
        {"coord_vocab_shift": 2900},
        {"image_size": "big"},
        {"image_size": [64, "wide"]},
        {"quantization_bins": -3},
        {"max_instances_per_image_test": "many"},
        {"dec_proj_mode": 7},
    ],
)
def test_an_invalid_configuration_is_one_error(tmp_path, changes):
    prefix = write_official(tmp_path, "tiny_vit_adamw_legacy")
    (tmp_path / "config.json").write_text(json.dumps({"model": changes}))
    refused(prefix, tmp_path / "ours", r"config.json is not the configuration|has 180 words, too few for")


@pytest.mark.parametrize("out", ["", ".", "..", "/"])
def test_out_must_be_a_name(stem, tmp_path, out, capsys):
    save(tmp_path / "x.pth", "stable")
    assert main(["import-weights", str(tmp_path / "x.pth"), out]) == 2
    assert "error: OUT must be the name of a file" in capsys.readouterr().err


def test_an_output_below_a_file_is_refused(stem, tmp_path):
    save(tmp_path / "x.pth", "stable")
    error = refused(
        tmp_path / "x.pth", tmp_path / "x.pth" / "deep" / "ours", "x.pth is a file, not a folder; give another place"
    )
    assert "part" not in error


def test_one_temporary_is_written_and_removed(stem, tmp_path, monkeypatch):
    save(tmp_path / "x.pth", "stable")
    seen = []

    def stopped(file):
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "load_detector", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_weights(tmp_path / "x.pth", tmp_path / "ours", image_size=96)
    assert sum(name != "x.pth" for name in seen) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_unknown_heads_are_called_a_guess(stem, tmp_path, capsys):
    weights = save(tmp_path / "x.pth", "stable")
    torch.save({"model": weights}, tmp_path / "bare.pth")
    import_weights(tmp_path / "bare.pth", tmp_path / "ours", classes="cat", image_size=96)
    printed = capsys.readouterr().out
    assert "not stored in the file: attention is guessed to have 8 heads" in printed
    assert "\n1 class: cat\n" in printed
    assert load_detector(tmp_path / "ours").card["guesses"] != []


@pytest.mark.parametrize("heads", [0, -8, "eight", 2.5])
def test_invalid_heads_are_refused(stem, tmp_path, heads):
    weights = save(tmp_path / "x.pth", "stable")
    torch.save({"model": weights, "args": argparse.Namespace(nheads=heads)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", tmp_path / "ours", "options of this checkpoint say that attention has .* heads")


def test_data_without_an_index_is_named(tmp_path):
    prefix = write_official(tmp_path / "run", "tiny_vit_adamw_legacy")
    prefix.with_name("ckpt-6.index").unlink()
    refused(tmp_path / "run", tmp_path / "ours", "ckpt-6.data-00000-of-00001 has no index beside it")
    refused(prefix, tmp_path / "ours", "ckpt-6 does not exist: .*ckpt-6.data-00000-of-00001 has no index beside it")


def test_images_have_a_largest_size(stem, tmp_path):
    save(tmp_path / "x.pth", "stable")
    with pytest.raises(UserError, match="--image-size 1000000 is more than 10000"):
        import_weights(tmp_path / "x.pth", tmp_path / "ours", image_size=1_000_000)


def test_of_very_many_names_ten_are_listed(stem, tmp_path):
    save(tmp_path / "x.pth", "stable", **{f"more.{number}": torch.ones(1) for number in range(300)})
    error = refused(tmp_path / "x.pth", tmp_path / "ours", r"unknown: more.0, .*more.9 and 290 more\.")
    assert "more.10" not in error
    save(tmp_path / "x.pth", "stable", **{f"more.{number}": torch.ones(1) for number in range(39)})
    assert "more.38" in refused(tmp_path / "x.pth", tmp_path / "ours", "unknown: more.0, ")
