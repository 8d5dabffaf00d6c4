"""The arguments of a diffusion model's forward, by name: every family has them in another order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Arguments:
    """A call of `forward` that can be read and changed by name. `more` is the name under which it takes further keywords."""

    bound: inspect.BoundArguments
    more: str | None

    @classmethod
    def of(cls, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Raises TypeError if the call does not fit `forward`."""
        signature = inspect.signature(forward)
        keywords = [name for name, parameter in signature.parameters.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
        return cls(signature.bind(*args, **kwargs), keywords[0] if keywords else None)

    def get(self, name: str, default: Any = None) -> Any:
        """The argument's value; the default too if it is None."""
        further = self.bound.arguments.get(self.more, {}) if self.more else {}
        value = self.bound.arguments.get(name, further.get(name))
        return default if value is None else value

    def having(self, **values: Any) -> Arguments:
        """The same call with other values."""
        bound = inspect.BoundArguments(self.bound.signature, self.bound.arguments.copy())
        for name, value in values.items():
            if self.more is not None and name not in bound.signature.parameters:
                bound.arguments[self.more] = {**bound.arguments.get(self.more, {}), name: value}
            else:
                bound.arguments[name] = value
        return replace(self, bound=bound)

    def of_rows(self, rows: list[int], batch: int) -> Arguments:
        """The same call for some rows of a batch: of every tensor, and every tensor in a list, that has `batch` rows."""

        def part(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows] if value.ndim and len(value) == batch else value
            if isinstance(value, list):
                return [part(entry) for entry in value]
            return value

        bound = inspect.BoundArguments(self.bound.signature, self.bound.arguments.copy())
        for name, value in bound.arguments.items():
            bound.arguments[name] = {key: part(entry) for key, entry in value.items()} if name == self.more else part(value)
        return replace(self, bound=bound)

    def call(self, function: Callable[..., Any]) -> Any:
        return function(*self.bound.args, **self.bound.kwargs)
