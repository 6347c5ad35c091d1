"""A continuous choice of experts, learned from data (Bai et al., DiEP: Adaptive Mixture-of-Experts Compression through
Differentiable Expert Pruning, 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..axes.dim import find
from ..axes.index import shares
from ..coupling.routes import Route, routes
from ..errors import DataError, ModelError, RecipeError
from ..ir.facts import Group, Groups, Scores
from ..ir.program import Program
from ..pipeline.recipe import Recipe
from ..pipeline.run import run
from .penalty import check_trainable


def diep(
    program: Program,
    *,
    keep: float = 0.5,
    steps: int = 200,
    rate: float = 0.05,
    apart: float = 0.01,
) -> Program:
    """The program with the groups of its experts and a score of each, ready for ``gp.run("mask{...},propagate", ...)``;
    its weights stay as they are. One threshold over all (``allocate=global``, the default without data) leaves every
    layer a number of its own.

    What expert i of layer l makes is multiplied by m = min(``keep`` n_l alpha_li L beta_l, 1), alpha the softmax of one
    number an expert, beta of one number a layer: shares of so many experts as are to stay. They are trained by Adam on
    ``program.data`` in turn, alpha at even steps and beta at odd ones, to come near to the outputs that the network
    gave, the squared distance relative to their size, plus ``apart`` times the mean over layers of
    sum_{i != j} alpha_i alpha_j max(cos(w_i, w_j), 0), w_i all that belongs to expert i: of two that are alike one is
    enough. The score of an expert is its m before it is bounded.

    [derived] What was at hand of the paper is its abstract: the choice of experts is made continuous and learned,
    importance is compared across layers, whose rates differ, and a distance between experts has a part. How (the
    softmaxes and their product, the turns, the bound, the start at all alike, the cosine of weights) is ours; experts
    are not skipped at run time. Where top-k chooses, it chooses as before. Raises ModelError where there are no
    experts, RecipeError for a share that is none, DataError without data.
    """
    if not 0 < keep <= 1:
        raise RecipeError(f"diep: keep={keep} is not a share", "say what remains, above 0 and up to 1")
    check_trainable(program)
    if not program.data:
        raise DataError("diep: there is no data to choose experts by", "gp.load(..., data=...)")
    known = run(Recipe.parse("group{places=experts}"), program)
    choice = _Choice(known, keep)
    optimizer = torch.optim.Adam([choice.alpha, choice.beta], lr=rate)
    for step in range(steps):
        learned = (choice.beta, choice.alpha)[step % 2 == 0 or len(choice.sizes) == 1]
        optimizer.zero_grad(set_to_none=True)
        loss = choice.distance(step) + apart * choice.alike()
        (learned.grad,) = torch.autograd.grad(loss, [learned])
        optimizer.step()
    found = choice.factors().detach().double().numpy()
    scores = {group.name: own for group, own in zip(choice.groups, choice.split(found), strict=True)}
    return known.learn(Scores("diep", scores)).note("experts were scored by a continuous choice of them (diep)")


class _Choice:
    """The choice, and the network with it."""

    def __init__(self, program: Program, keep: float) -> None:
        by_leaf = {find(group.dim): group for group in program.fact(Groups)}
        found = [(route, by_leaf[find(route.dim)]) for route in routes(program.graph) if find(route.dim) in by_leaf]
        if not found:
            raise ModelError("diep: nothing is made by experts here, each on an axis of its own", "score{by=stun}")
        self.routes, self.groups = [route for route, _ in found], [group for _, group in found]
        self.sizes, self.keep = [group.size for group in self.groups], keep
        self.alpha = torch.zeros(sum(self.sizes), requires_grad=True)
        self.beta = torch.zeros(len(self.sizes), requires_grad=True)
        host: Any = program.host
        self.model: fx.GraphModule = host.model
        self.batches = [host.inputs(batch) for batch in program.data]
        with torch.no_grad():
            self.given = [self._outputs(batch, {}) for batch in self.batches]
        self.cosines = [_cosines(program, group) for group in self.groups]

    def split(self, vector: Any) -> Sequence[Any]:
        ends = np.cumsum(self.sizes)
        return [vector[end - size : end] for size, end in zip(self.sizes, ends, strict=True)]

    def shares(self) -> list[Tensor]:
        """alpha, a layer each."""
        return [own.softmax(0) for own in self.split(self.alpha)]

    def factors(self) -> Tensor:
        """m before it is bounded, of all layers."""
        layers = len(self.sizes) * self.beta.softmax(0)
        return torch.cat([self.keep * len(own) * own * layers[k] for k, own in enumerate(self.shares())])

    def alike(self) -> Tensor:
        each = [own @ cosines @ own for own, cosines in zip(self.shares(), self.cosines, strict=True)]
        return torch.stack(each).mean()

    def distance(self, step: int) -> Tensor:
        """How far outputs are from those that were given, relative to their size."""
        k = step % len(self.batches)
        factors: dict[str, tuple[Route, Tensor, int]] = {}
        for route, own in zip(self.routes, self.split(self.factors().clamp(max=1)), strict=True):
            made = route.made if isinstance(route.made, tuple) else (route.made,)
            factors |= {value.name: (route, own, number) for number, value in enumerate(made)}
        pairs = list(zip(self._outputs(self.batches[k], factors), self.given[k], strict=True))
        apart = torch.stack([(ours - theirs).square().sum() for ours, theirs in pairs]).sum()
        return apart / torch.stack([theirs.square().sum() for _, theirs in pairs]).sum().clamp_min(1e-30)

    def _outputs(self, batch: Any, factors: Mapping[str, tuple[Route, Tensor, int]]) -> list[Tensor]:
        made = _Weighed(self.model, factors).run(*batch)
        leaves = torch.utils._pytree.tree_leaves(made)
        return [leaf.float() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


class _Weighed(fx.Interpreter):
    """Runs a network in which what experts make is multiplied by their factors."""

    def __init__(self, model: fx.GraphModule, factors: Mapping[str, tuple[Route, Tensor, int]]) -> None:
        super().__init__(model, garbage_collect_values=not factors)
        self.factors = factors

    def run_node(self, node: fx.Node) -> Any:
        made = super().run_node(node)
        if node.name not in self.factors:
            return made
        route, factors, number = self.factors[node.name]
        factors = factors.to(made.dtype)
        if isinstance(route.made, tuple):
            return made * factors[number]
        if route.ids is None:
            return made * factors.reshape([-1 if k == route.axis else 1 for k in range(made.ndim)])
        ids = self._value(route.ids.name).flatten()
        return (made.reshape(len(ids), -1) * factors[ids][:, None]).reshape(made.shape)

    def _value(self, name: str) -> Tensor:
        """What a value of the thin graph is here: one of several results of a node has its number behind its name."""
        maker, _, number = name.partition("#")
        found = next(value for node, value in self.env.items() if node.name == maker)
        chosen: Tensor = found[int(number or 0)] if isinstance(found, (tuple, list)) else found
        return chosen


def _cosines(program: Program, group: Group) -> Tensor:
    """Of every two experts, between all that belongs to them; zero where they are not alike, and of one with itself."""
    rows = []
    for member in group.members:
        weight = program.host.parameter(member.parameter).astype(np.float64)
        at, index = shares(member.dim)[find(group.dim)]
        if len(at) == group.size:
            rows.append(np.moveaxis(weight, member.axis, 0)[at[np.argsort(index)]].reshape(group.size, -1))
    whole = F.normalize(torch.from_numpy(np.concatenate(rows, 1)).float(), dim=1)
    return (whole @ whole.T).clamp_min(0).fill_diagonal_(0)
