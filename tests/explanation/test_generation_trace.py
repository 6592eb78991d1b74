"""A trace holds what the decoder computed when it generated the sequence."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from boxwright.explanation.generation_trace import read_again, token_names, trace_generation
from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.sequence.vocabulary import NOISE, PAD
from boxwright.types import Batch


def test_probabilities_are_those_of_generation(pix2seq: Pix2Seq, batch: Batch) -> None:
    generated = pix2seq.generate(pix2seq(batch.images_BCHW, batch.sizes_B2))
    for row, trace in enumerate(trace_generation(pix2seq, batch)):
        assert trace.tokens_N5.flatten().tolist() == generated.tokens_BL[row].tolist()
        torch.testing.assert_close(
            torch.from_numpy(trace.token_probabilities()).log().flatten(), generated.log_probs_BL[row]
        )
        assert trace.log_likelihood == pytest.approx(generated.log_probs_BL[row].sum().item(), rel=1e-5)


def test_every_distribution_adds_up_to_one(pix2seq: Pix2Seq, batch: Batch) -> None:
    for trace in trace_generation(pix2seq, batch):
        assert trace.probabilities_N5V.shape == (4, 5, 180)
        assert trace.coordinates_N4R.shape == (4, 4, 50)
        assert trace.attention_N5HW.shape == (4, 5, 6, 6)
        for values in (trace.probabilities_N5V, trace.coordinates_N4R, trace.attention_N5HW.reshape(4, 5, -1)):
            np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
            assert (values >= 0).all()


def test_attention_weights_are_those_of_the_weighted_sum(pix2seq: Pix2Seq) -> None:
    """One-hot values come back as the weights."""
    attention = pix2seq.decoder.layers[0].cross_attention
    queries_BLE, memory_BME = torch.rand(1, 3, 24), torch.rand(1, 7, 24)
    keys_values = attention.keys_values(memory_BME)
    values_BHLE = torch.eye(7)[None, None, :, :].expand(1, 3, 7, 7)
    summed_BLE = torch.nn.functional.scaled_dot_product_attention(
        attention.query(queries_BLE).unflatten(-1, (3, -1)).transpose(1, 2), keys_values.keys_BHLE, values_BHLE
    )
    torch.testing.assert_close(attention.weights(queries_BLE, keys_values), summed_BLE)


def test_recording_changes_nothing_and_leaves_nothing(pix2seq: Pix2Seq, batch: Batch) -> None:
    memory = pix2seq(batch.images_BCHW, batch.sizes_B2)
    tokens = torch.randint(180, (2, 9))
    again = read_again(pix2seq.decoder, tokens, memory)
    assert (again.logits_BLV == pix2seq.decoder(tokens, memory)).all()
    assert again.attention_BLM.shape == (2, 9, 36)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in pix2seq.modules())


def test_a_learned_extra_cell_is_left_out(pix2seq: Pix2Seq, batch: Batch) -> None:
    torch.manual_seed(0)
    extra = Pix2Seq(replace(pix2seq.config, cls_token=True), pix2seq.names, pretrained=False).eval()
    cells = trace_generation(extra, batch)[0].attention_N5HW
    assert cells.shape == (4, 5, 6, 6)
    assert (cells.sum((-1, -2)) < 1).all()


def test_boxes_and_scores_are_those_of_the_detector(pix2seq: Pix2Seq, batch: Batch) -> None:
    decoded = pix2seq.decode(pix2seq(batch.images_BCHW, batch.sizes_B2)).to_detections(batch, pix2seq.names)
    for trace, found in zip(trace_generation(pix2seq, batch), decoded, strict=True):
        best = trace.best(4)
        np.testing.assert_allclose(trace.found.scores_N[best], found.scores_N, rtol=1e-5)
        np.testing.assert_allclose(trace.found.boxes_N4[best], found.boxes_N4, rtol=1e-5)
        assert trace.best(2) == best[:2]


def test_a_few_objects_are_the_first_ones(pix2seq: Pix2Seq, batch: Batch) -> None:
    few, all_of_them = (trace_generation(pix2seq, batch, n)[0] for n in (2, None))
    assert (few.tokens_N5 == all_of_them.tokens_N5[:2]).all()
    np.testing.assert_allclose(few.attention_N5HW, all_of_them.attention_N5HW[:2], atol=1e-6)


def test_a_trace_ends_where_the_sequence_ends(pix2seq: Pix2Seq, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    generated = pix2seq.generate(pix2seq(batch.images_BCHW, batch.sizes_B2))
    pix2seq.config = replace(pix2seq.config, noise=False)  # else sequences never end
    generated.tokens_BL[0, 5:] = PAD
    generated.tokens_BL[1, 0:] = PAD
    monkeypatch.setattr(pix2seq, "generate", lambda outputs, objects: generated)
    one, none = trace_generation(pix2seq, batch)
    assert (len(one), len(one.found), len(none), len(none.found)) == (1, 1, 0, 0)
    assert one.end is not None
    assert none.end is not None
    assert none.log_likelihood == pytest.approx(np.log(none.end), rel=1e-5)
    assert none.best(8) == []


def test_tokens_have_the_names_of_what_they_mean(pix2seq: Pix2Seq) -> None:
    names = token_names(pix2seq)
    assert len(names) == 180
    assert (names[120], names[169], names[101], names[102]) == ("0", "49", "cat", "<dog>")
    assert (names[NOISE], names[PAD], names[50]) == ("noise", "end", "#50")


def test_the_most_probable_tokens_come_first(pix2seq: Pix2Seq, batch: Batch) -> None:
    trace = trace_generation(pix2seq, batch)[0]
    most_probable = trace.most_probable(1, 4, 180)
    assert sorted(most_probable) == list(range(180))
    assert (np.diff(trace.probabilities_N5V[1, 4, most_probable]) <= 0).all()


def test_only_allowed_coordinates_have_a_probability(pix2seq: Pix2Seq, batch: Batch) -> None:
    for trace in trace_generation(pix2seq, batch):
        chosen = np.take_along_axis(trace.allowed_N5V, trace.tokens_N5[..., None], -1)
        assert chosen.all()
        assert (trace.allowed_N5V[:, 0].sum(-1) == 50).all()
        assert (trace.allowed_N5V[:, 4].sum(-1) == 3).all()
        for slot, low in ((2, 0), (3, 1)):
            least = trace.tokens_N5[:, low] - 120
            assert (trace.allowed_N5V[:, slot].sum(-1) == 50 - least).all()
            for coordinates_R, first in zip(trace.coordinates_N4R[:, slot], least, strict=True):
                assert (coordinates_R[:first] == 0).all()
    pix2seq.config = replace(pix2seq.config, grammar=False)
    assert all(trace.allowed_N5V.all() for trace in trace_generation(pix2seq, batch))
