import sys

from boxwright.training.fabric import Fabric, make_fabric


def test_torch_distributed_leaves_the_hook_for_tracebacks(monkeypatch):
    before = sys.excepthook
    monkeypatch.setattr(Fabric, "launch", lambda _: setattr(sys, "excepthook", print))
    make_fabric("cpu", "32-true", devices=2, nodes=1)
    assert sys.excepthook is before
