"""Classes that a user selects, by name or by position."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from boxwright.config import UserError, nearest, require

Class: TypeAlias = str | int  # its name, or its position among the names


def class_positions(classes: Class | Sequence[Class] | None, names: Sequence[str]) -> list[int] | None:
    """Positions of the selected classes among `names`; None, which selects all, stays None.

    Raises:
        UserError: for an empty list, or a class that the detector doesn't know.
    """
    if classes is None:
        return None
    if isinstance(classes, str | Integral):
        return [position(classes, names)]
    is_list = hasattr(classes, "__iter__") and not isinstance(classes, Mapping)
    require(is_list, f"classes are a name or a list of names, not {classes!r}.")
    selected = list(classes)  # type: ignore[arg-type]
    require(selected, "no class is left to look for; name at least one, or leave the choice out to find all.")
    return [position(name, names) for name in selected]


def split_classes(classes: str | Sequence[str] | None, names: Sequence[str]) -> str | Sequence[str] | None:
    """Classes of a command line: a text with commas is split into names, unless a class has just that name."""
    if not isinstance(classes, str) or classes in names:
        return classes
    return [name.strip() for name in classes.split(",") if name.strip()]


def position(name: Any, names: Sequence[str]) -> int:
    """Position of a class among the names; `UserError` where it has none."""
    if isinstance(name, Integral) and not isinstance(name, bool):
        index, last = int(name), len(names) - 1
        require(0 <= index <= last, f"the detector has classes 0 to {last}, by position in names, not {index}.")
        return index
    if not isinstance(name, str):
        raise UserError(f"a class is a name, or its position in names, not {name!r}.")
    known = f"it knows {enumerate_classes(names)}"
    require(name in names, f"the detector doesn't know the class {name!r}{nearest(name, names)}; {known}.")
    return list(names).index(name)


def enumerate_classes(names: Sequence[str]) -> str:
    """The names with commas between; of very many, the first ten and how many more there are."""
    shown = names if len(names) <= 20 else names[:10]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")
