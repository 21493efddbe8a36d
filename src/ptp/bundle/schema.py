"""What the schemas of a bundle's JSON files share: a strict base, bounded types, and one way to read a stranger's text.

`cpp/src/json.cpp` and `cpp/src/manifest.cpp` judge alike; `tests/cpp/test_manifest.py` compares the two.
"""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from ptp.errors import SchemaError

# Bounds on what a stranger's file may ask for; far above any model this format can describe.
MAX_FILES = 1 << 12
MAX_FILE_BYTES = 1 << 40
MAX_NAME_BYTES = 255
"""Of one part of a path: what Linux' file systems take."""

MAX_DIMENSION = 1 << 20
MAX_ELEMENTS = 1 << 30
MAX_RANK = 8
"""Dimensions of a tensor: what engines take."""

MAX_TENSORS = 4096
MAX_POSITIONS = 1 << 31

Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=1000)]
"""Text that is shown to a person: no control characters, which a terminal would obey."""

Count = Annotated[int, Field(ge=0, le=MAX_DIMENSION)]
Size = Annotated[int, Field(ge=1, le=MAX_DIMENSION)]
Bytes = Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
Measure = Annotated[float, Field(ge=-1e9, le=1e9)]
"""A finite number that was measured."""


def _no_stand_in(value: Any) -> Any:
    if type(value) is float or type(value) is bool:  # equal to an integer, and written otherwise
        raise ValueError("Input should be a valid integer")
    return value


def _true(value: bool) -> bool:
    if not value:
        raise ValueError("Input should be true")
    return value


Integer = BeforeValidator(_no_stand_in)
"""Beside a `Literal` of integers: 1.0 and true are none."""

AlwaysTrue = Annotated[bool, AfterValidator(_true)]

Dtype = Literal["float32", "float16", "int64", "int32", "bool"]


def _canonical(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or ":" in path:
        raise ValueError(f"path {path[:80]!r} leaves the bundle or is not the shortest for its file")
    if any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise ValueError(f"path {path[:80]!r} has a name of more than {MAX_NAME_BYTES} bytes")
    return path


Relative = Annotated[Line, AfterValidator(_canonical)]
"""Path of a file inside the bundle, with one spelling for one file."""


class Model(BaseModel):
    """What every class of a file's schema is: frozen, and refusing keys it does not know and numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class TensorSpec(Model):
    """Name, element type and shape of a graph's input or output; a string is a dimension named at run time."""

    name: Line = Field(min_length=1)
    dtype: Dtype
    shape: tuple[Size | Line, ...] = Field(max_length=MAX_RANK)

    @field_validator("shape")
    @classmethod
    def _fits_into_memory(cls, shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if math.prod(size for size in shape if isinstance(size, int)) > MAX_ELEMENTS:
            raise ValueError(f"a tensor must not have more than {MAX_ELEMENTS} elements")
        return shape


class FileEntry(Model):
    """Size in bytes and SHA-256 of a file of the bundle."""

    bytes: Bytes
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


Schema = TypeVar("Schema", bound=Model)


def decode(text: str, name: str, do: str) -> Any:
    """Return the value of a stranger's JSON text.

    Args:
        text: JSON as RFC 8259 has it: no NaN, no number beyond a double, no key twice in an object.
        name: of the file, for errors.
        do: what repairs it.

    Raises:
        SchemaError: it is none.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite, parse_int=_integer
        )
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{name} is not JSON", got=error, do=do) from error


def validate(cls: type[Schema], text: str, what: str, do: str) -> Schema:
    """Return a model from JSON text that `decode` takes; nothing is converted: "1", 1.0 and true are no integers.

    Args:
        cls: the schema.
        text: the file's text.
        what: what the file is not, for errors.
        do: what repairs it.

    Raises:
        SchemaError: it does not follow the schema; the first problems are named.
    """
    try:
        return cls.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise SchemaError(what, got=_problems(error), do=do) from error


def _problems(error: ValidationError) -> str:
    items: Sequence[Any] = error.errors(include_url=False, include_context=False, include_input=False)[:5]
    return "; ".join(f"{'.'.join(map(str, x['loc']))[:80] or 'the top'}: {x['msg'][:200]}" for x in items)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number that a double holds")
    return number


def _integer(text: str) -> int:
    _finite(text)  # bounds the digits, of which Python would compute with any number
    return int(text)
