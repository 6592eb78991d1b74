"""The epochs of a recipe follow from the number of images."""

from itertools import pairwise
from pathlib import Path

import pytest

from boxwright.models.registry import DETECTORS
from boxwright.training.config import RunConfig, epochs_of_run
from boxwright.training.recipes import FEWEST_EPOCHS, MOST_EPOCHS, RECIPES, USUAL_IMAGES, recipe
from boxwright.training.resolve import decide_epochs, resolve

NUMBERS = [round(1.3**n) for n in range(55)]  # from 1 image to over a million


@pytest.mark.parametrize("model", [model for model in DETECTORS if not RECIPES[model].published])
def test_more_images_mean_fewer_epochs_and_more_steps(model):
    found = recipe(model)
    epochs = [found.epochs_for(images) for images in NUMBERS]
    assert all(b <= a for a, b in pairwise(epochs))
    assert all(b <= 1.25 * a + 1 for b, a in pairwise(epochs))  # no jumps
    steps = [n * images for n, images in zip(epochs, NUMBERS, strict=True)]
    assert all(b >= a for a, b in pairwise(steps))
    assert epochs[0] == MOST_EPOCHS
    assert epochs[-1] == FEWEST_EPOCHS


def test_the_recipe_names_the_epochs_of_a_usual_number_of_images():
    assert recipe("dense").epochs_for(USUAL_IMAGES) == recipe("dense").epochs


def test_the_documentation_has_the_numbers_of_the_rule():
    few, some, usual, many, most = (recipe("dense").epochs_for(n) for n in (50, 200, 300, 1700, 118_000))
    told = (
        f"{few} epochs for 50 images, {some} for 200, {usual} for 300, {many} for 1,700 and {most} for the 118,000 of "
        f"COCO; never over {MOST_EPOCHS}"
    )
    assert told in " ".join((Path(__file__).parents[2] / "docs" / "train.md").read_text().split())


@pytest.mark.parametrize("size", ["resnet50", "nano"])
def test_a_published_form_keeps_its_epochs(size):
    found = recipe("detr", size)
    assert (len({found.epochs_for(images) for images in NUMBERS}) == 1) is (size == "resnet50")


def test_given_epochs_count_and_open_ones_are_decided_by_the_images(tmp_path):
    left_open = resolve(RunConfig(tmp_path, out=tmp_path))
    assert left_open.epochs is None
    assert decide_epochs(left_open, 50).epochs == recipe("dense").epochs_for(50)
    assert decide_epochs(resolve(RunConfig(tmp_path, epochs=7)), 50).epochs == 7


@pytest.mark.parametrize(
    ("text", "epochs"),
    [("epochs: 7", 7), ("epochs: 0", None), ("epochs: many", None), ("[", None), ("7", None), (None, None)],
)
def test_a_resumed_run_keeps_the_epochs_of_its_config_if_that_says_them(tmp_path, text, epochs):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    left_open = resolve(RunConfig(tmp_path, out=tmp_path))
    assert epochs_of_run(tmp_path) == epochs
    usual = recipe("dense").epochs_for(50)
    assert decide_epochs(left_open, 50, resume=True).epochs == (epochs or usual)
    assert decide_epochs(left_open, 50).epochs == usual
