"""Networks of the transformers library: what their configurations can say of widths, and the folder that says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..allocation.problem import tied
from ..axes.dim import find
from ..cost.static import length_of
from ..coupling.groups import find_groups
from ..coupling.names import GROUP
from ..coupling.places import places
from ..errors import BudgetError, ModelError
from ..ir.facts import Group, Groups, Scores
from ..ir.graph import Graph
from ..ir.program import Program

if TYPE_CHECKING:
    from ..hosts.torch.configuration import Configuration
    from ..hosts.torch.pretrained import Pretrained


SHARD = "2GB"
"""The most that a file of weights has."""


DIFFERED = "widths are those that modeling_pruned.py has; layers need not be alike, as no configuration says them"


def pretrained(program: Program) -> Pretrained | None:
    """What the network was read from, if that was a folder of the library."""
    found: Pretrained | None = getattr(program.source, "pretrained", None)
    return found


def asked(program: Program, alike: bool | None) -> Pretrained | None:
    """What a configuration is to say the widths of: a folder of the library; a network of its in memory where layers
    are to be ``alike``. Raises ModelError where that is asked of anything else."""
    from ..hosts.torch.configuration import is_pretrained
    from ..hosts.torch.pretrained import Pretrained

    made = pretrained(program)
    if made is not None or not alike:
        return made
    module = getattr(program.source, "module", None)
    if module is None or not is_pretrained(module):
        what = program.host.kind if module is None else type(module).__name__
        raise ModelError(
            f"alike=True keeps layers as the configuration of a network of transformers says them, and {what} has none",
            "leave it out; in a recipe `mask{alike=layers}` keeps as many channels in the same layer of all blocks",
        )
    return Pretrained(module)


def once(program: Program) -> bool:
    """Whether the folder that the library loads is all that is written: weights that are large are on the disk once."""
    return pretrained(program) is not None and getattr(program.source, "room", None) is not None


def unsaid(program: Program, made: Pretrained, alike: bool = True) -> tuple[str, ...]:
    """The groups that cannot be cut in the class of ``made``, as ``freeze`` takes them: that lead, each by one channel
    less, to no shapes that configurations say; with ``alike`` each class of like layers together, to none that one
    says, the eps of norms across them included. A class of its own can be resized inside of blocks whatever
    configurations say."""
    groups = find_groups(program.graph)
    nothing = Scores("", {group.name: np.zeros(group.size) for group in groups})
    chosen, _, others = tied(groups, nothing) if alike else (groups, nothing, {})
    names, inner = _names(made.model, program), set() if alike else _inner(program.graph, groups)
    left = []
    for first in chosen:
        same = (first, *others.get(first.name, ()))
        across = alike and any(member.across for member in first.members)
        said = not across and made.configuration.says(_cut(program, made.configuration, names, same), alike)
        if not said and first.name not in inner:
            left += [f"{GROUP}{group.name}" for group in same]
    return tuple(left)


@contextmanager
def more_unlike(program: Program, alike: bool) -> Iterator[None]:
    """Within, where nothing or too little can be cut of layers of a folder that are ``alike``, the hint says what lets
    more go, if that does."""
    made = pretrained(program) if alike else None
    try:
        yield
    except (BudgetError, ModelError) as error:
        called = error.__cause__ is not None  # something that failed
        if made and not called and len(unsaid(program, made, alike=False)) < len(unsaid(program, made)):
            more = "`--unlike` (alike=False) lets layers inside of blocks go that no field of config.json says"
            error.hint = f"{error.hint}; {more}" if error.hint else more
        raise


def _inner(graph: Graph, groups: Groups) -> set[str]:
    """The groups that are neither streams, heads nor experts, of whose axes each is theirs alone."""
    at = places(graph)
    return {
        group.name
        for group in groups
        if group.dim not in at and all(find(one.dim) is find(group.dim) for one in group.members)
    }


def _names(model: Any, program: Program) -> dict[str, str]:
    """Of every tensor of the class what the program calls it: tied ones have one name there."""
    known = {tensor.data_ptr(): name for name, tensor in model.state_dict().items() if name in program.graph.parameters}
    return {name: known.get(tensor.data_ptr(), name) for name, tensor in model.state_dict().items()}


def _cut(
    program: Program, configuration: Configuration, names: Mapping[str, str], groups: tuple[Group, ...]
) -> dict[str, tuple[int, ...]]:
    """The shapes when each of the groups has lost one channel."""
    kept, sizes = {group.dim: group.size - 1 for group in groups}, program.host.sizes()
    wanted = dict(configuration.sizes)
    for name in wanted:
        value = program.graph.parameters.get(names.get(name, name))
        if value is not None:
            wanted[name] = tuple(int(length_of(dim, kept, sizes)) for dim in value.dims)
    return wanted


def write_pretrained(folder: Path, program: Program, tokens: Sequence[int] = ()) -> str | None:
    """Write what ``from_pretrained`` reads: configuration, weights in safetensors, and what lay beside them; where no
    configuration says the widths, also a class of its own that does. ``tokens``: those that are left where some went,
    whose numbers are then their places here, in configurations and the tokeniser too. Returns why nothing was written
    where the class has no place for what was made. Raises ModelError where the class, made from a configuration that
    says them, does not compute what the program computes."""
    from ..hosts.torch import own_class
    from ..hosts.torch.configuration import Configuration
    from ..hosts.torch.pretrained import automatic, check_written
    from ..hosts.torch.rebuild import stored
    from ..hosts.torch.tokenizer import resize, with_numbers
    from ..hosts.torch.widths import of_the_whole, untied, widths
    from ..train.inplace import compare
    from .rebuilding import filled, twin

    made = pretrained(program)
    assert made is not None
    kind, configuration = made.kind, made.configuration
    try:
        new, tokenizer = {old: number for number, old in enumerate(tokens)}, made.tokenizer if tokens else None
        if tokens:
            configuration = Configuration(kind, with_numbers(configuration.config, new))
        apart = untied(program)
        if apart and (loose := configuration.having(tie_word_embeddings=False)) is not None:
            configuration = loose
        sizes = widths(program, apart)
        whole = of_the_whole(program, sizes)
        full = said = _as_configured(program, configuration, whole, apart)
        if full is None and apart:
            raise ModelError(f"no configuration of {kind.__name__} has an embedding of its own and these widths")
        if full is None:
            full = filled(program, twin(made.model), sizes, assign=True)
            if tokens:
                resize(full, made.model, new)
            compare(full, program.source, program, "rebuilt")
        if hasattr(made.model, "generation_config"):
            full.generation_config = with_numbers(made.model.generation_config, new)
    except ModelError as error:
        return error.message
    if said is not None:
        compare(said, program.source, program, "made from its configuration")
    else:
        stored(full, sizes)
    there = set(folder.iterdir())
    # Names of weights that the library changes as it loads a class of its own, it does not for another's.
    full.save_pretrained(folder, max_shard_size=SHARD, save_original_format=said is not None)
    if said is None:
        own_class.write(folder, kind, automatic(kind), whole)
    try:
        check_written(folder, full)
    except ModelError as error:
        for path in set(folder.iterdir()) - there:
            path.unlink()
        return error.message
    made.carry(folder)
    if tokenizer is not None:
        tokenizer.trimmed(new).write(folder)
    return None


def _as_configured(program: Program, whole: Configuration, sizes: Mapping[str, Any], apart: Mapping[str, str]) -> Any:
    """The class made from a configuration that says what was made of the ``whole`` one; None where none does.
    ``apart``: other names of its tensors, see widths.untied. Raises ModelError where no class of its own does
    either."""
    from ..hosts.torch.configuration import Configuration, told, valid
    from ..hosts.torch.expert_groups import in_groups
    from ..hosts.torch.head_width import at_width, same_angles, scaled, tables
    from ..hosts.torch.pretrained import made_from
    from ..hosts.torch.widths import keeps
    from ..train.inplace import compare
    from .rebuilding import weights

    made, kind = pretrained(program), whole.kind
    assert made is not None
    left = keeps(program, whole.sizes)
    whole = in_groups(whole, left)
    configuration = at_width(whole, left, tables(program.model))
    state, eps = weights(program, sizes), sizes["eps"]
    state |= {name: state[own] for own, name in apart.items()}
    state = {name: tensor for name, tensor in state.items() if name in whole.sizes or name not in apart}
    if narrow := configuration is not whole:
        state = scaled(state, whole, configuration)
    if gone := [block for block in configuration.blocks if not any(name.startswith(block) for name in state)]:
        if (less := configuration.without(gone)) is None:
            left_out = ", ".join(block[:-1] for block in gone)
            raise ModelError(f"no configuration of {kind.__name__} leaves out {left_out}")
        config, names = less
        if added := [name for name in state if name not in names]:
            raise ModelError(
                f"{kind.__name__} without the blocks that went has no `{added[0]}`, which a fit made "
                "(`compensate{bias=false}` makes no biases)"
            )
        configuration, state = Configuration(kind, config), {names[old]: tensor for old, tensor in state.items()}
        eps = {names[f"{path}.weight"].removesuffix(".weight"): one for path, one in eps.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    found = None
    if shapes.keys() == configuration.sizes.keys():
        found = configuration.narrower(shapes, eps) if eps else configuration.saying(shapes)
    if found is not None and valid(found):
        full = made_from(kind, told(found, kind), state, made.model.dtype)
        if narrow:  # a class may make more of a head's width than a scale and angles
            with suppress(ModelError):
                compare(full, program.source, program, "made from its configuration")
                return full if same_angles(tables(full), tables(program.model)) else None
        return None if narrow else full
    if gone:
        raise ModelError(f"no configuration of {kind.__name__} has these widths in the blocks that are left")
    return None
