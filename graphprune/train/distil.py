"""Distillation from the dense parent: of its answers (Hinton et al., 2015), and of its features at the ends
of blocks, in the channels that both have (Romero et al., FitNets, 2015; inner distillation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes.index import Index, Indices
from ..coupling.groups import everything
from ..errors import ModelError, RecipeError, nearest
from ..hosts.torch.export import evaluated, unwrapped
from ..ir.facts import Keep
from ..ir.program import Program
from ..pipeline.edits import Cut
from .options import within

NOT_RUN = "call this after the forward, with the same inputs; what torch.compile made is to run first after this"


def answers(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(teacher || student) of logits whose classes are the last axis, softened by T; the mean over
    all others. Raises RecipeError for logits of one axis, and a temperature that is not above zero."""
    within("answers", "(0, inf)", temperature=temperature)
    if student.ndim < 2:
        raise RecipeError(
            f"answers: logits of the shape {tuple(student.shape)}", "samples first, classes last: logits[None] of one"
        )
    a, b = (F.log_softmax(x.float().flatten(0, -2) / temperature, -1) for x in (student, teacher.detach()))
    return temperature**2 * F.kl_div(a, b, reduction="batchmean", log_target=True)


class InnerDistillation(nn.Module):
    """The mean squared difference of features, relative to the teacher's mean square, over ``at``.

        inner = gp.train.InnerDistillation(program, student, teacher, at=("layer1", "layer2"))
        loss = task(student(x), y) + inner(x)      # after the student's own forward

    ``at``: paths of submodules that return one tensor. ``student`` is the user's own class, masked or cut in place;
    ``program`` is the one it was cut by (``gp.apply``'s result), or the uncut one; ``teacher`` is the dense module,
    which is run in eval mode without gradients and left in the modes it was in. [derived] The channels that both have
    are compared as they are, so that FitNets' trained regressor is not needed. Raises ModelError for a path that is
    not there.
    """

    def __init__(self, program: Program, student: nn.Module, teacher: nn.Module, at: Sequence[str]) -> None:
        super().__init__()
        self._pair = (unwrapped(student), unwrapped(teacher))  # a tuple: not submodules of this
        self.at = tuple(at)
        self._seen: list[dict[str, Tensor]] = [{}, {}]
        self._handles: list[Any] = []
        for module, seen in zip(self._pair, self._seen, strict=True):
            self._handles += watch(module, self.at, seen)
        self._kept = _kept_axes(program, self.at)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        student, teacher = self._seen
        if set(student) != set(self.at):
            raise ModelError("the student has not run yet", NOT_RUN)
        with torch.no_grad(), evaluated(self._pair[1]):
            self._pair[1](*inputs, **named)
        losses = []
        for path in self.at:
            mine, theirs = student[path].float(), teacher[path].float()
            for axis, kept in self._kept[path]:
                if theirs.shape[axis] != mine.shape[axis]:
                    theirs = theirs.index_select(axis, kept.to(theirs.device))
            losses.append(F.mse_loss(mine, theirs) / theirs.square().mean().clamp_min(1e-12))
        student.clear()
        teacher.clear()
        return torch.stack(losses).mean()

    def remove(self) -> None:
        """Take the hooks out of both modules again."""
        for handle in self._handles:
            handle.remove()


def watch(module: nn.Module, at: Sequence[str], seen: dict[str, Tensor]) -> list[Any]:
    """Hooks that keep in ``seen`` what the submodules at these paths return. Raises ModelError, and hooks none, where
    one is not there."""
    module = unwrapped(module)
    parts = dict(module.named_modules())
    for path in at:
        if path not in parts:
            raise ModelError(f"{type(module).__name__} has no submodule `{path}`", nearest(path, parts))
    return [parts[path].register_forward_hook(_keeper(seen, path)) for path in at]


def _keeper(seen: dict[str, Tensor], path: str) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ModelError(f"`{path}` returns a {type(output).__name__}", "name submodules that return one tensor")
        seen[path] = output

    return keep


def _kept_axes(program: Program, paths: Sequence[str]) -> dict[str, list[tuple[int, Tensor]]]:
    """Per path, the axes of what it returns that the program's plan cut, with the indices kept."""
    graph = program.source.lift()
    groups = everything(graph)
    keep: dict[str, Indices] = {}
    for edit in program.plan.of(Cut):
        for name, own in edit.fact().keep.items():
            keep[name] = keep[name][own] if name in keep else own
    index: Index = Keep(keep).index(groups)
    out: dict[str, list[tuple[int, Tensor]]] = {}
    for path in paths:
        inside = [op for op in graph.ops if op.outputs and f"{op.origin}.".startswith(f"{path}.")]
        dims = inside[-1].outputs[0].dims if inside else ()
        out[path] = [(k, torch.from_numpy(index(dim))) for k, dim in enumerate(dims) if index.touches(dim)]
    return out
