import pytest
import torch

from boxwright.checkpoints.detector_file import load_detector
from boxwright.config import UserError
from boxwright.interop.hugging_face import class_names, find_folder
from boxwright.interop.import_weights import import_weights
from helpers.detr_files import sample, write_folder

CONFIG = {"model_type": "detr", "encoder_attention_heads": 4, "decoder_attention_heads": 4}
NAMES = {str(number): f"thing {number}" if number % 7 else "N/A" for number in range(91)}


@pytest.fixture(scope="module")
def tensors():
    return sample("hf_detr")[1]


def test_names_and_size_come_from_the_folder(tensors, tmp_path, capsys):
    sides = {"size": {"shortest_edge": 96, "longest_edge": 160}, "image_mean": [0.485, 0.456, 0.406]}
    folder = write_folder(tmp_path / "x", tensors, CONFIG | {"id2label": NAMES}, preprocessor_config=sides)
    import_weights(folder / "model.safetensors", tmp_path / "ours")
    detector = load_detector(tmp_path / "ours")
    assert detector.image_size == 160
    assert detector.names[:3] == ("thing 1", "thing 2", "thing 3")
    assert detector.config.class_ids[5:8] == (6, 8, 9)
    assert len(detector.names) == 78
    assert "78 classes: thing 1, thing 2, thing 3, ..., thing 90" in capsys.readouterr().out


def test_an_older_file_of_tensors_is_read_without_running_code(tensors, tmp_path):
    folder = write_folder(tmp_path / "x", tensors, CONFIG, preprocessor_config={"size": 96, "max_size": 128})
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    import_weights(folder, tmp_path / "ours")
    detector = load_detector(tmp_path / "ours")
    assert detector.image_size == 128
    assert detector.names[0] == "person"


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ({"0": "LABEL_0", "1": "LABEL_1"}, None, None),
        ({"0": "N/A", "1": "N/A"}, None, None),
        (None, None, None),
        ({"x": "cat"}, None, None),
        ({"0": "cat", "1": "dog", "2": "cat"}, ("cat 0", "dog", "cat 2"), (0, 1, 2)),
        ({"1": "cat", "0": "dog", "9": "beyond the rows"}, ("dog", "cat"), (0, 1)),
    ],
)
def test_rows_are_named_if_the_folder_has_names(labels, names, numbers):
    found = class_names({"id2label": labels}, rows=3)
    assert found == ((names, numbers) if names else None)


@pytest.mark.parametrize(
    ("config", "more", "match"),
    [
        ({"model_type": "yolos"}, {}, "x holds a yolos of Hugging Face's; detr and deformable_detr can be imported"),
        (CONFIG | {"activation_function": "gelu"}, {}, "activation_function is 'gelu'; only 'relu'"),
        (CONFIG | {"position_embedding_type": "learned"}, {}, "position_embedding_type is 'learned'"),
        (CONFIG, {"preprocessor_config": {"image_std": [1, 1, 1]}}, r"image_std is \[1, 1, 1\]; only \[0.229"),
        ([1], {}, "config.json is no configuration"),
    ],
)
def test_what_ours_does_not_have_is_refused(tmp_path, config, more, match):
    folder = write_folder(tmp_path / "x", {"a": torch.zeros(1)}, config, **more)
    with pytest.raises(UserError, match=match):
        import_weights(folder, tmp_path / "ours")


def test_damaged_files_are_one_error(tensors, tmp_path):
    folder = write_folder(tmp_path / "x", tensors, CONFIG)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors is not a file of tensors"):
        import_weights(folder, tmp_path / "ours")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is no JSON"):
        import_weights(folder, tmp_path / "ours")
    (folder / "model.safetensors").unlink()
    assert find_folder(folder) is None
