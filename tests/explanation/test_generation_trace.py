"""What is told of a sentence is what the decoder computed when it wrote it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from boxwright.explanation.generation_trace import read_again, spelling, write_sentences
from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.sequence.vocabulary import NOISE, PAD
from boxwright.types import Batch


def test_probabilities_are_those_of_writing(writer: Pix2Seq, batch: Batch) -> None:
    said = writer.generate(writer(batch.images_BCHW, batch.sizes_B2))
    for row, sentence in enumerate(write_sentences(writer, batch)):
        assert sentence.tokens_N5.flatten().tolist() == said.tokens_BL[row].tolist()
        torch.testing.assert_close(torch.from_numpy(sentence.likelihoods()).log().flatten(), said.log_probs_BL[row])
        assert sentence.log_likelihood == pytest.approx(said.log_probs_BL[row].sum().item(), rel=1e-5)


def test_every_distribution_adds_up_to_one(writer: Pix2Seq, batch: Batch) -> None:
    for sentence in write_sentences(writer, batch):
        assert sentence.probabilities_N5V.shape == (4, 5, 180)
        assert sentence.places_N4R.shape == (4, 4, 50)
        assert sentence.attention_N5HW.shape == (4, 5, 6, 6)
        for values in (sentence.probabilities_N5V, sentence.places_N4R, sentence.attention_N5HW.reshape(4, 5, -1)):
            np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)
            assert (values >= 0).all()


def test_attention_is_the_share_of_what_each_word_gathers(writer: Pix2Seq) -> None:
    """Values that stand for one cell alone come back weighted by its share."""
    attention = writer.decoder.layers[0].cross_attention
    asking_BLE, memory_BME = torch.rand(1, 3, 24), torch.rand(1, 7, 24)
    seen = attention.keys_values(memory_BME)
    values_BHLE = torch.eye(7)[None, None, :, :].expand(1, 3, 7, 7)
    gathered_BLE = torch.nn.functional.scaled_dot_product_attention(
        attention.query(asking_BLE).unflatten(-1, (3, -1)).transpose(1, 2), seen.keys_BHLE, values_BHLE
    )
    torch.testing.assert_close(attention.weights(asking_BLE, seen), gathered_BLE)


def test_watching_changes_nothing_and_leaves_nothing(writer: Pix2Seq, batch: Batch) -> None:
    memory = writer(batch.images_BCHW, batch.sizes_B2)
    words = torch.randint(180, (2, 9))
    logits, attention = read_again(writer.decoder, words, memory)
    assert (logits == writer.decoder(words, memory)).all()
    assert attention.shape == (2, 9, 36)
    assert not any(module._forward_pre_hooks for module in writer.modules())


def test_a_learned_extra_cell_is_left_out(writer: Pix2Seq, batch: Batch) -> None:
    torch.manual_seed(0)
    extra = Pix2Seq(replace(writer.config, cls_token=True), writer.names, pretrained=False).eval()
    cells = write_sentences(extra, batch)[0].attention_N5HW
    assert cells.shape == (4, 5, 6, 6)
    assert (cells.sum((-1, -2)) < 1).all()


def test_boxes_and_scores_are_those_of_the_detector(writer: Pix2Seq, batch: Batch) -> None:
    decoded = writer.decode(writer(batch.images_BCHW, batch.sizes_B2)).to_detections(batch, writer.names)
    for sentence, found in zip(write_sentences(writer, batch), decoded, strict=True):
        best = sentence.best(4)
        np.testing.assert_allclose(sentence.found.scores_N[best], found.scores_N, rtol=1e-5)
        np.testing.assert_allclose(sentence.found.boxes_N4[best], found.boxes_N4, rtol=1e-5)
        assert sentence.best(2) == best[:2]


def test_a_few_objects_are_the_first_ones(writer: Pix2Seq, batch: Batch) -> None:
    few, all_of_them = (write_sentences(writer, batch, n)[0] for n in (2, None))
    assert (few.tokens_N5 == all_of_them.tokens_N5[:2]).all()
    np.testing.assert_allclose(few.attention_N5HW, all_of_them.attention_N5HW[:2], atol=1e-6)


def test_a_sentence_ends_with_its_end(writer: Pix2Seq, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    said = writer.generate(writer(batch.images_BCHW, batch.sizes_B2))
    writer.config = replace(writer.config, noise=False)  # else sentences never end, and the word is one like any other
    said.tokens_BL[0, 5:] = PAD
    said.tokens_BL[1, 0:] = PAD
    monkeypatch.setattr(writer, "generate", lambda raw, objects: said)
    one, none = write_sentences(writer, batch)
    assert (len(one), len(one.found), len(none), len(none.found)) == (1, 1, 0, 0)
    assert one.end is not None
    assert none.end is not None
    assert none.log_likelihood == pytest.approx(np.log(none.end), rel=1e-5)
    assert none.best(8) == []


def test_words_are_spelt_as_they_are_meant(writer: Pix2Seq) -> None:
    words = spelling(writer)
    assert len(words) == 180
    assert (words[120], words[169], words[101], words[102]) == ("0", "49", "cat", "<dog>")
    assert (words[NOISE], words[PAD], words[50]) == ("noise", "end", "#50")


def test_the_likeliest_words_come_first(writer: Pix2Seq, batch: Batch) -> None:
    sentence = write_sentences(writer, batch)[0]
    likeliest = sentence.likeliest(1, 4, 180)
    assert sorted(likeliest) == list(range(180))
    assert (np.diff(sentence.probabilities_N5V[1, 4, likeliest]) <= 0).all()


def test_only_what_grammar_allows_has_a_place(writer: Pix2Seq, batch: Batch) -> None:
    for sentence in write_sentences(writer, batch):
        written = np.take_along_axis(sentence.allowed_N5V, sentence.tokens_N5[..., None], -1)
        assert written.all()
        assert (sentence.allowed_N5V[:, 0].sum(-1) == 50).all()
        assert (sentence.allowed_N5V[:, 4].sum(-1) == 3).all()
        for slot, low in ((2, 0), (3, 1)):
            least = sentence.tokens_N5[:, low] - 120
            assert (sentence.allowed_N5V[:, slot].sum(-1) == 50 - least).all()
            for places_R, at in zip(sentence.places_N4R[:, slot], least, strict=True):
                assert (places_R[:at] == 0).all()
    writer.config = replace(writer.config, grammar=False)
    assert all(sentence.allowed_N5V.all() for sentence in write_sentences(writer, batch))
