import torch

from boxwright.models.layers.position_encoding import sincos, sincos_2d
from helpers import pix2seq_golden

GOLDEN = pix2seq_golden.tokens()


def test_codes_equal_the_official_ones():
    positions = torch.arange(32) * 2 * torch.pi / 31
    torch.testing.assert_close(sincos(positions, 24), GOLDEN["pos1d_32x24"], rtol=0, atol=1e-6)
    torch.testing.assert_close(sincos_2d(4, 6, 32), GOLDEN["pos2d_4x6x32"], rtol=0, atol=1e-6)


def test_rows_share_the_first_half_and_columns_the_second():
    codes = sincos_2d(5, 7, 16).view(5, 7, 16)
    assert (codes[:, :1, :8] == codes[:, :, :8]).all()
    assert (codes[:1, :, 8:] == codes[:, :, 8:]).all()


def test_a_single_cell_has_a_code():
    assert torch.isfinite(sincos_2d(1, 1, 8)).all()
