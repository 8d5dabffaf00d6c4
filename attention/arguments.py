"""The arguments of a diffusion model's forward, by name: every family has them in another order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Arguments:
    """A call of `forward` that can be read and changed by name. `more` is the name under which it takes further keywords.

    `in_order` are the names of those that were given without a name: other packs' wrappers look for theirs among these.
    """

    bound: inspect.BoundArguments
    more: str | None
    in_order: frozenset[str] = frozenset()

    @classmethod
    def of(cls, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Raises TypeError if the call does not fit `forward`."""
        signature = inspect.signature(forward)
        keywords = [name for name, parameter in signature.parameters.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
        bound = signature.bind(*args, **kwargs)
        return cls(bound, keywords[0] if keywords else None, frozenset(signature.bind_partial(*args).arguments))

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
        """The same call for some rows of a batch: of every tensor, alone, in a list or in a dict, that has `batch` rows.

        ComfyUI's own options stay as they are.
        """

        def part(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows] if value.ndim and len(value) == batch else value
            if isinstance(value, list):
                return [part(entry) for entry in value]
            if isinstance(value, dict):
                return {name: entry if name == "transformer_options" else part(entry) for name, entry in value.items()}
            return value

        bound = inspect.BoundArguments(self.bound.signature, part(dict(self.bound.arguments)))
        return replace(self, bound=bound)

    def rows_of_chunks(self, chunks: list[int]) -> list[int]:
        """The rows of some chunks of the batch, each of which has a text of its own (`cond_or_uncond`)."""
        images = self._images
        return [chunk * images + image for chunk in chunks for image in range(images)]

    def chunks(self, wanted: Callable[[int], bool]) -> list[int]:
        """The chunks of the batch whose first row is wanted."""
        count = len(self._halves)
        return [chunk for chunk in range(count) if wanted(chunk * self._images)]

    def of_chunks(self, chunks: list[int]) -> Arguments:
        """The same call for some chunks of the batch, with ComfyUI's options about them."""
        options = self.get("transformer_options", {})
        halves = self._halves
        uuids = options.get("uuids") or []
        here = {
            **options,
            "cond_or_uncond": [halves[chunk] for chunk in chunks],
            "uuids": [uuids[chunk] for chunk in chunks] if len(uuids) == len(halves) else uuids,
        }
        return self.of_rows(self.rows_of_chunks(chunks), self.get("x").shape[0]).having(transformer_options=here)

    @property
    def _halves(self) -> list[int]:
        return self.get("transformer_options", {}).get("cond_or_uncond") or [0]

    @property
    def _images(self) -> int:
        return int(self.get("x").shape[0]) // len(self._halves)

    def call(self, function: Callable[..., Any]) -> Any:
        """Calls `function` with the arguments as they were given: without a name what came without one."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for name, value in self.bound.arguments.items():
            kind = self.bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                kwargs |= value
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                args += value
            elif name in self.in_order:
                args.append(value)
            else:
                kwargs[name] = value
        return function(*args, **kwargs)
