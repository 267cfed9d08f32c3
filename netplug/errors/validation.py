"""Plain words for pydantic's errors, whose own words are for programmers and name Python types."""

from collections.abc import Iterable, Mapping
from typing import Any

_MUST = {
    "string_type": "must be text",
    "string_unicode": "must be valid text",
    "string_pattern_mismatch": "must be 1 to 128 letters, digits, '_', '.' or '-'",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "path_type": "must be a path",
}
_LIMITS = {
    "greater_than_equal": ("must be at least", "ge"),
    "greater_than": ("must be more than", "gt"),
    "less_than_equal": ("must be at most", "le"),
    "less_than": ("must be less than", "lt"),
    "literal_error": ("must be", "expected"),
    "enum": ("must be", "expected"),
}


def wrong(error: Mapping[str, Any], known: Iterable[str] = ()) -> str:
    """Return the reason why a value is invalid, to follow the name of its place; `error`: one of pydantic's.

    `known`: the valid names, for suggestions.

    >>> wrong({"type": "bool_parsing", "input": 7})
    'must be true or false, not 7'
    >>> wrong({"type": "extra_forbidden", "loc": ("subnetz",), "input": True}, ["subnets", "name"])
    "is unknown, did you mean 'subnets'?"
    """
    kind, context = str(error["type"]), error.get("ctx") or {}
    match kind:
        case "value_error" | "assertion_error":
            return str(context.get("error") or error["msg"])
        case "missing":
            return "is missing"
        case "extra_forbidden":
            from difflib import get_close_matches  # noqa: PLC0415 - takes 3 ms, and only a mistake needs it

            near = get_close_matches(str(error["loc"][-1]), list(known), n=1)
            return f"is unknown, did you mean {near[0]!r}?" if near else "is unknown"
        case "string_too_short" | "too_short":
            return "is empty" if not error.get("input") else f"must have at least {context['min_length']}"
        case "string_too_long":
            return f"is longer than {context['max_length']} characters"
        case "too_long":
            return f"has more than {context['max_length']} elements"
    must = _MUST.get(kind)
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        must = f"{words} {context[limit]}"
    return f"{must or 'is malformed'}, not {shown(error.get('input'))}"


def shown(value: object) -> str:
    """Return the short JSON form of a value."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value[:80] if isinstance(value, str) else value)[:90]
