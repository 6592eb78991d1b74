import numpy as np
import pytest

from boxwright.config import UserError
from boxwright.interop.pix2seq_shapes import is_of_network
from boxwright.interop.tensorbundle import find_bundle, read_bundle
from helpers.foreign_files import official_index, write_bundle, write_official

TENSORS = {
    "model/a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "model/a/bias": np.float32(7).reshape(()),
    "model/b/kernel": np.arange(6, dtype=np.float16).reshape(1, 2, 3),
    "step": np.array(9, np.int64),
    **{f"model/layers/{i}/gamma": np.full(40, i, np.float32) for i in range(30)},
}


def everything(name):
    return True


@pytest.mark.parametrize("name", ["tiny_vit_adamw_legacy", "tiny_resnet_model_only"])
def test_files_of_tensorflow_are_read(tmp_path, name):
    prefix = write_official(tmp_path, name)
    read = read_bundle(prefix, is_of_network)
    _, tensors, _ = official_index(name)
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[key], tensors[key]) for key in tensors)
    assert len(read) == {"tiny_vit_adamw_legacy": 105, "tiny_resnet_model_only": 370}[name]


@pytest.mark.parametrize("shards", [1, 3])
def test_shards(tmp_path, shards):
    write_bundle(tmp_path / "ckpt-1", TENSORS, shards)
    read = read_bundle(tmp_path / "ckpt-1", everything)
    assert read.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert read[name].dtype == values.dtype
        assert np.array_equal(read[name], values)
    assert read_bundle(tmp_path / "ckpt-1", lambda name: name == "step").keys() == {"step"}


def test_a_compressed_index_is_refused(tmp_path):
    write_bundle(tmp_path / "ckpt-1", TENSORS, compress=True)
    with pytest.raises(UserError, match=r"ckpt-1.index is compressed with snappy.*; write the checkpoint again"):
        read_bundle(tmp_path / "ckpt-1", everything)


def test_bfloat16_becomes_float32(tmp_path):
    values = np.array([1.0, -2.5, 3e38], np.float32)
    write_bundle(tmp_path / "ckpt-1", {"x": (values.view("<u4") >> 16).astype("<u2")})
    read = read_bundle(tmp_path / "ckpt-1", everything)["x"]
    np.testing.assert_allclose(read, values, rtol=1e-2)


def test_all_ways_to_name_a_bundle(tmp_path):
    write_bundle(tmp_path / "ckpt-1.5", TENSORS)
    for given in ("ckpt-1.5", "ckpt-1.5.index", "ckpt-1.5.data-00000-of-00001", "."):
        assert find_bundle(tmp_path / given) == tmp_path / "ckpt-1.5"
    assert find_bundle(tmp_path / "ckpt-1") is None
    write_bundle(tmp_path / "ckpt-9", TENSORS)
    with pytest.raises(UserError, match=r"several checkpoints \(ckpt-1.5, ckpt-9\)"):
        find_bundle(tmp_path)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/far/away/ckpt-9"\nall_model_checkpoint_paths: "x"\n')
    assert find_bundle(tmp_path) == tmp_path / "ckpt-9"


def test_every_cut_of_an_index_is_one_clear_error(tmp_path):
    write_bundle(tmp_path / "ckpt-1", TENSORS)
    index = tmp_path / "ckpt-1.index"
    content = index.read_bytes()
    for length in range(0, len(content), 37):
        index.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"ckpt-1.index is no index .* cut short or damaged"):
            read_bundle(tmp_path / "ckpt-1", everything)


def test_every_wrong_byte_of_an_index_is_noticed(tmp_path):
    write_bundle(tmp_path / "ckpt-1", TENSORS)
    index = tmp_path / "ckpt-1.index"
    content = index.read_bytes()
    for at in range(0, len(content) - 61, 11):  # behind it are an empty block, which nobody reads, and the footer
        index.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :])
        with pytest.raises(UserError):
            read_bundle(tmp_path / "ckpt-1", everything)


def test_damaged_and_missing_data_are_named(tmp_path):
    write_bundle(tmp_path / "ckpt-1", TENSORS, shards=2)
    second = tmp_path / "ckpt-1.data-00001-of-00002"
    content = second.read_bytes()
    second.write_bytes(content[:-1] + b"!")
    with pytest.raises(UserError, match="are damaged: their checksum is wrong"):
        read_bundle(tmp_path / "ckpt-1", everything)
    for cut in (content[:-1], b""):
        second.write_bytes(cut)
        with pytest.raises(UserError, match="cut short"):
            read_bundle(tmp_path / "ckpt-1", everything)
    second.unlink()
    with pytest.raises(UserError, match="data-00001-of-00002 can't be read: No such file"):
        read_bundle(tmp_path / "ckpt-1", everything)
