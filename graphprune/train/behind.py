"""Dense weights behind what the module runs with.

Between optimizer steps every parameter *is* what the pruned network would compute with, so that the user's forward,
backward, saving and evaluation all see it. Around ``optimizer.step`` the dense weights come back, so that momentum,
decay and adaptive moments act on them as on any weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import ModelError
from .method import Method

_HELD = WeakTensorKeyDictionary()
"""By parameter, the method that has its dense weights: a weak reference."""


class Behind(Method):
    """Subclasses say what runs, and what gradients teach; they call ``begin`` when ready."""

    def running(self) -> dict[str, Tensor]:
        """Per parameter, what the module runs with, of the dense weights."""
        raise NotImplementedError

    def revise(self, gradients: Mapping[str, Tensor]) -> None:
        """Learn from the gradients of the loss with respect to what runs, and turn them in place into those that the
        weights shall get."""

    def dense(self) -> dict[str, Tensor]:
        """The weights behind, as they were after the last step."""
        return {name: self.get_buffer(f"dense{k}") for k, name in enumerate(self.tensors())}

    @torch.no_grad()
    def begin(self) -> None:
        """From here on the module runs with what ``running`` says. Raises ModelError for a parameter that the optimizer
        does not hold, or that another method has masked: what is made of it there would be undone at the next step."""
        held = {id(parameter) for group in self.need_optimizer().param_groups for parameter in group["params"]}
        foreign = next((name for name, parameter in self.tensors().items() if id(parameter) not in held), None)
        if foreign is not None:
            raise ModelError(
                f"{type(self).__name__} masks `{foreign}`, which the {type(self.optimizer).__name__} does not hold",
                "have one optimizer hold all that requires gradients, and `requires_grad_(False)` for what shall rest",
            )
        for name, parameter in self.tensors().items():
            other = _HELD[parameter]() if parameter in _HELD else None
            if other is not None and other.optimizer is self.optimizer:
                raise ModelError(
                    f"{type(self).__name__} masks `{name}`, which {type(other).__name__} masks already",
                    "one of them at a time: `remove()` takes the other out",
                )
        for k, parameter in enumerate(self.tensors().values()):
            _HELD[parameter] = ref(self)
            self.register_buffer(f"dense{k}", parameter.detach().clone())
        self.impose()

    def remove(self) -> None:
        super().remove()
        for parameter in self.tensors().values():
            if parameter in _HELD and _HELD[parameter]() is self:
                del _HELD[parameter]

    @torch.no_grad()
    def impose(self) -> None:
        """Make the module's parameters what runs."""
        for name, value in self.running().items():
            self.tensors()[name].copy_(value)

    def before(self, gradients: Mapping[str, Tensor]) -> None:
        self.revise(gradients)
        for name, weight in self.dense().items():
            self.tensors()[name].copy_(weight)

    def after(self) -> None:
        for name, weight in self.dense().items():
            weight.copy_(self.tensors()[name])
        self.impose()
