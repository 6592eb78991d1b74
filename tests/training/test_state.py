import pytest
import torch

from boxwright.config import UserError
from boxwright.training.state import FILE, Progress, read_state, restore, save_state


def parts():
    model = torch.nn.Sequential(torch.nn.Unflatten(1, (3, 1, 1)), torch.nn.Conv2d(3, 4, (3, 2), padding=1))
    model.to(memory_format=torch.channels_last)  # which a state on disk is not, and a fused step relies on
    return model, torch.optim.AdamW(model.parameters(), 1e-2, fused=True)


def step(model, optimizer, seed):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_resumed_steps_equal_uninterrupted_ones(tmp_path):
    model, optimizer = parts()
    for seed in range(3):
        step(model, optimizer, seed)
    save_state(tmp_path, Progress(3, 0.5, 1, "abc"), model, None, optimizer)
    other, its_optimizer = parts()
    progress, tensors = read_state(tmp_path)
    assert progress == Progress(3, 0.5, 1, "abc")
    restore(tmp_path, tensors, other, None, its_optimizer)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, its_optimizer, seed)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_network_is_refused(tmp_path):
    model, optimizer = parts()
    save_state(tmp_path, Progress(), model, None, optimizer)
    other = torch.nn.Linear(3, 1)
    with pytest.raises(UserError, match="another network"):
        restore(tmp_path, read_state(tmp_path)[1], other, None, torch.optim.AdamW(other.parameters()))


@pytest.mark.parametrize(
    ("begun", "given", "begun_with"),
    [("abc", "def", "another teacher"), ("abc", "", "a teacher"), ("", "def", "no teacher")],
)
def test_another_teacher_is_refused(tmp_path, begun, given, begun_with):
    model, optimizer = parts()
    save_state(tmp_path, Progress(teacher=begun), model, None, optimizer)
    with pytest.raises(UserError, match=f"was begun with {begun_with}; resume as"):
        read_state(tmp_path, given)


def test_a_state_that_does_not_name_a_teacher_is_read(tmp_path):
    model, optimizer = parts()
    save_state(tmp_path, Progress(5), model, None, optimizer)
    assert read_state(tmp_path, "abc")[0].step == 5


def test_missing_and_damaged_states_are_reported(tmp_path):
    with pytest.raises(UserError, match="nothing to resume"):
        read_state(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a state")
    with pytest.raises(UserError, match="cut short or damaged"):
        read_state(tmp_path)
