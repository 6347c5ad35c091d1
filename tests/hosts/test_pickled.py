"""What `torch.save(program.model)` writes loads where graphprune is not, and is the same network."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import nets
import pytest
import torch
import torch.nn.functional as F
from alone import WITHOUT
from torch import nn

import graphprune as gp

ALONE = (
    WITHOUT
    + """
import warnings
warnings.simplefilter("ignore", FutureWarning)  # of torch, about how it pickles its own trees
import torch
from torch.utils._pytree import tree_leaves
for path in sys.argv[1:]:
    model, inputs, outputs, names = torch.load(path, weights_only=False)
    found = [x for x in tree_leaves(model(*inputs)) if isinstance(x, torch.Tensor)]
    assert all(map(torch.equal, found, outputs)), path
    assert list(model.state_dict()) == names, (path, set(model.state_dict()) ^ set(names))
    assert not model.training
assert "graphprune" not in sys.modules
print(len(sys.argv) - 1, "are the same")
"""
)
SOME = ("Residual", "Depthwise", "Packed", "GroupedQuery", "Einsum", "Embedding", "Instance", "Slices", "Recurrent")


def saved(name: str, folder: Path) -> Path:
    program, inputs = nets.program(name), nets.ZOO[name].inputs()
    if nets.ZOO[name].prunable:
        program = gp.run("group,score,mask{channels=0.7x},propagate", program)
    model = program.model
    outputs = [x for x in torch.utils._pytree.tree_leaves(model(*inputs)) if isinstance(x, torch.Tensor)]
    path = folder / f"{name}.pt"
    torch.save((model, inputs, outputs, list(model.state_dict())), path)
    return path


def loads_alone(paths: list[Path]) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, *map(str, paths)], capture_output=True, text=True, check=False)
    assert done.stdout == f"{len(paths)} are the same\n", done.stderr


def test_it_loads_without_graphprune(tmp_path: Path) -> None:
    loads_alone([saved(name, tmp_path) for name in SOME])


@pytest.mark.slow
def test_all_load_without_graphprune(tmp_path: Path) -> None:
    alone = [name for name in nets.ZOO if "deform" not in name.lower()]  # that op is not torch's own
    loads_alone([saved(name, tmp_path) for name in alone])


class Modes(nn.Module):
    """What train() changes, a buffer that is not saved, a constant, and a number made of none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.drop = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.spatial, self.b = nn.Dropout2d(0.25), nn.Conv2d(8, 4, 1)
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("passing", torch.full((1,), 2.0), persistent=False)
        self.constant = torch.tensor([3.0])

    def forward(self, x):
        x = self.spatial(self.drop(torch.relu(self.bn(self.a(x)))))
        return self.b(x) * self.kept * self.passing + self.constant + torch.arange(6, dtype=x.dtype)


@pytest.fixture
def made() -> tuple[nn.Module, gp.Program, torch.Tensor]:
    torch.manual_seed(0)
    module, x = Modes().eval(), torch.randn(2, 3, 8, 8)
    return module, gp.run("group,score,mask{channels=0.5x},propagate", gp.load(module, x)), x


def again(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


def test_what_is_saved_of_a_network_is_what_is_saved_of_the_users(made) -> None:
    module, program, x = made
    names = list(module.state_dict())
    assert set(program.model.state_dict()) == set(names)
    loaded = again(program.model)
    assert set(loaded.state_dict()) == set(names) and torch.equal(loaded(x), program.model(x))
    assert type(loaded).__mro__[1] is torch.fx.GraphModule
    loaded.load_state_dict(program.model.state_dict())
    assert torch.equal(again(loaded)(x), program.model(x))


def test_what_is_loaded_trains_and_evaluates(made) -> None:
    _, program, x = made
    loaded = again(program.model)
    torch.manual_seed(1)
    want = program.model.train()(x)
    torch.manual_seed(1)
    assert torch.equal(loaded.train()(x), want)  # the same draws, the same batch statistics
    assert not torch.equal(loaded(x), want)
    assert loaded.get_buffer("bn.num_batches_tracked") == 2
    loaded.eval()
    assert torch.equal(loaded(x), loaded(x)) and not torch.equal(loaded(x), again(program.model.eval())(x))
    still = again(loaded.train())
    assert still.training and not torch.equal(still(x), still(x))
    loss = still(x).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in still.parameters())


def test_it_can_be_pruned_again_where_it_was_loaded(made) -> None:
    _, program, x = made
    done = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(again(program.model), x))
    assert done.model.get_parameter("a.weight").shape[0] == 2
    assert gp.verify(done)


def test_statistics_of_the_batch_alone_do_not_follow_the_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 2)).eval()
    x = torch.randn(5, 4)
    model = gp.load(net, x).model
    assert torch.equal(model.train()(x), model.eval()(x)) and torch.equal(again(model)(x), model(x))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale = nn.Linear(4, 6), nn.Parameter(torch.ones(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x):
        return F.batch_norm(self.a(x), self.mean, self.var, self.scale, None, self.training)


def test_what_cannot_follow_the_mode_is_said() -> None:
    model, x = gp.load(Own().eval(), torch.randn(5, 4)).model, torch.randn(5, 4)
    with pytest.warns(UserWarning, match="once loaded, `batch_norm` stays in the mode it is saved in"):
        loaded = again(model)
    assert torch.equal(loaded(x), model(x))


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)

    def forward(self, x):
        return self.a(x) + torch.rand(6)


def test_what_would_be_drawn_once_and_for_all_is_refused() -> None:
    with pytest.raises(pickle.PicklingError, match="`rand` draws random numbers that depend on no input"):
        pickle.dumps(gp.load(Draws().eval(), torch.randn(5, 4)).model)
