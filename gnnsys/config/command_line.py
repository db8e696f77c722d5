"""The command line that dataclasses of options make: ``parse`` reads it, ``shown`` describes it.

A field's docstring is its help, and its type says what may stand for it. Texts among the metadata
of a type say how help calls a value: ``Annotated[str, "FILE"]``. A class may have ``sections``: the
first field of each section of the help, and its name, in the order of the help.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from gnnsys.errors import ArgumentError, GnnsysError
from gnnsys.system.names import nearest

__all__ = ["MARKERS", "described", "parse", "shown"]

MARKERS = (
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.OmitArgPrefixes,
)
"""How tyro is to read what ``shown`` returns."""

_T = TypeVar("_T")
_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "FILE"}


class _Refused(Exception):
    """Takes an error past tyro, which would tell of it in words of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Option:
    """A field of a class of options."""

    name: str
    hint: Any
    """Its type, without None."""

    marks: tuple[Any, ...]
    """Metadata of the type and its parts."""

    default: Any
    """``dataclasses.MISSING`` where it must be given."""

    @property
    def positional(self) -> bool:
        return tyro.conf.Positional in self.marks

    @property
    def written(self) -> str:
        """As it stands on a command line."""
        return self.name.upper() if self.positional else f"--{self.name.replace('_', '-')}"

    @property
    def metavar(self) -> str:
        return next((mark for mark in self.marks if isinstance(mark, str)), "") or _metavar(
            self.hint
        )


def parse(kind: type[_T], command: str, arguments: Sequence[str], default: _T | None = None) -> _T:
    """The options that a command line gives.

    Args:
        kind: a dataclass.
        command: as errors call it: ``gnnsys train``.
        default: options that hold where none are given.

    Raises:
        ArgumentError: an option that there is not, a value that does not fit, or one that is
            missing; names the nearest right one.
        GnnsysError: as ``kind`` raises.
    """
    options = _options(kind, default)
    _check_words(options, command, arguments)
    missing = object()
    fields = [
        (
            option.name,
            _annotated(option, _spec(option, closed=False)),
            missing if option.default is dataclasses.MISSING else option.default,
        )
        for option in options
    ]
    flat: Any = dataclasses.make_dataclass(kind.__name__, fields)
    try:
        found, rest = tyro.cli(
            flat,
            prog=command,
            args=list(arguments),
            return_unknown_args=True,
        )
    except _Refused as refused:
        cause = refused.__cause__
        raise (cause if isinstance(cause, GnnsysError) else ArgumentError(str(refused))) from None
    if rest:
        takes = " ".join(option.written for option in options if option.positional) or "nothing"
        raise ArgumentError(
            f"{rest[0]}: one too many; {command} takes {takes}, and options: see {command} --help"
        )
    values = {option.name: getattr(found, option.name) for option in options}
    for option in options:
        if values[option.name] is missing:
            raise ArgumentError(f"{option.written} is missing; see {command} --help")
    return kind(**values)


def _options(kind: Any, default: Any = None) -> list[_Option]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        _Option(
            field.name,
            _bare(hints[field.name]),
            tuple(_marks(hints[field.name])),
            _default(field) if default is None else getattr(default, field.name),
        )
        for field in dataclasses.fields(kind)
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _marks(hint: Any) -> list[Any]:
    own = list(hint.__metadata__) if get_origin(hint) is Annotated else []
    parts = get_args(hint) if get_origin(hint) in (Annotated, Union, UnionType) else ()
    return own + [mark for part in parts[: 1 if own else None] for mark in _marks(part)]


def _bare(hint: Any) -> Any:
    """The type without its metadata and without None."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        parts = [_bare(part) for part in get_args(hint) if part is not NoneType]
        choices = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
        others = [part for part in parts if get_origin(part) is not Literal]
        return Union[(*others, *([Literal[tuple(choices)]] if choices else []))]
    return hint


def _check_words(options: list[_Option], command: str, arguments: Sequence[str]) -> None:
    """Refuses options that there are not, and those that lack a value."""
    known = {option.written: option for option in options if not option.positional}
    flags = {f"--no-{name[2:]}" for name, option in known.items() if option.hint is bool}
    names = [_name_in(argument) for argument in arguments]
    for place, name in enumerate(names):
        if name is not None and name not in known.keys() | flags:
            raise ArgumentError(
                f"{arguments[place].partition('=')[0]}: {command} has no such option"
                f"{nearest(name, known)}; see {command} --help"
            )
        count = _num_words(known[name].hint) if name in known else "*"
        if isinstance(count, int) and "=" not in arguments[place]:
            values = names[place + 1 : place + 1 + count]
            if len(values) < count or any(value is not None for value in values):
                wanted = "a value" if count == 1 else f"{count} values"
                raise ArgumentError(f"{name}: expected {wanted}; see {command} --help")


def _name_in(argument: str) -> str | None:
    """The option that an argument names; None for a value."""
    name = argument.partition("=")[0].replace("_", "-")
    return name if re.match("--?[a-zA-Z]", name) else None


def _num_words(hint: Any) -> int | Literal["*"]:
    if hint is bool:
        return 0
    parts = get_args(hint) if get_origin(hint) is tuple else (hint,)
    return "*" if ... in parts else len(parts)


# Values ------------------------------------------------------------------------------------------


def _annotated(option: _Option, spec: PrimitiveConstructorSpec[Any] | None, *marks: Any) -> Any:
    metadata = [each for each in (spec, *marks) if each is not None]
    metadata += [tyro.conf.Positional] if option.positional else []
    # The words of a spec are its own: tyro would warn of defaults of another type.
    kind = option.hint if spec is None else Any
    return Annotated[(kind, *metadata)] if metadata else kind


def _spec(option: _Option, closed: bool) -> PrimitiveConstructorSpec[Any] | None:
    """How words make a value; a closed one tells tyro the choices, and has it refuse others."""
    if option.hint is bool:
        return None
    own = next((m for m in option.marks if isinstance(m, PrimitiveConstructorSpec)), None)
    if own is not None:
        return dataclasses.replace(own, instance_from_str=_guarded(own.instance_from_str))
    parts = get_args(option.hint) if get_origin(option.hint) is tuple else None
    choices = get_args(option.hint) if get_origin(option.hint) is Literal else None

    def value(words: list[str]) -> Any:
        if parts is None:
            return _value(option, option.hint, words[0])
        return tuple(_value(option, parts[0], word) for word in words)

    return PrimitiveConstructorSpec(
        nargs=_num_words(option.hint),
        metavar=option.metavar,
        instance_from_str=_guarded(value),
        is_instance=lambda found: True,
        str_from_instance=_words,
        choices=choices if closed else None,
    )


def _words(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, tuple) else [str(value)]


def _guarded(make: Callable[[list[str]], _T]) -> Callable[[list[str]], _T]:
    def guarded(words: list[str]) -> _T:
        try:
            return make(words)
        except GnnsysError as error:
            raise _Refused from error

    return guarded


def _value(option: _Option, hint: Any, word: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) is Union else (hint,)
    for kind in kinds:
        try:
            if get_origin(kind) is not Literal:
                value = kind(word)
                if not isinstance(value, float) or math.isfinite(value):
                    return value
            elif word in get_args(kind):
                return word
        except ValueError:
            continue
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    others = [_WORDS[kind] for kind in kinds if kind in _WORDS]
    one_of = [f"one of {', '.join(choices)}"] if len(choices) > 1 else choices
    raise ArgumentError(
        f"{option.written} {word}: expected {' or '.join(others + one_of)}{nearest(word, choices)}"
    )


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"{{{','.join(get_args(hint))}}}"
    if get_origin(hint) is Union:
        return "|".join(_metavar(part).strip("{}") for part in get_args(hint))
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        more = [f"[{_metavar(first)} ...]"] if ... in others else map(_metavar, others)
        return " ".join([_metavar(first), *more])
    return _METAVARS.get(hint, "")


# Help --------------------------------------------------------------------------------------------


def shown(kind: Any, default: Any = None, also: Any = None) -> Any:
    """The type by which tyro shows help about options, and completes them.

    Args:
        kind: a dataclass; fields that are no options stand for commands of their own.
        default: options that hold where none are given.
        also: a dataclass of further options, which stand first.
    """
    starts, section = getattr(kind, "sections", {}), ""
    sections: dict[str, list[Any]] = {name: [] for name in ("", *starts.values())}
    sections[""] += [_field(o, _docs(also)) for o in _options(also)]
    docs = _docs(kind)
    for option in _options(kind, default):
        section = starts.get(option.name, section)
        sections.setdefault("" if option.positional else section, []).append(_field(option, docs))
    fields = sections.pop("")
    for number, (name, within) in enumerate(sections.items()):
        made = dataclasses.make_dataclass(name.title().replace(" ", ""), within, kw_only=True)
        made.__doc__ = ""
        fields.append((f"section{number}", Annotated[made, tyro.conf.arg(name=name)]))
    return dataclasses.make_dataclass(kind.__name__, fields, kw_only=True)


def _field(option: _Option, docs: dict[str, str]) -> tuple[str, Any, Any]:
    doc = docs.get(option.name, "")
    value = option.default
    required = value is dataclasses.MISSING
    said = required or value in (None, "", ()) or option.hint is bool or "Default:" in doc
    hint = "" if said else f"(default: {' '.join(_words(value))})"
    metavar = option.metavar
    if option.positional:
        metavar = option.written if required else f"[{option.written}]"
    mark = tyro.conf.arg(
        metavar=None if option.hint is bool else metavar,
        help=doc,
        help_behavior_hint=None if required else hint,
    )
    made = _annotated(option, _spec(option, closed=True), mark)
    field = dataclasses.field() if required else dataclasses.field(default=value)
    return option.name, made, field


@cache
def _docs(kind: type) -> dict[str, str]:
    """The docstring of each field of a dataclass and of those that it is made from."""
    docs: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                name, text = ast.unparse(field.target), ast.literal_eval(below.value)
                docs[name] = " ".join(text.split())
    return docs


def described(kind: type) -> str:
    """The docstring of a class of options, with examples that fit the terminal."""
    width = shutil.get_terminal_size().columns
    text, mark, rest = inspect.cleandoc(kind.__doc__ or "").partition("Examples:\n")
    examples, gap, after = rest.partition("\n\n")
    lines = (_broken(line, width) for line in examples.splitlines())
    return text + mark + "\n".join(lines) + gap + after


def _broken(command: str, width: int) -> str:
    """A command as it can be pasted, on several lines if it is long."""
    words = re.split(r" (?=-)", " ".join(command.split()))
    lines, space = [" " * 4], ""
    for word in words:
        if len(lines[-1]) + len(word) + 3 > width:
            lines.append(" " * 8)
            space = ""
        lines[-1] += space + word
        space = " "
    return " \\\n".join(lines)
