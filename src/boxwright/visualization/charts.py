"""Charts: training curves, precision over recall, confusion matrix, comparison of detectors.

Each is written to a PNG file. matplotlib's global state is not touched.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from boxwright.drawing import colour

_MEANINGS = {  # of the terms of a loss
    "class": "class scores",
    "l1": "L1 distance of boxes",
    "giou": "generalised IoU of boxes",
    "one": "scores, one box per object",
    "many": "scores, several cells per object",
    "tokens": "cross-entropy of tokens",
}


def curves(metrics: Path, out: Path) -> None:
    """Draw a run's metrics.csv: loss, AP and learning rate, and below them each term of the loss, layer by layer.

    Columns: step, epoch, lr, loss, ``loss_*``, and from validation val_ap, val_ap50, ``val_ap_*``, val_loss and
    ``val_loss_*``; cells, and the whole file, may be empty.
    """
    columns = _read_columns(metrics)
    terms = _terms(columns)
    rows = math.ceil(len(terms) / 4)
    figure = Figure(figsize=(13, 4.2 + 3.4 * rows), layout="constrained")
    upper, *lower = figure.subfigures(1 + rows, 1, squeeze=False, height_ratios=[4.2] + [3.4] * rows)[:, 0]
    loss_axes, ap_axes, rate_axes = upper.subplots(1, 3, width_ratios=[5, 5, 2.5])
    _plot_losses(loss_axes, columns, "loss")
    _plot_ap(ap_axes, columns)
    rate_axes.plot(*_pairs(columns, "step", "lr"), color=colour(9))
    _label_axes(loss_axes, "loss", "step", legend=True)
    _label_axes(ap_axes, "validation", "epoch", legend=True)
    ap_axes.set_ylim(-0.02, 1.02)
    ap_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _label_axes(rate_axes, "learning rate", "step", legend=False)
    for part, row in zip(lower, np.array_split(list(terms), rows) if rows else [], strict=True):
        for axes, term in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            _plot_term(axes, columns, term, terms[term])
    rate_axes.yaxis.set_major_formatter("{x:.1e}")
    rate_axes.set_ylim(bottom=0)
    _save(figure, out)


def precision_recall(
    recalls_R: np.ndarray, precision_TRK: np.ndarray, names: Sequence[str], out: Path, most: int = 12
) -> None:
    """Draw precision over recall at IoU 0.50 and 0.75, one line per class; the area under each is its AP.

    Args:
        recalls_R: recall values of the precisions.
        precision_TRK: at IoU 0.50, 0.55 ... 0.95; negative for classes without objects, which are left out.
        names: the classes.
        out: the file to write.
        most: with more classes than this, their lines are grey and only the mean is labelled.
    """
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    for axes, (title, precision_RK) in zip(
        figure.subplots(1, 2, sharey=True),
        (("IoU 0.50", precision_TRK[0]), ("IoU 0.75", precision_TRK[5])),
        strict=True,
    ):
        _plot_precision(axes, recalls_R, precision_RK, names, most)
        _label_axes(axes, title, "recall", legend=True)
        axes.set(xlim=(0, 1.0), ylim=(0, 1.02))
    figure.axes[0].set_ylabel("precision")
    _save(figure, out)


def f1_over_score(
    scores_S: np.ndarray,
    f1_by_class: Mapping[str, np.ndarray],
    best: Mapping[str, float],
    names: Sequence[str],
    overall: tuple[np.ndarray, np.ndarray, np.ndarray],
    threshold: float | None,
    out: Path,
    most: int = 12,
) -> None:
    """Draw F1 over the score above which detections count, and precision and recall of all classes together.

    Args:
        scores_S: the scores.
        f1_by_class: F1 (S,) of each class with objects.
        best: the threshold chosen for each class, marked with a dot.
        names: all classes; their positions decide the colours.
        overall: precision (NaN without detections), recall and F1, each (S,), of all classes together.
        threshold: the one chosen for all classes together.
        out: the file to write.
        most: with more classes than this, their lines are grey and only the one of all is labelled.
    """
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    by_class, together = figure.subplots(1, 2, sharey=True)
    many, (precision_S, recall_S, f1_S) = len(f1_by_class) > most, overall
    for name, values_S in f1_by_class.items():
        shade = "#b8c4cf" if many else colour(names.index(name))
        label = name + (f"  {best[name]:.3f}" if name in best else "")
        by_class.plot(scores_S, values_S, color=shade, linewidth=0.9 if many else 1.5, label=None if many else label)
        if name in best and not many:
            by_class.plot(best[name], np.interp(best[name], scores_S, values_S), color=shade, marker="o", clip_on=False)
    label = "all" + (f"  {threshold:.3f}" if threshold is not None else "")
    by_class.plot(scores_S, f1_S, color="#222222", linewidth=2, linestyle="--", label=label)
    for values_S, name, number in ((precision_S, "precision", 0), (recall_S, "recall", 2)):
        together.plot(scores_S, values_S, color=colour(number), label=name)
    together.plot(scores_S, f1_S, color="#222222", linewidth=2, linestyle="--", label="F1")
    if threshold is not None:
        together.axvline(threshold, color="#777777", linewidth=1, linestyle=":")
    _label_axes(by_class, "F1", "score over", legend=True)
    _label_axes(together, "all classes, one threshold", "score over", legend=True)
    by_class.set(xlim=(0, 1), ylim=(0, 1.02))
    together.set_xlim(0, 1)
    _save(figure, out)


def confusion(matrix: np.ndarray, names: Sequence[str], out: Path, note: str = "") -> None:
    """Draw a confusion matrix (K + 1, K + 1): rows are true classes, columns predicted ones, the last is background.

    Shades are shares of the row, but for the last one; numbers are counts, and shown for up to 20 classes.
    """
    labels, edge = [*names, "background"], len(names) - 0.5
    few = len(names) <= 20
    side = min(max(4.2, 0.62 * len(labels) + 2.2), 22)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    share[-1] = 0  # false alarms have no true class that they could be a share of
    figure.colorbar(
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1), ax=axes, shrink=0.8, label="share of the objects of a class"
    )
    axes.set_xticks(range(len(labels)), labels, rotation=45 if few else 90, ha="right" if few else "center")
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0, labelsize=9 if few else 7)
    axes.set(xlabel="predicted (last column: missed)", ylabel="true (last row: false alarms)")
    axes.set_title(note, fontsize=9, color="#555555")
    axes.axhline(edge, color="#555555", linewidth=0.8)
    axes.axvline(edge, color="#555555", linewidth=0.8)
    axes.spines[:].set_visible(False)
    for (row, column), count in np.ndenumerate(matrix) if few else ():
        shade = "white" if share[row, column] > 0.55 else "#222222" if count else "#bbbbbb"
        axes.text(column, row, str(count), ha="center", va="center", color=shade, fontsize=9)
    _save(figure, out)


def comparison(
    curves: Mapping[str, Sequence[tuple[float, float]]], points: Mapping[str, tuple[float, float]], out: Path
) -> None:
    """Draw AP over minutes of training, one line per detector, and last AP over latency, one dot per detector.

    Args:
        curves: (minutes, AP) of each validation, by detector.
        points: (milliseconds per image, AP), by detector.
        out: the file to write.
    """
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    over_time, over_cost = figure.subplots(1, 2, sharey=True)
    for n, (name, pairs) in enumerate(curves.items()):
        mark = {"marker": "o" if len(pairs) < 60 else "", "markersize": 3.5, "clip_on": False}
        over_time.plot(*zip(*pairs, strict=True), color=colour(n), label=name, **mark)
        over_cost.scatter(*points[name], color=colour(n), s=60, zorder=3, clip_on=False)
    _label_axes(over_time, "AP while training", "minutes of training and validation", legend=True)
    _label_axes(over_cost, "AP and speed", "milliseconds per image (further left is faster)", legend=False)
    over_cost.set_xlim(0, 1.3 * max(milliseconds for milliseconds, _ in points.values()))
    top = max(*(ap for pairs in curves.values() for _, ap in pairs), *(ap for _, ap in points.values()), 0.01) * 1.12
    over_time.set(ylim=(0, top), xlim=(0, None), ylabel="AP")
    _name_points(over_cost, points, top)
    _save(figure, out)


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]], top: float) -> None:
    """Write its name to the right of each point; names that would lie on each other are moved up, with a thin line."""
    right, last = axes.get_xlim()[1], -1.0
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1][1]):
        last = max(y, last + 0.055 * top)
        line = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.7} if last > y else None
        place = (x + 0.03 * right, last)
        axes.annotate(name, (x, y), place, color="#222222", fontsize=10, va="center", arrowprops=line)


def _terms(columns: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """The columns of each term of the loss, one per layer; empty where the loss has only one term."""
    names = [name for name in columns if name.startswith("loss_")]
    terms: dict[str, list[str]] = {}
    for name in names:
        terms.setdefault(re.sub(r"_\d+$", "", name), []).append(name)
    return terms if len(names) > 1 else {}


def _plot_term(axes: Axes, columns: dict[str, np.ndarray], term: str, names: Sequence[str]) -> None:
    """One line per layer, from the first (dark) to the last (bright); a term without layers looks like the loss."""
    if len(names) == 1:
        _plot_losses(axes, columns, names[0])
    else:
        shades = matplotlib.colormaps["plasma"](np.linspace(0.0, 0.85, len(names)))
        for name, shade in zip(sorted(names, key=_layer), shades, strict=True):
            _plot_losses(axes, columns, name, shade, f"layer {_layer(name)}")
        axes.plot([], [], color="#555555", linestyle="--", marker=".", label="validation")
        axes.set_ylim(bottom=0)
    term = term.removeprefix("loss_")
    noisy, plain = term.startswith("noisy_"), term.removeprefix("noisy_")
    meaning = _MEANINGS.get(plain, "")
    title = f"{term}: {meaning}{', denoising' if noisy else ''}" if meaning else term
    _label_axes(axes, title, "step", legend=True)


def _layer(name: str) -> int:
    return int(name.rpartition("_")[2])


def _plot_losses(
    axes: Axes, columns: dict[str, np.ndarray], name: str, shade: Any = "#222222", layer: str | None = None
) -> None:
    """A loss in training, as running mean over the noisy values (without them for a `layer`), and in validation."""
    steps, values = _pairs(columns, "step", name)
    mean = _running_mean(values)
    axes.plot(steps, mean, color=shade, linewidth=1.3 if layer else 1.6, label=layer or "training")
    steps_val, values_val = _pairs(columns, "step", f"val_{name}")
    dots = {"marker": "." if len(values_val) < 60 else "", "markersize": 4, "linestyle": "--", "linewidth": 1.2}
    shade_val, label_val = (shade, None) if layer else (colour(3), "validation" if len(values_val) else None)
    axes.plot(steps_val, values_val, color=shade_val, label=label_val, **dots)
    if not layer:
        axes.plot(steps, values, color=shade, alpha=0.18, linewidth=0.8, zorder=1)
        top = max([*mean.tolist(), *values_val.tolist()], default=0.0)
        axes.set_ylim(0, top * 1.08 if top > 0 else None)


def _plot_ap(axes: Axes, columns: dict[str, np.ndarray]) -> None:
    """AP and AP50 with their maximum, and AP by object size."""
    lines = [("val_ap50", "AP50", colour(1)), ("val_ap", "AP", colour(0))]
    lines += [(f"val_ap_{size}", f"AP {size}", colour(n)) for size, n in (("small", 6), ("medium", 4), ("large", 2))]
    for name, title, shade in lines:
        epochs, values = _pairs(columns, "epoch", name)
        if name.startswith("val_ap_"):
            axes.plot(epochs, values, color=shade, label=title if len(values) else None, linewidth=1.1, linestyle="--")
            continue
        axes.plot(epochs, values, color=shade, label=title, marker="o" if len(values) < 60 else "", markersize=3.5)
        if len(values):
            best = int(np.argmax(values))
            axes.annotate(f"{values[best]:.3f}", (epochs[best], values[best]), (0, 5), textcoords="offset points",
                          ha="center", color=shade, fontsize=9)  # fmt: skip


def _plot_precision(
    axes: Axes, recalls_R: np.ndarray, precision_RK: np.ndarray, names: Sequence[str], most: int
) -> None:
    with_objects = [k for k in range(len(names)) if precision_RK[0, k] >= 0]
    ap_K = precision_RK.mean(0)
    for k in sorted(with_objects, key=lambda k: -ap_K[k]):
        many = len(with_objects) > most
        axes.plot(recalls_R, precision_RK[:, k], color="#b8c4cf" if many else colour(k), linewidth=0.9 if many else 1.5,
                  label=None if many else f"{names[k]}  {ap_K[k]:.3f}")  # fmt: skip
    if len(with_objects) > 1:
        mean_R = precision_RK[:, with_objects].mean(1)
        axes.plot(recalls_R, mean_R, color="#222222", linewidth=2, linestyle="--", label=f"mean  {mean_R.mean():.3f}")
    if not with_objects:
        axes.text(0.5, 0.5, "no objects in the data", ha="center", va="center", color="#777777")


def _label_axes(axes: Axes, title: str, x_label: str, legend: bool) -> None:
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(x_label)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)


def _save(figure: Figure, out: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png", dpi=130)


def _read_columns(metrics: Path) -> dict[str, np.ndarray]:
    """Each column of a CSV file as floats; NaN where a cell is empty or not a number."""
    with metrics.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return {name: np.array([_number(row[name]) for row in rows]) for name in reader.fieldnames or ()}


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan


def _pairs(columns: dict[str, np.ndarray], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Two columns, without rows in which either is not finite."""
    nothing = np.empty(0)
    xs, ys = columns.get(x, nothing), columns.get(y, nothing)
    if len(xs) != len(ys):
        return nothing, nothing
    both = np.isfinite(xs) & np.isfinite(ys)
    return xs[both], ys[both]


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each value and its neighbours over a fortieth of the run; windows are shorter at the ends."""
    width = len(values) // 40 * 2 + 1
    if width == 1:
        return values
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
