"""What the numbers of classes in a foreign checkpoint are called, which such files never say."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from boxwright.config import UserError, require

ENDINGS = (".txt", ".json")
_PATH = re.compile(r"[/\\]|\.[A-Za-z]\w*$")  # in a name without commas: meant to be a file


class Classes(NamedTuple):
    """Names, and the number of each."""

    names: tuple[str, ...]
    numbers: tuple[int, ...]


def coco() -> Classes:
    """COCO's 80 categories, numbered from 1 to 90."""
    known = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    rows = [(name, number) for number, name in enumerate(known) if name not in ("__background__", "N/A")]
    names, numbers = zip(*rows, strict=True)
    return Classes(names, numbers)


def numbered(numbers: range) -> Classes:
    """Classes of which only the number is known."""
    return Classes(tuple(f"class {number}" for number in numbers), tuple(numbers))


def given(said: str, numbers: range) -> Classes:
    """The classes that a user names.

    Args:
        said: a COCO file, whose category ids count; a text file with one name a line; or names between commas. Names
            are numbered from 1, or, if there are as many as numbers, from the first number.
        numbers: those that classes can have.

    Raises:
        UserError: for names or numbers given twice, none, or more than there are numbers for.
    """
    # a long list is no possible name of a file
    if said.endswith(ENDINGS) or ("," not in said and (_PATH.search(said) or Path(said).exists())):
        classes = _from_file(Path(said), numbers)
    else:
        classes = _count([name.strip() for name in said.split(",")], numbers)
    require(classes.names and all(classes.names), f"--classes {said}: there must be names, and none may be empty.")
    twice = sorted({name for name in classes.names if classes.names.count(name) > 1})
    require(not twice, f"--classes {said} names more than one class {', '.join(twice)}.")
    again = sorted({number for number in classes.numbers if classes.numbers.count(number) > 1})
    require(not again, f"--classes {said} gives the id {', '.join(map(str, again))} to more than one class.")
    strange = [str(number) for number in classes.numbers if number not in numbers]
    span = f"{numbers[0]} to {numbers[-1]}"
    require(not strange, f"--classes {said}: this checkpoint has words for {span}, not for {', '.join(strange)}.")
    return classes


def _from_file(file: Path, numbers: range) -> Classes:
    try:
        text = file.read_text()
        if file.suffix != ".json":
            return _count([line.strip() for line in text.splitlines() if line.strip()], numbers)
        rows = sorted((int(row["id"]), str(row["name"])) for row in json.loads(text)["categories"])
        return Classes(tuple(name for _, name in rows), tuple(number for number, _ in rows))
    except OSError as error:
        mend = "give a COCO file, a text file with one name a line, or names between commas"
        raise UserError(f"--classes {file} can't be read: {error.strerror}; {mend}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--classes {file} has no list of categories with id and name, as a COCO file has.") from error


def _count(names: list[str], numbers: range) -> Classes:
    first = numbers[0] if len(names) == len(numbers) else 1
    return Classes(tuple(names), tuple(range(first, first + len(names))))
