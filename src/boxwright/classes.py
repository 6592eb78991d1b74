"""Classes that a user selects, by name or by position."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from typing import Any, TypeAlias
from unicodedata import category

from boxwright.config import UserError, nearest, require

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control, half of a pair, separators of lines, paragraphs
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the direction of what follows
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
    """Classes of a command line, unless a class has just that name: ``[a, b]`` or ``a,b`` are names, ``null`` is all.

    Names stay as they are given, although YAML has other meanings for ``no`` and ``on``.
    """
    if not isinstance(classes, str) or classes in names:
        return classes
    if classes.startswith("["):
        import yaml  # which the runtime can do without

        with suppress(yaml.YAMLError):
            listed = yaml.load(classes, Loader=yaml.BaseLoader)  # noqa: S506 - it makes only texts
            if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
                return None if listed == ["null"] and "null" not in names else listed
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


def is_printable(name: str) -> bool:
    """Whether a name has no characters that control a terminal, break lines or turn text around."""
    return not any(
        category(character) in _CONTROLS or character in _TURNS or ord(character) & 0xFFFE == 0xFFFE  # no characters
        for character in name
    )


def check_names(names: Any, where: str = "") -> None:
    """Raise `UserError`, which begins with `where`, unless these are the names of classes."""
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    require(named, f"{where}the classes are a list of names, not {str(names)[:60]!r}.")
    bad = next((name for name in names if not is_printable(name)), None)
    require(bad is None, f"{where}the class {bad!r} has a control character; give it another name.")


def enumerate_classes(names: Sequence[str]) -> str:
    """The names with commas between; of very many, the first ten and how many more there are."""
    shown = names if len(names) <= 20 else names[:10]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")
