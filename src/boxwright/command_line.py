"""The parser of a verb's arguments: jsonargparse, with each mistake as one line that says what fits.

The verbs themselves are listed in `boxwright.__main__`.

Its messages are shown, never read: the option, value and type that a mistake is about come from the parser's actions.
"""

import inspect
import re
from argparse import Action, HelpFormatter
from collections.abc import Callable
from functools import wraps
from itertools import islice, zip_longest
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace, auto_cli

from boxwright.config import UserError, nearest, option

_NAMES = "list[str] | str | None"  # the type of an option that takes names; `split_classes` reads them
_OPTION = re.compile(r"(?<![\w/-])--[a-z]\w*(?:\.\w+)?")
_MANY = 15  # options, from which on their help stands under headings
_HEADINGS = {
    "data": ("val_data", "val", "train_split", "val_split"),
    "detector": ("model", "size", "image_size", "backbone", "weights", "pretrained", "adapt", "rank", "teacher"),
    "training": ("recipe", "epochs", "batch_size", "seed"),
    "machine": ("device", "precision", "devices", "nodes", "cache"),
    "output": ("out", "resume", "show_batches"),
}
_NUMBERS = {int: "a whole number", float: "a number"}


def call(function: Callable[..., Any], verb: str, arguments: list[str]) -> Any:
    """Call the function of a verb with its command-line arguments and the settings of YAML files (`--config`)."""
    arguments = _config_first(_normalise(arguments, function))
    return auto_cli(function, args=arguments, prog=f"boxwright {verb}", parser_class=Parser)


class Parser(ArgumentParser):
    """Raises each mistake as a `UserError`, with the nearest known option.

    It uses two private attributes of jsonargparse's actions, `_typehint` and `_check_type`: pyproject.toml bounds its
    version.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help: options in the spelling of the documentation, and many of them under headings."""
        if len(self._optionals._group_actions) > _MANY:
            self._put_under_headings()
            places = " ".join(action.dest.upper() for action in self._actions if not action.option_strings)
            self.usage = f"{self.prog} {places} [options]"
        return _with_dashes(super().format_help(formatter) if formatter else super().format_help())

    def _put_under_headings(self) -> None:
        """Move options from the one list of all into the groups of `_HEADINGS`, which stand first."""
        positionals, options, *groups = self._action_groups
        first = []
        for heading, names in _HEADINGS.items():
            group = self.add_argument_group(heading)
            group._group_actions = [action for action in options._group_actions if action.dest in names]
            first.append(group)
        options._group_actions = [a for a in options._group_actions if not any(a in g._group_actions for g in first)]
        self._action_groups = [positionals, *first, *groups, options]

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse; a value that does not fit its type is reported with what does."""
        for action in self._typed_actions():
            self._explain_misfit(action)
        return super().parse_args(*args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a YAML file."""
        try:
            return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as error:
            self.error(f"{path} is not text in UTF-8", error)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Read settings in YAML; names stay as they are written, as in `--classes`."""
        names = [action.dest for action in self._typed_actions() if _takes_names(action)]
        return super().parse_string(_quote_names(content, names), *args, **kwargs)

    def validate(self, namespace: Any, *args: Any, **kwargs: Any) -> None:
        """Check that all settings are known, and that those which need a value have one."""
        known = self.strip_unknown(namespace)
        if unknown := next((key for key in namespace.keys() if key not in known), None):  # noqa: SIM118
            self._fail_unknown(unknown)
        for group in self.groups or {}:
            if not isinstance(namespace.get(group, Namespace()), Namespace):
                inside = [action.dest for action in self._typed_actions() if action.dest.startswith(f"{group}.")]
                fitting = f"settings by name: {', '.join(name.split('.')[-1] for name in inside)}"
                self._fail(f"{option(group)} can't be {_shown(namespace[group])!r}, it must be {fitting}")
        super().validate(namespace, *args, **kwargs)
        for action in self._typed_actions():
            if namespace.get(action.dest) is None and action.default is not None and not _fits_null(action):
                self._fail(_misfit(action, None))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what jsonargparse reports; arguments that it does not recognise come without an exception."""
        if ex and isinstance(ex.__cause__, UserError):
            raise ex.__cause__
        self._fail(message, self._hint() if ex is None else "", ex)

    def _typed_actions(self) -> list[Action]:
        return [action for action in self._actions if hasattr(action, "_typehint")]

    def _explain_misfit(self, action: Any) -> None:
        """Let the action report a value that does not fit with the option's name and what fits."""
        check = action._check_type

        @wraps(check)  # jsonargparse reads the signature
        def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return check(value, *args, **kwargs)
            except TypeError as error:
                self._fail(_misfit(action, value), "", error)

        action._check_type = checked

    def _hint(self) -> str:
        """The known option nearest to the first unknown one; for a positional given by name, how to give it."""
        given = [argument[2:].partition("=")[0] for argument in self.args if argument.startswith("--")]
        positionals = [action.dest for action in self._actions if not action.option_strings]
        if by_name := next((name for name in given if name in positionals), None):
            usage = f"{self.prog} {' '.join(positionals).upper()}"
            return f" {by_name.upper()} goes by its place, without a name: {usage}."
        known = self._known_options()
        unknown = next((name for name in given if name not in known), None)
        return nearest(unknown.replace("_", "-"), [name.replace("_", "-") for name in known]) if unknown else ""

    def _known_options(self) -> list[str]:
        """Names of options and positionals; those of a group with and without the group's name."""
        names = [name.lstrip("-") for action in self._actions for name in action.option_strings or [action.dest]]
        return names + [name.split(".")[-1] for name in names]

    def _fail_unknown(self, key: str) -> NoReturn:
        """Report a key of a YAML file that is no option."""
        group, _, name = key.rpartition(".")
        if group not in (self.groups or {}):
            self._fail(f"Option {key!r} is not accepted", nearest(key, self._known_options()))
        self._fail(f"Group {group!r} does not accept option {name!r}", nearest(name, self._known_options()))

    def _fail(self, message: str, hint: str = "", cause: Exception | None = None) -> NoReturn:
        line = _with_dashes(" ".join(message.split()).rstrip("."))
        raise UserError(f"{line}.{hint} See `{self.prog} --help`.") from cause


def _with_dashes(text: str) -> str:
    """A text with its options as they are documented: ``--image-size``; the parser takes both spellings."""
    return _OPTION.sub(lambda match: match[0].replace("_", "-"), text)


def _misfit(action: Any, value: Any) -> str:
    """One line on a value that does not fit the type of its option: option, value and what fits."""
    shown, parts = _shown(value), _parts(action)
    words = [str(word) for part in parts if get_origin(part) is Literal for word in get_args(part)]
    others = [_type_name(part) for part in parts if get_origin(part) is not Literal]
    choices = words if words and others == ["null"] else words + others
    fitting = _NUMBERS.get(action._typehint) or f"one of: {', '.join(choices)}"
    return f"--{action.dest} can't be {shown!r}{nearest(shown, words)}, it must be {fitting}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _fits_null(action: Any) -> bool:
    return any(part in (NoneType, Any) for part in _parts(action))


def _takes_names(action: Any) -> bool:
    return action._typehint == list[str] | str | None


def _parts(action: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    hint = action._typehint
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _type_name(hint: Any) -> str:
    if hint is NoneType:
        return "null"
    return str(hint) if get_args(hint) else hint.__name__


def _normalise(arguments: list[str], function: Callable[..., Any]) -> list[str]:
    """The arguments as the parser wants them: underscores in names, `=true` after a bare switch, and
    a list of names where there is one, which may be called null."""
    parameters = inspect.signature(function).parameters.values()
    switches = {f"--{parameter.name}" for parameter in parameters if parameter.annotation in (bool, "bool")}
    texts = {f"--{parameter.name}" for parameter in parameters if parameter.annotation == _NAMES}
    normalised, previous = [], ""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            if name in switches and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
        if argument == "null" and previous in texts:
            name = "[null]"
        elif value == "null" and name in texts:
            value = "[null]"
        normalised.append(name + equals + value)
        previous = name
    return normalised


def _quote_names(content: str, options: list[str]) -> str:
    """Settings in YAML, in which the names that some options take are quoted: ``no`` and ``on`` are texts, and
    ``null`` is ``[null]``, as `_normalise` has it.
    """
    import yaml

    try:
        settings = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return content  # for the parser, which reports it
    pairs = settings.value if isinstance(settings, yaml.MappingNode) else []
    values = [value for key, value in pairs if key.value in options]
    for value in values:
        for node in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if isinstance(node, yaml.ScalarNode) and node.value not in ("", "~"):
                node.tag, node.style = "tag:yaml.org,2002:str", '"'
        if value.value == "null":
            value.value = "[null]"
    return yaml.serialize(settings) if values else content


def _config_first(arguments: list[str]) -> list[str]:
    """Move the settings files to the front: the parser keeps the last value, and the command line counts more."""
    files, others, remaining = [], [], iter(arguments)
    for argument in remaining:
        if argument == "--config":
            files += [argument, *islice(remaining, 1)]
        else:
            (files if argument.startswith("--config=") else others).append(argument)
    return files + others
