"""Charts can be drawn of any table, and for any number of classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boxwright.visualization import charts


def is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and picture.width > 400 and np.asarray(picture).std() > 1


@pytest.mark.parametrize(
    "table",
    [
        "",
        "step,epoch,lr,loss,val_ap,val_ap50\n",
        "step,epoch,lr,loss,loss_l1,val_ap,val_ap50\n1,0.5,0.1,3.0,2.0,,\n2,1.0,0.1,2.0,1.0,0.1,0.3\n",
        "step,epoch,lr,loss,val_ap,val_ap50\n1,0.5,,nan,,\n2,1.0,0.1,inf,-1.0,-1.0\n3,1.5,0.1",
        "step,epoch,lr,loss,loss_l1_10,loss_l1_2,loss_x,val_ap,val_ap50,val_ap_large,val_loss,val_loss_l1_2\n"
        "1,0.5,0.1,3.0,2.0,1,1,,,,,\n2,1.0,0.1,2.0,1.0,1,1,0.1,0.3,0.2,4.0,2.5\n",
        "step,epoch,lr,loss,loss_a\n" + "".join(f"{i},{i / 9},0.1,{9 - i / 99},1\n" for i in range(200)),
    ],
)
def test_curves_of_any_table(tmp_path: Path, table: str) -> None:
    (tmp_path / "metrics.csv").write_text(table)
    charts.curves(tmp_path / "metrics.csv", tmp_path / "curves")
    assert is_picture(tmp_path / "curves")


def test_terms_are_told_from_their_layers() -> None:
    names = ["step", "loss", "loss_l1_1", "loss_l1_2", "loss_noisy_l1_1", "loss_tokens", "val_loss_l1_1"]
    assert charts._terms(dict.fromkeys(names, np.zeros(1))) == {
        "loss_l1": ["loss_l1_1", "loss_l1_2"], "loss_noisy_l1": ["loss_noisy_l1_1"], "loss_tokens": ["loss_tokens"],
    }  # fmt: skip
    assert charts._terms({"loss": np.zeros(1), "loss_tokens": np.zeros(1)}) == {}


def test_the_running_mean_of_a_constant_is_the_constant() -> None:
    np.testing.assert_allclose(charts._running_mean(np.full(100, 3.0)), 3.0)
    values = np.arange(100.0)
    np.testing.assert_allclose(charts._running_mean(values)[2:-2], values[2:-2])


@pytest.mark.parametrize("n_classes", [1, 3, 30])
def test_charts_for_any_number_of_classes(tmp_path: Path, n_classes: int) -> None:
    names = [f"class {k}" for k in range(n_classes)]
    precision_TRK = np.linspace(1, 0, 101)[None, :, None].repeat(10, 0).repeat(n_classes, 2)
    precision_TRK[:, :, 0] = -1
    charts.precision_recall(np.linspace(0, 1, 101), precision_TRK, names, tmp_path / "pr.png")
    matrix = np.arange((n_classes + 1) ** 2).reshape(n_classes + 1, -1)
    charts.confusion(matrix, names, tmp_path / "confusion.png")
    assert is_picture(tmp_path / "pr.png")
    assert is_picture(tmp_path / "confusion.png")


def test_a_comparison_is_drawn_with_a_dot_for_each(tmp_path: Path) -> None:
    curves = {"a": [(1.0, 0.1), (2.0, 0.2)], "b": [(1.5, 0.0)]}
    charts.comparison(curves, {"a": (12.0, 0.2), "b": (400.0, 0.0)}, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1495, 598)
