import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from boxwright.deployment.onnx.layer_drift import moved
from boxwright.deployment.onnx.onnx_file import save, to_onnx
from boxwright.deployment.onnx.quantise import quantisable, to_fp16, to_int8
from boxwright.runtime import Detector
from helpers.untrained import untrained


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(3)]


def found(model, file, image_HW3):
    save(model, file)
    return Detector(file, "cpu", threads=1).run(image_HW3[None])


@pytest.mark.parametrize("kind", ["dense", "detr", "deformable"])
def test_modules_that_stay_fp32_exist(kind):
    detector = untrained(kind)
    names = {part for name, _ in detector.named_modules() for part in name.split(".")}
    assert detector.fp32_modules
    assert set(detector.fp32_modules) <= names


@pytest.mark.slow
def test_maps_of_fine_resolution_stay_whole(dense):
    first = next(node for node in dense[1].graph.node if node.op_type == "Conv")
    names = [node.name for node in quantisable(dense[1], dense[0].fp32_modules)]
    assert first.name not in names
    assert any(name.startswith("pyramid") for name in names)
    assert not any(name.startswith("head.many") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "smaller", "apart"), [(16, 1.5, 0.02), (8, 2.0, 0.2)])
def test_fewer_bits_say_nearly_the_same(dense, images, tmp_path, bits, smaller, apart):
    plain = dense[1]
    small = to_fp16(plain, dense[0].fp32_modules) if bits == 16 else to_int8(plain, images, dense[0].fp32_modules)
    assert smaller * small.ByteSize() < plain.ByteSize()
    scores, less = (found(model, tmp_path / "model.onnx", images[0])[1] for model in (plain, small))
    np.testing.assert_allclose(less[0, :5], scores[0, :5], atol=apart)


@pytest.mark.slow
def test_quantising_leaves_its_source_as_it_is(dense, images):
    before = dense[1].SerializeToString()
    to_fp16(dense[1], ())
    to_int8(dense[1], images, ())
    assert dense[1].SerializeToString() == before


@pytest.mark.slow
def test_a_loop_reads_its_weights_from_fewer_bits(images, tmp_path):
    plain = to_onnx(untrained("pix2seq"))
    for small, share in ((to_fp16(plain, ()), 0.6), (to_int8(plain, images, ()), 0.4)):
        assert small.ByteSize() < plain.ByteSize() * share
        boxes, whole = (found(model, tmp_path / "model.onnx", images[0])[0] for model in (small, plain))
        assert boxes.shape == whole.shape


@pytest.mark.slow
def test_the_layer_that_was_changed_is_the_one_that_moved(dense, images):
    detector, plain = dense
    assert all(abs(share) < 1e-4 for _, share in moved(plain, detector, images[0]))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(plain)
    weights = {tensor.name: tensor for tensor in wrong.graph.initializer}
    smooth = next(
        node for node in wrong.graph.node if node.op_type == "Conv" and node.name.startswith("pyramid.smooth.1")
    )
    tensor = weights[smooth.input[1]]
    tensor.CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(tensor), tensor.name))
    name, share = moved(wrong, detector, images[0])[0]
    assert name == "pyramid.smooth.1"
    assert share == pytest.approx(2, rel=0.2)
