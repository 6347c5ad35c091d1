"""Recovery after a cut with few parameters trained (Zimmer et al., PERP: Rethinking the Prune-Retrain Paradigm in the
Era of LLMs, 2023): norms, biases, and low-rank updates of the weights (Hu et al., LoRA, 2021) that leave zeros alone.

    recover = gp.train.Recover(model, parts="norm,bias,lora")
    optimizer = torch.optim.AdamW(recover.parameters(), lr=1e-3)
    ...                                             # the loop as ever: all other parameters are frozen
    recover.merge()                                 # the updates are in the weights, and the model as it was
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import ModelError, RecipeError, nearest
from ..hosts.torch.export import unwrapped
from .options import whole

PARTS = ("norm", "bias", "lora")


class Recover(nn.Module):
    """``model``: any module, a compiled GraphModule or the user's own class, cut or masked. ``parts``, of these:

    - ``norm``: what belongs to layers that have vectors only: scales and shifts of norms, slopes of activations;
    - ``bias``: vectors of layers that have a weight of two axes or more;
    - ``lora``: to every such weight W a product of ``rank`` is added, W + [W != 0] * (B A), B zero at first: what is
      zero stays so (the paper's masked form).

    Of the paper: its parts, and its update that leaves zeros alone, one of several there; its reconstruction layer by
    layer is not here (``compensate{by=lsq}`` is).

    All else is frozen until ``merge``. The parameters of this are those that are trained, its ``state_dict`` saves and
    resumes them. While it is at work the model's own ``state_dict`` has the updates beside the weights. A is drawn from
    torch's global generator; DistributedDataParallel, made after this, has all ranks begin alike. Raises RecipeError
    for an unknown part, ModelError where the model has none of the parts, is parametrized already, or is a
    DistributedDataParallel, which would not average what is new.
    """

    def __init__(self, model: nn.Module, parts: str = "norm,bias,lora", rank: int = 8) -> None:
        super().__init__()
        chosen = [part.strip() for part in parts.split(",")]
        for part in chosen:
            if part not in PARTS:
                raise RecipeError(f"Recover: `parts` cannot have `{part}`", nearest(part, PARTS))
        whole("Recover", rank=rank)
        if isinstance(getattr(model, "_orig_mod", model), nn.parallel.DistributedDataParallel):
            raise ModelError(
                "DistributedDataParallel averages the gradients of the parameters it was made with",
                "give Recover the module inside (`.module`), and wrap it anew",
            )
        model = unwrapped(model)
        if name := next((name for name, layer in model.named_modules() if parametrize.is_parametrized(layer)), None):
            raise ModelError(
                f"`{name}` of {type(model).__name__} is parametrized already",
                "call `merge` of the Recover before, or torch.nn.utils.parametrize.remove_parametrizations",
            )
        found = list(_parts(model, chosen))
        if not found:
            raise ModelError(f"{type(model).__name__} has none of `{parts}` to train", f"parts: {', '.join(PARTS)}")
        self._frozen = [p for p in model.parameters() if p.requires_grad]  # a list: not parameters of this
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        vectors: dict[int, nn.Parameter] = {}
        updates: dict[int, LowRank] = {}
        self._places: list[tuple[nn.Module, str]] = []
        self._order = [(owner, list(owner._parameters)) for owner in model.modules()]
        for owner, leaf, parameter in found:
            if parameter.ndim < 2:
                parameter.requires_grad_()
                vectors[id(parameter)] = parameter
            else:  # a tied weight has one update
                updates.setdefault(id(parameter), LowRank(parameter.detach(), int(rank)))
                parametrize.register_parametrization(owner, leaf, updates[id(parameter)])
                self._places.append((owner, leaf))
        self.vectors = nn.ParameterList(vectors.values())
        self.updates = nn.ModuleList(updates.values())

    @torch.no_grad()
    def merge(self) -> None:
        """Put the updates into the weights, take the parametrizations away, and let everything train again."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            merged = [(owner, leaf, getattr(owner, leaf).clone()) for owner, leaf in self._places]
        for owner, leaf, weight in merged:
            parametrize.remove_parametrizations(owner, leaf, leave_parametrized=False)
            getattr(owner, leaf).copy_(weight)
        for owner, order in self._order:  # what was parametrized has come back last
            own = dict(owner._parameters)
            owner._parameters.clear()
            owner._parameters.update({leaf: own[leaf] for leaf in order})
        self._places.clear()
        self._order.clear()
        for parameter in self._frozen:
            parameter.requires_grad_()


class LowRank(nn.Module):
    """W + [W != 0] * (B A), W seen as a matrix of its first axis and all the others."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        self.a = nn.Parameter(torch.randn(rank, columns, dtype=weight.dtype, device=weight.device) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight != 0) * (self.b @ self.a).reshape(weight.shape)


def _parts(model: nn.Module, chosen: list[str]) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for _, owner in model.named_modules(remove_duplicate=True):
        own = list(owner.named_parameters(recurse=False, remove_duplicate=False))
        has_weight = any(parameter.ndim > 1 for _, parameter in own)
        for leaf, parameter in own:
            part = "lora" if parameter.ndim > 1 else "bias" if has_weight else "norm"
            if part in chosen and parameter.requires_grad and parameter.numel():
                yield owner, leaf, parameter
