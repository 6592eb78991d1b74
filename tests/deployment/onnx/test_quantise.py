import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from boxwright.deployment.onnx import onnx_file
from boxwright.deployment.onnx.layer_drift import drift_by_layer
from boxwright.deployment.onnx.quantise import quantisable, to_fp16, to_int8
from boxwright.runtime import Detector
from helpers.untrained import untrained


@pytest.fixture
def dense(exported_once):
    detector = untrained("dense")
    return detector, onnx_file.to_onnx(detector)


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [np.kron(random.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(3)]


def predict(model, file, image_HW3):
    onnx_file.save(model, file)
    return Detector(file, "cpu", threads=1).run(image_HW3[None])


@pytest.mark.parametrize("model", ["dense", "detr", "deformable", "pix2seq", "patchseq"])
def test_modules_that_stay_fp32_exist(model):
    detector = untrained(model)
    names = {part for name, _ in detector.named_modules() for part in name.split(".")}
    assert detector.fp32_modules
    assert set(detector.fp32_modules) <= names


@pytest.mark.slow
def test_layers_on_fine_feature_maps_stay_fp32(dense):
    first_conv = next(node for node in dense[1].graph.node if node.op_type == "Conv")
    names = [node.name for node in quantisable(dense[1], dense[0].fp32_modules)]
    assert first_conv.name not in names
    assert any(name.startswith("pyramid") for name in names)
    assert not any(name.startswith("head.many") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "smaller", "tolerance"), [(16, 1.5, 0.02), (8, 2.0, 0.2)])
def test_fewer_bits_give_nearly_the_same_scores(dense, images, tmp_path, bits, smaller, tolerance):
    fp32 = dense[1]
    quantised = to_fp16(fp32, dense[0].fp32_modules) if bits == 16 else to_int8(fp32, images, dense[0].fp32_modules)
    assert smaller * quantised.ByteSize() < fp32.ByteSize()
    expected, scores = (predict(model, tmp_path / "model.onnx", images[0])[1] for model in (fp32, quantised))
    np.testing.assert_allclose(scores[0, :5], expected[0, :5], atol=tolerance)


@pytest.mark.slow
def test_quantising_does_not_change_its_source(dense, images):
    before = dense[1].SerializeToString()
    to_fp16(dense[1], ())
    to_int8(dense[1], images, ())
    assert dense[1].SerializeToString() == before


def test_centres_of_cells_stay_exact():
    """They are no weights, though a constant as large as one."""
    graph = """<ir_version: 10, opset_import: ["" : 20]>
    f (float[3000, 2] x) => (float[3000, 1600] y) {
      moved = Add (x, centres)
      y = MatMul (moved, weights)
    }"""
    model = onnx.parser.parse_model(graph)
    random = np.random.default_rng(0)
    for name, shape in {"centres": (3000, 2), "weights": (2, 1600)}.items():
        model.graph.initializer.append(numpy_helper.from_array(random.random(shape, np.float32), name))
    kept = {tensor.name: tensor.data_type for tensor in to_fp16(model, ()).graph.initializer}
    assert kept == {"centres": onnx.TensorProto.FLOAT, "weights.half": onnx.TensorProto.FLOAT16}


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_a_loop_has_its_weights_stored_in_fewer_bits(images, tmp_path):
    fp32 = onnx_file.to_onnx(untrained("pix2seq"))
    for quantised, share in ((to_fp16(fp32, ()), 0.6), (to_int8(fp32, images, ()), 0.4)):
        assert quantised.ByteSize() < fp32.ByteSize() * share
        boxes, expected = (predict(model, tmp_path / "model.onnx", images[0])[0] for model in (quantised, fp32))
        assert boxes.shape == expected.shape


@pytest.mark.slow
def test_the_layer_that_was_changed_is_the_one_that_differs(dense, images):
    detector, fp32 = dense
    assert all(abs(share) < 1e-4 for _, share in drift_by_layer(fp32, detector, images[0]))
    changed = onnx.ModelProto()
    changed.CopyFrom(fp32)
    weights = {tensor.name: tensor for tensor in changed.graph.initializer}
    lateral = next(
        node for node in changed.graph.node if node.op_type == "Conv" and node.name.startswith("pyramid.lateral.1")
    )
    for name in lateral.input[1:]:
        weights[name].CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(weights[name]), name))
    name, share = drift_by_layer(changed, detector, images[0])[0]
    assert name == "pyramid.lateral.1"
    assert share == pytest.approx(2, rel=0.2)
