import json

import pytest

from boxwright.config import UserError
from boxwright.interop.classes import coco, parse_classes


def test_coco_has_eighty_names_and_holes():
    names, numbers = coco()
    assert len(names) == len(set(names)) == len(numbers) == 80
    known = dict(zip(numbers, names, strict=True))
    assert (known[1], known[13], known[90]) == ("person", "stop sign", "toothbrush")
    holes = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert set(range(1, 91)) - set(numbers) == holes


def test_names_between_commas_are_numbered_from_one():
    assert parse_classes("cat, dog", range(1, 900)) == (("cat", "dog"), (1, 2))
    assert parse_classes("cat,dog", range(91)) == (("cat", "dog"), (1, 2))
    assert parse_classes("cat,dog", range(2)) == (("cat", "dog"), (0, 1))  # as many as there are numbers


def test_a_list_may_be_longer_than_a_file_name():
    names = tuple(f"class {number}" for number in range(91))
    assert parse_classes(",".join(names), range(91)) == (names, tuple(range(91)))


def test_files(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\nred fox \n")
    assert parse_classes(str(tmp_path / "names.txt"), range(1, 900)).names == ("cat", "red fox")
    rows = [{"id": 17, "name": "cat"}, {"id": 3, "name": "car", "supercategory": "vehicle"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "categories": rows}))
    assert parse_classes(str(tmp_path / "coco.json"), range(91)) == (("car", "cat"), (3, 17))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a,b,a", "more than one class a"),
        ("a,,b", "none may be empty"),
        ("a,b,c,d", "has tokens for 1 to 3, not for 4"),
        ("missing.txt", "missing.txt can't be read: No such file"),
        ("missing.json", "missing.json can't be read: No such file"),
    ],
)
def test_mistakes_are_one_line(text, error):
    with pytest.raises(UserError, match=error):
        parse_classes(text, range(1, 4))


@pytest.mark.parametrize("text", ["{", "[]", '{"categories": [{"id": "x", "name": "y"}]}', '{"categories": []}'])
def test_json_without_categories_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"--classes .*x.json"):
        parse_classes(str(tmp_path / "x.json"), range(91))


@pytest.mark.parametrize("text", ["coco.names", "lists/coco", "adir"])
def test_a_missing_file_is_not_taken_for_a_class(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adir").mkdir()
    with pytest.raises(UserError, match=f"--classes {text} can't be read: .*; give a COCO file, a text file"):
        parse_classes(text, range(91))


def test_names_may_hold_dots_and_strokes(tmp_path):
    assert parse_classes("St. Bernard", range(91)).names == ("St. Bernard",)
    assert parse_classes("n/a, coco.names", range(91)).names == ("n/a", "coco.names")


def test_an_id_that_two_classes_have_is_refused(tmp_path):
    rows = [{"id": 3, "name": "car"}, {"id": 3, "name": "cat"}]
    (tmp_path / "x.json").write_text(json.dumps({"categories": rows}))
    with pytest.raises(UserError, match="gives the id 3 to more than one class"):
        parse_classes(str(tmp_path / "x.json"), range(91))
