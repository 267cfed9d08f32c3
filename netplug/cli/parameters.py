"""Values of plain types from the command line, without pydantic.

typer 0.29 converts each value by an adapter of pydantic, whose import takes longer than all else that a client command
does (`netplug version`: 0.2 s with it, 0.1 s without). Texts, lists of texts, paths, and flags that are not given, need
no adapter.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.core
from typer._coercion import RuntimeParam, TypeDescriptor, build_runtime_param

_PLAIN = (str, Path, list[str], bool)


@dataclass(frozen=True)
class _Plain(RuntimeParam):
    descriptor: TypeDescriptor

    def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:
        if self.annotation is bool:  # of an environment variable
            return build_runtime_param(self.descriptor).coerce(value, param, ctx)
        return Path(value) if self.annotation is Path else value


def _build(descriptor: TypeDescriptor) -> RuntimeParam:
    info = descriptor.parameter_info
    if descriptor.annotation not in _PLAIN or info.exists or info.resolve_path or info.allow_dash or info.parser:
        return build_runtime_param(descriptor)
    return _Plain(info, descriptor.annotation, descriptor)


def use_plain_values() -> None:
    """Have typer ask for an adapter only where a value needs one."""
    vars(typer.core)[build_runtime_param.__name__] = _build
