"""What is wrong with a value that came by a wire, in words for who wrote it: not a validator's."""

from pydantic_core import ErrorDetails

_WORDS = {
    "missing": "it is missing",
    "extra_forbidden": "no such key is known",
    "string_type": "it is not a text",
    "dict_type": "it is not an object",
    "model_type": "it is not an object",
    "model_attributes_type": "it is not an object",
    "list_type": "it is not a list",
    "tuple_type": "it is not a list",
    "none_required": "it must be null",
}
_BEGINNINGS = {"int_": "it is not a whole number", "bool_": "it is not true or false", "float_": "it is not a number"}
_LIMITS = {
    "greater_than_equal": "it is less than {ge}",
    "greater_than": "it is not more than {gt}",
    "less_than_equal": "it is more than {le}",
    "less_than": "it is not less than {lt}",
    "literal_error": "it is not one of {expected}",
    "string_too_long": "it is longer than {max_length} characters",
    "string_too_short": "it is shorter than {min_length} characters",
    "too_long": "it has more than {max_length} items",
}


def words(error: ErrorDetails) -> str:
    """Return what is wrong, without the value and its place."""
    kind = error["type"]
    if found := _WORDS.get(kind):
        return found
    if found := _LIMITS.get(kind):
        return found.format(**error.get("ctx", {}))
    if found := next((text for begin, text in _BEGINNINGS.items() if kind.startswith(begin)), ""):
        return found
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
