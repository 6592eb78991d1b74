"""What a copying decoder's trace says about proposals is what its tokens were mixed from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from boxwright.explanation.copied_proposals import CELLS, proposal_maps
from boxwright.explanation.generation_trace import read_again, trace_generation
from boxwright.models.patchseq import PatchSeq
from boxwright.models.pix2seq import Pix2Seq
from boxwright.models.sequence.side_distributions import box_log_probs
from boxwright.types import Batch


def test_the_tokens_are_those_of_generation(copying: Pix2Seq, batch: Batch) -> None:
    generated = copying.generate(copying(batch.images_BCHW, batch.sizes_B2))
    for row, trace in enumerate(trace_generation(copying, batch)):
        found = torch.from_numpy(trace.token_probabilities()).log().flatten()
        torch.testing.assert_close(found, generated.log_probs_BL[row], rtol=1e-4, atol=1e-4)


def test_every_distribution_adds_up_to_one(copying: Pix2Seq, batch: Batch) -> None:
    for trace in trace_generation(copying, batch):
        assert trace.copied is not None
        assert trace.copied.weights_N5X.shape == (4, 5, 21)
        assert trace.attention_N5HW.shape == (4, 5, CELLS, CELLS)
        for values in (trace.copied.weights_N5X, trace.coordinates_N4R, trace.attention_N5HW.reshape(4, 5, -1)):
            np.testing.assert_allclose(values.sum(-1), 1, atol=1e-5)


@torch.no_grad()
def test_weights_given_the_box_follow_from_those_before_by_the_rule_of_bayes(copying: Pix2Seq, batch: Batch) -> None:
    proposals = copying(batch.images_BCHW, batch.sizes_B2).proposals
    vocabulary = copying.vocabulary()
    for row, trace in enumerate(trace_generation(copying, batch)):
        copied = trace.copied
        assert copied is not None
        bins_1N4 = vocabulary.side_bins(torch.from_numpy(trace.tokens_N5[:, :4]))[None]
        log_probs_CN = box_log_probs(
            proposals.boxes_BC4[row : row + 1], proposals.spreads_BC4[row : row + 1], bins_1N4, vocabulary.edges()
        )[0]
        before_NC, given_NC = (torch.from_numpy(copied.weights_N5X[:, slot, :-1]) for slot in (0, 4))
        expected_NC = (before_NC * log_probs_CN.exp().T).numpy()
        shares_NC = expected_NC / expected_NC.sum(-1, keepdims=True)
        np.testing.assert_allclose(shares_NC, given_NC / given_NC.sum(-1, keepdim=True), rtol=1e-3, atol=1e-5)


def test_a_box_written_as_a_proposal_is_copied_from_it(copying: Pix2Seq, batch: Batch) -> None:
    """Where sides are known exactly, an object names its source."""
    torch.nn.init.constant_(copying.proposer.spread.bias, -9.0)  # type: ignore[union-attr]
    torch.nn.init.constant_(copying.decoder.gate.bias, -9.0)
    for trace in trace_generation(copying, batch):
        copied = trace.copied
        assert copied is not None
        corners_N4 = copied.boxes_C4[[copied.source(n) for n in range(4)]][:, [1, 0, 3, 2]]
        np.testing.assert_allclose(corners_N4.clip(0, 1), trace.corners_N4, atol=0.02)
        assert (copied.gates() < 0.1).all()
        assert [copied.source(n) for n in range(4)] == copied.weights_N5X[:, 4].argmax(-1).tolist()


def test_with_an_open_gate_objects_are_the_own_box(copying: Pix2Seq, batch: Batch) -> None:
    torch.nn.init.constant_(copying.decoder.gate.bias, 30.0)
    copied = trace_generation(copying, batch)[0].copied
    assert copied is not None
    assert (copied.gates() > 0.99).all()
    assert copied.source(0) == copied.own == 20
    assert (copied.name(copied.own), copied.name(0)) == ("own box", "proposal 1")
    assert copied.boxes(2).shape == (21, 4)
    np.testing.assert_array_equal(copied.boxes(2)[-1], copied.own_boxes_N4[2])


@pytest.mark.parametrize("how", [{"beams": 2}, {"top_p": 0.9}, {"repeats": False}, {"grammar": False}], ids=str)
def test_any_way_of_sampling_can_be_traced(copying: Pix2Seq, batch: Batch, how: dict[str, float]) -> None:
    copying.config = replace(copying.config, **how)  # type: ignore[arg-type]
    assert all(len(trace) == 4 for trace in trace_generation(copying, batch))


def test_recording_leaves_nothing(copying: Pix2Seq, batch: Batch) -> None:
    proposals = copying(batch.images_BCHW, batch.sizes_B2).proposals
    again = read_again(copying.decoder, torch.randint(180, (2, 10)), proposals)
    assert again.attention_BLM.shape == (2, 2, 20)
    assert again.states_BLE.shape == (2, 2, 24)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in copying.modules())


def test_attention_lies_where_the_proposal_is() -> None:
    boxes_BC4 = torch.tensor([[[0.1, 0.3, 0.3, 0.5], [0.8, 0.8, 1.4, 1.4]]])
    one, other = proposal_maps(torch.eye(2)[None], boxes_BC4)[0]
    assert divmod(int(one.argmax()), CELLS) in [(y, x) for y in (12, 13) for x in (6,)]
    assert divmod(int(other.argmax()), CELLS) == (CELLS - 1, CELLS - 1)
    torch.testing.assert_close(one.sum(), torch.tensor(1.0))


def test_patches_are_those_of_generation_and_hold_the_corners(copying_patches: PatchSeq, batch: Batch) -> None:
    """Corner by corner: the map adds up to one, and has what was generated where the box begins and ends."""
    outputs = copying_patches(batch.images_BCHW, batch.sizes_B2)
    generated = copying_patches.generate(outputs)
    for row, trace in enumerate(trace_generation(copying_patches, batch)):
        found = torch.from_numpy(trace.token_probabilities()).log().flatten()
        torch.testing.assert_close(found, generated.log_probs_BL[row], rtol=1e-4, atol=1e-4)
        assert trace.copied is not None
        assert trace.patches is not None
        maps_N2HW = trace.patches.maps_N2HW
        rows, columns = copying_patches.vocabulary(outputs).grid
        assert maps_N2HW.shape == (4, 2, rows, columns)
        np.testing.assert_allclose(maps_N2HW.sum((-1, -2)), 1, atol=1e-5)
        for n, corner in np.ndindex(4, 2):
            y, x = trace.corners_N4[n, 2 * corner : 2 * corner + 2] * 96 / 16
            name = trace.token_names[trace.tokens_N5[n, 2 * corner]]
            assert name == f"{int(y) + 1},{int(x) + 1}"
            assert maps_N2HW[n, corner, int(y), int(x)] == maps_N2HW[n, corner].max()  # nothing was drawn


def test_a_second_patch_is_neither_above_nor_left_of_the_first(copying_patches: PatchSeq, batch: Batch) -> None:
    for trace in trace_generation(copying_patches, batch):
        assert trace.patches is not None
        for n, map_HW in enumerate(trace.patches.maps_N2HW[:, 1]):
            first = [int(part) - 1 for part in trace.token_names[trace.tokens_N5[n, 0]].split(",")]
            assert map_HW[: first[0]].sum() == map_HW[:, : first[1]].sum() == 0
            assert (map_HW[first[0] :, first[1] :] > 0).all()
