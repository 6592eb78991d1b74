"""Class names for the class ids of another project's checkpoint, which such files don't have."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from boxwright.classes import check_names
from boxwright.config import UserError, require

ENDINGS = (".txt", ".json")
_PATH = re.compile(r"[/\\]|\.[A-Za-z]\w*$")  # what makes a text without commas the name of a file


class Classes(NamedTuple):
    """Names, and the id of each."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def coco() -> Classes:
    """COCO's 80 categories, with ids from 1 to 90."""
    known = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    rows = [(name, id_) for id_, name in enumerate(known) if name not in ("__background__", "N/A")]
    names, ids = zip(*rows, strict=True)
    return Classes(names, ids)


def unnamed(ids: range) -> Classes:
    """Classes of which only the ids are known."""
    return Classes(tuple(f"class {id_}" for id_ in ids), tuple(ids))


def parse_classes(text: str, ids: range) -> Classes:
    """The classes that a user names.

    Args:
        text: a COCO file, with category ids; a text file with one name a line; or names between commas. The ids of
            names begin with 1, or, if there are as many names as possible ids, with the first of these.
        ids: the possible ids of a class.

    Raises:
        UserError: for names or ids given twice, none, or ids that are not possible.
    """
    # a long list can't be the name of a file
    if text.endswith(ENDINGS) or ("," not in text and (_PATH.search(text) or Path(text).exists())):
        classes = _from_file(Path(text), ids)
    else:
        classes = _count([name.strip() for name in text.split(",")], ids)
    require(classes.names and all(classes.names), f"--classes {text}: there must be names, and none may be empty.")
    check_names(classes.names, "--classes: ")
    twice = sorted({name for name in classes.names if classes.names.count(name) > 1})
    require(not twice, f"--classes {text} names more than one class {', '.join(twice)}.")
    again = sorted({id_ for id_ in classes.ids if classes.ids.count(id_) > 1})
    require(not again, f"--classes {text} gives the id {', '.join(map(str, again))} to more than one class.")
    impossible = [str(id_) for id_ in classes.ids if id_ not in ids]
    span = f"{ids[0]} to {ids[-1]}"
    require(not impossible, f"--classes {text}: the checkpoint has tokens for {span}, not for {', '.join(impossible)}.")
    return classes


def _from_file(file: Path, ids: range) -> Classes:
    try:
        text = file.read_text()
        if file.suffix != ".json":
            return _count([line.strip() for line in text.splitlines() if line.strip()], ids)
        rows = sorted((int(row["id"]), str(row["name"])) for row in json.loads(text)["categories"])
        return Classes(tuple(name for _, name in rows), tuple(id_ for id_, _ in rows))
    except OSError as error:
        fix = "give a COCO file, a text file with one name a line, or names between commas"
        raise UserError(f"--classes {file} can't be read: {error.strerror}; {fix}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--classes {file} has no list of categories with id and name, as a COCO file has.") from error


def _count(names: list[str], ids: range) -> Classes:
    """The names with consecutive ids."""
    first = ids[0] if len(names) == len(ids) else 1
    return Classes(tuple(names), tuple(range(first, first + len(names))))
