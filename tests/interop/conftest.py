"""Networks whose weights come from a file."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor


def _zero(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
    tensor.detach().zero_()
    return tensor


@pytest.fixture(scope="module", autouse=True)
def _no_random_weights() -> Iterator[None]:
    """Begin at zero what a file replaces: to draw millions of weights takes longer than most tests here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_"):
            patch.setattr(torch.nn.init, name, _zero)
        yield
