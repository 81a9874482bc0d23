"""Strict values from YAML: unknown keys are errors that name the file, the key and the nearest legal one."""

from __future__ import annotations

import ast
import copy
import difflib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hpc_isl.errors import UserError, nearest


class Strict(BaseModel):
    """A frozen value; the string under each field is its documentation."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False,
        validate_default=True, coerce_numbers_to_str=True,
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _paths_are_text(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        fields = ((name, cls.model_fields.get(str(name))) for name in content)
        paths = {name for name, field in fields if field and _is_path(field.annotation)}
        return {name: _as_text(value) if name in paths else value for name, value in content.items()}


def meanings(kind: type[Strict]) -> dict[str, str]:
    """Returns field -> the string under it."""
    # Not by pydantic's `use_attribute_docstrings`: it parses the source of all models in every process.
    texts: dict[str, str] = {}
    for model in (model for model in reversed(kind.__mro__) if issubclass(model, Strict)):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return texts


def _is_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_is_path, typing.get_args(annotation)))


def _as_text(value: Any) -> Any:
    """Numbers as they are written; a run may be called 20261128."""
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


S = TypeVar("S", bound=Strict)


# ---------------------------------------------------------------- YAML


class _WrittenNumber:
    """A number that YAML has read, with the text of it: where text is meant, `01` is that and no 1."""

    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def __deepcopy__(self, memo: object) -> _WrittenNumber:
        return self


class _Int(_WrittenNumber, int):
    pass


class _Float(_WrittenNumber, float):
    pass


class _Loader(yaml.SafeLoader):
    """YAML in which numbers keep their text, and `yes`, `NO` and dates are text as in YAML 1.2."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if not pair[0].endswith((":bool", ":timestamp"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def number(self, node: yaml.ScalarNode) -> int | float:
        is_int = node.tag.endswith(":int")
        value = (_Int if is_int else _Float)(
            self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        )
        value.text = node.value
        return value


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` has read as it was written."""

    def number(self, value: _WrittenNumber) -> yaml.ScalarNode:
        kind = "int" if isinstance(value, int) else "float"
        return self.represent_scalar(f"tag:yaml.org,2002:{kind}", value.text)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.number)
for _type in (_Int, _Float):
    _Dumper.add_representer(_type, _Dumper.number)
_Dumper.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))


def value_of(text: str) -> Any:
    """The value that a text means as YAML; numbers keep their text, for keys that are text.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def written(value: Any) -> str:
    """The text, on one line, that `value_of` reads back to the same value."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**9, allow_unicode=True)
    return str(text).removesuffix("...\n").strip()


def plain(value: Any) -> Any:
    """The value with plain numbers, without their texts: 1.0e-3 is 0.001."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, _WrittenNumber):
        return int(value) if isinstance(value, int) else float(value)  # type: ignore[arg-type]
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; anything else is a `UserError` that names file and line."""
    try:
        content = value_of(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not readable YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; keys and values are expected")
    return content


def override(content: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`content` with dotted assignments such as `train.steps=100`; values are YAML.

    `sources.0.channel=DIC` reaches into a list that `content` holds.
    """
    result: dict[str, Any] = copy.deepcopy(content)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise UserError(f"{assignment!r}: an override is written key=value, as in train.steps=100")
        try:
            value = value_of(text) if text else None
        except yaml.YAMLError as error:
            raise UserError(f"{assignment!r}: the value is not YAML: {error}") from None
        _assign(result, key.strip().split("."), value, assignment)
    return result


def _assign(node: Any, path: list[str], value: Any, assignment: str) -> None:
    head, *tail = path
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise UserError(f"{assignment!r}: the list has entries 0 to {len(node) - 1}, not {head!r}")
        head = int(head)  # type: ignore[assignment]
    elif not isinstance(node, dict):
        raise UserError(f"{assignment!r}: there is nothing below {head!r}, its parent is {node!r}")
    if not tail:
        node[head] = value
        return
    if isinstance(node, dict) and node.get(head) is None:
        node[head] = {}
    _assign(node[head], tail, value, assignment)


def parse(kind: type[S], content: dict[str, Any], origin: str) -> S:
    """A validated value of `kind`; each complaint names `origin`, the dotted key and what is legal."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        # A key that does not exist comes first: it is often why another is missing.
        entries = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
        lines = [_complaint(kind, entry) for entry in entries]
        raise UserError("\n".join([f"{origin}:", *(f"  {line}" for line in dict.fromkeys(lines))])) from None


def _complaint(kind: type[Strict], entry: Any) -> str:
    path = [part for part in entry["loc"] if not str(part).endswith(("]", ")"))]
    dotted = ".".join(map(str, path)) or "the whole"
    if entry["type"] == "extra_forbidden":
        owner = _model_at(kind, list(path[:-1]))
        return f"{dotted}: no such key; {_nearest_key(kind, owner, str(path[-1]))}"
    if entry["type"] == "missing":
        return f"{dotted}: must be given"
    if entry["type"] == "model_type" and (owner := _model_at(kind, path)):
        first, *_ = owner.model_fields
        names = ", ".join(owner.model_fields)
        input_clause = f"got {entry['input']!r}"
        return f"{dotted}: has keys of its own ({names}), as in {dotted}='{{{first}: …}}'; {input_clause}"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "string_type" and isinstance(entry["input"], bool):
        message = f"text is expected; in quotes it is one, as in {dotted}='\"{str(entry['input']).lower()}\"'"
    return f"{dotted}: {message}; got {entry['input']!r}" if path else message


def _nearest_key(kind: type[Strict], owner: type[Strict] | None, name: str) -> str:
    """The clause about a key that does not exist: names one spelled nearly so here, or one elsewhere.

    A key in the wrong place, as train.lr for optim.lr, is nearer than one that only looks a little like it.
    """
    keys_here = list(owner.model_fields) if owner else []
    places: dict[str, list[str]] = {}
    for key in _keys(kind):
        places.setdefault(key.rpartition(".")[2], []).append(key)
    for legal, likeness in ((keys_here, 0.8), (places, 1.0), (keys_here, 0.5), (places, 0.7)):
        matches = difflib.get_close_matches(name, legal, n=1, cutoff=likeness)
        if matches and legal is places:
            suggestions = " or ".join(repr(key) for key in places[matches[0]][:3])
            return f"did you mean {suggestions}? {nearest('', keys_here)}"
        if matches:
            break
    return nearest(name, keys_here)


def _keys(kind: type[Strict], path: str = "") -> Iterator[str]:
    """All dotted keys of a model, as `override` takes them; of a list those of its first entry."""
    for name, field in kind.model_fields.items():
        yield f"{path}{name}"
        entry = ".0" if typing.get_origin(field.annotation) is list else ""
        for model in models_in(field.annotation):
            yield from _keys(model, f"{path}{name}{entry}.")


def _model_at(kind: Any, path: list[Any]) -> type[Strict] | None:
    """The model that owns the key below `path`, looking through optionals, lists and unions."""
    models = models_in(kind)
    for model in models:
        if not path:
            return model
        field = model.model_fields.get(str(path[0]))
        if field is not None:
            tail = path[1:] if not (len(path) > 1 and isinstance(path[1], int)) else path[2:]
            return _model_at(field.annotation, tail)
    return models[0] if models and not path else None


def models_in(kind: Any) -> list[type[Strict]]:
    """The models that an annotation names, looking through optionals, lists and unions."""
    if typing.get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Strict):
        return [kind]
    return [model for part in typing.get_args(kind) for model in models_in(part)]


def default_at(kind: type[Strict], key: str) -> Any:
    """The default of a dotted key: as its owner's default has it, else that of its own model.

    None where there is no such key.
    """
    *path, name = (part for part in key.split(".") if not part.isdigit())
    base: Any = None
    for part in path:
        owner = kind.model_fields.get(part)
        nested = models_in(owner.annotation) if owner else []
        if owner is None or not nested:
            return None
        value = getattr(base, part) if base is not None else owner.default
        kind = nested[0]
        base = value if isinstance(value, kind) else None
    field = kind.model_fields.get(name)
    return getattr(base, name, None) if base is not None else field and field.default


def to_yaml(value: Strict) -> str:
    """The value as YAML that `parse` reads back to an equal value."""
    return str(yaml.dump(value.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def flatten(content: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys, as `override` takes them, and the plain values below them."""
    if isinstance(content, dict) and content:
        pairs = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list) and content:
        pairs = [(str(index), value) for index, value in enumerate(content)]
    else:
        return {path: content}
    flat: dict[str, Any] = {}
    for key, value in pairs:
        flat |= flatten(value, f"{path}.{key}" if path else key)
    return flat
