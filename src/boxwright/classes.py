"""The classes a user asks for, by name or by position."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from boxwright.config import UserError, nearest, require

Class: TypeAlias = str | int  # its name, or its position among the names


def class_positions(classes: Class | Sequence[Class] | None, names: Sequence[str]) -> list[int] | None:
    """Positions of some classes of a detector, one or several, by name or position; None for all.

    Raises:
        UserError: for none, or one that it doesn't know.
    """
    if classes is None:
        return None
    if isinstance(classes, str | Integral):
        return [position(classes, names)]
    several = hasattr(classes, "__iter__") and not isinstance(classes, Mapping)
    require(several, f"classes are a name or a list of names, not {classes!r}.")
    wanted = list(classes)  # type: ignore[arg-type]
    require(wanted, "no class is left to look for; name at least one, or leave the choice out to find all.")
    return [position(name, names) for name in wanted]


def split_classes(classes: str | Sequence[str] | None, names: Sequence[str]) -> str | Sequence[str] | None:
    """What a command line names: a class, a list, or names between commas where no class is called so."""
    if not isinstance(classes, str) or classes in names:
        return classes
    return [name.strip() for name in classes.split(",") if name.strip()]


def position(name: Any, names: Sequence[str]) -> int:
    """Position of a class among the names; `UserError` where it has none."""
    if isinstance(name, Integral) and not isinstance(name, bool):
        place, last = int(name), len(names) - 1
        require(0 <= place <= last, f"the detector has classes 0 to {last}, by position in names, not {place}.")
        return place
    if not isinstance(name, str):
        raise UserError(f"a class is a name, or its position in names, not {name!r}.")
    there = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    require(name in names, f"the detector doesn't know the class {name!r}{nearest(name, names)}; it knows {there}.")
    return list(names).index(name)
