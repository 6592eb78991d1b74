import torch

from boxwright.models.layers.dropout import Dropout


def test_share_scale_and_gradient():
    torch.manual_seed(0)
    x = torch.ones(3, 101, 1001, requires_grad=True)
    dropped = Dropout(0.1)(x)
    dropped.sum().backward()
    assert abs((dropped == 0).float().mean() - 0.1) < 0.002
    assert torch.equal(dropped, x.grad)
    torch.testing.assert_close(dropped[dropped > 0], torch.full((), 1 / 0.9).expand(int((dropped > 0).sum())))


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(400_000)) > 0).float().view(-1, 4)
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02
    assert (kept.mean(0) - 0.5).abs().max() < 0.01


def test_a_seed_repeats_it_and_evaluation_leaves_it_out():
    layer, x = Dropout(0.3), torch.randn(7, 13)
    one, other = (torch.manual_seed(1) and layer(x) for _ in range(2))
    assert torch.equal(one, other)
    assert layer.eval()(x) is x or torch.equal(layer(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert Dropout(0.3)(x.bfloat16()).dtype == torch.bfloat16
