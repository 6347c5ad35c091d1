"""gp.apply in place: the user's own class, cut, computes what the GraphModule does, and trains on."""

from __future__ import annotations

import copy

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError

RECIPE = "group,score{by=random},mask{channels=0.5x},propagate"


def compiled(module, inputs):
    return gp.run(RECIPE, gp.load(module, inputs))


@pytest.mark.parametrize("name", [name for name, net in nets.ZOO.items() if net.prunable])
def test_it_computes_what_the_graph_module_does_or_is_left_alone(name):
    """Every network of the zoo: cut and equal to 1e-12 on inputs it was not checked with, or refused with
    the reason and not one bit changed. Never wrong."""
    module, inputs = copy.deepcopy(nets.module(name)), nets.ZOO[name].inputs()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    sizes = {part: dict(vars(layer)) for part, layer in module.named_modules()}
    program = compiled(module, inputs)
    try:
        checked = gp.apply(program, module, in_place=True)
    except ModelError as error:
        assert "cannot be cut in place" in error.message or "does not allow for" in error.message
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, before[key]), key
        for part, layer in module.named_modules():
            for attribute in ("groups", "in_channels", "num_features", "normalized_shape"):
                assert vars(layer).get(attribute) == sizes[part].get(attribute)
        return
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in nets.module(name).parameters())
    rng = torch.Generator().manual_seed(5)
    other = torch.utils._pytree.tree_map(
        lambda x: torch.randn(x.shape, generator=rng, dtype=x.dtype) if x.is_floating_point() else x, inputs
    )
    for given in (inputs, other):
        mine, theirs = nets.outputs(module, given), nets.outputs(checked.model, given)
        assert nets.relative_error(theirs, mine) <= 1e-12
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)


@pytest.mark.parametrize(
    "name", [*"Residual Dense Depthwise Gate SqueezeExcite MLP PReLU".split(), "Projected", "Recurrent"]
)
def test_ordinary_networks_are_cut(name):
    module, inputs = copy.deepcopy(nets.module(name)), nets.ZOO[name].inputs()
    gp.apply(compiled(module, inputs), module, in_place=True)


class Decoder(nn.Module):
    """Layers of both directions, then cells, each as wide as what it reads."""

    def __init__(self):
        super().__init__()
        self.enter, self.head = nn.Linear(6, 8), nn.Linear(9, 4)
        self.rnn = nn.LSTM(8, 10, num_layers=2, batch_first=True, bidirectional=True, proj_size=6)
        self.lstm, self.gru = nn.LSTMCell(12, 7), nn.GRUCell(7, 9)

    def forward(self, x):
        y, state, k = self.rnn(F.relu(self.enter(x)))[0], None, None
        for t in range(x.shape[1]):
            state = self.lstm(y[:, t], state)
            k = self.gru(state[0], k)
        return self.head(k)


def test_recurrent_layers_know_their_new_sizes_and_train_on():
    torch.manual_seed(0)
    module, x = Decoder(), torch.randn(3, 4, 6)
    optimizer = torch.optim.Adam(module.parameters())
    module(x).sum().backward()
    optimizer.step()
    program = gp.run("group,score{by=l1},mask{channels=0.5x},propagate", gp.load(module, x))
    gp.apply(program, module, in_place=True, optimizer=optimizer)
    rnn, lstm, gru = module.rnn, module.lstm, module.gru
    assert (rnn.input_size, rnn.hidden_size, rnn.proj_size) == (4, 5, 3)
    assert (lstm.input_size, lstm.hidden_size, gru.input_size, gru.hidden_size) == (6, 3, 3, 5)
    assert all(
        mine is getattr(rnn, name) for mine, name in zip(rnn._flat_weights, rnn._flat_weights_names, strict=True)
    )
    again = Decoder()
    again.rnn = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True, proj_size=3)
    assert {n: p.shape for n, p in again.rnn.named_parameters()} == {n: p.shape for n, p in rnn.named_parameters()}
    before = copy.deepcopy(module.state_dict())
    module.train()(x).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


class Literal(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.b(self.a(x).reshape(-1, 2, 6).relu().reshape(-1, 12))


def test_a_literal_in_the_forward_is_named():
    module, x = Literal(), torch.randn(5, 4)
    want = module(x)
    program = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(module, x))
    with pytest.raises(
        ModelError, match=r"Literal cannot be cut in place: its forward raises .*written in it"
    ) as caught:
        gp.apply(program, module, in_place=True)
    assert "[-1, 2, 6]" in caught.value.message
    assert torch.equal(module(x), want)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(self.up(self.norm(x)).relu())


def test_torchs_own_attention_remembers_its_width():
    """nn.MultiheadAttention has its width written in it: refused whole, and cut where its groups are frozen."""
    torch.manual_seed(0)
    module, x = Attention().double().eval(), torch.randn(2, 5, 12, dtype=torch.float64)
    before, want = copy.deepcopy(module.state_dict()), module(x)
    with pytest.raises(ModelError, match="Attention cannot be cut in place: its forward raises"):
        gp.apply(compiled(module, x), module, in_place=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(module(x), want)
    program = gp.run(RECIPE.replace("group", "group{freeze=attention*}"), gp.load(module, x))
    checked = gp.apply(program, module, in_place=True)
    assert module.up.weight.shape == (10, 12)
    assert nets.relative_error(nets.outputs(checked.model, (x,)), nets.outputs(module, (x,))) <= 1e-12


def steps(module, optimizer, count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x, y = torch.randn(8, 3, 8, 8, generator=rng), torch.randint(0, 3, (8,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_the_optimizers_state_is_cut_along(kind):
    torch.manual_seed(0)
    module = nets.Residual()
    optimizer = OPTIMIZERS[kind](module.parameters())
    steps(module, optimizer, 3)
    before = {name: dict(optimizer.state[p]) for name, p in module.named_parameters()}
    program = compiled(module, torch.zeros(2, 3, 8, 8))
    gp.apply(program, module, in_place=True, optimizer=optimizer)
    for name, parameter in module.named_parameters():
        assert any(parameter is p for group in optimizer.param_groups for p in group["params"])
        axes = program.plan["parameters"].get(name, {})
        for key, old in before[name].items():
            new = optimizer.state[parameter][key]
            want = np.asarray(old)
            for axis, entry in axes.items() if want.ndim else ():
                want = want.take(entry["keep"], int(axis))
            np.testing.assert_array_equal(np.asarray(new), want)
    assert len(optimizer.state) == len(before)
    steps(module, optimizer, 2, seed=1)


def test_a_step_after_the_cut_is_the_step_of_the_graph_module():
    """The same plan, the same moments: the class and the GraphModule train alike."""
    torch.manual_seed(0)
    module = nets.Residual()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    steps(module, optimizer, 2)
    program = compiled(module, torch.zeros(2, 3, 8, 8))
    checked = gp.apply(program, module, in_place=True, optimizer=optimizer)
    graph = checked.model.train()
    other = torch.optim.SGD([graph.get_parameter(name) for name, _ in module.named_parameters()], lr=0.05, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(module.train(), optimizer, 3, seed=2)
    steps(graph, other, 3, seed=2)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(graph.get_parameter(name), parameter)


def test_a_gradient_that_was_summed_before_the_cut_is_stepped_along_after_it():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(5, 4)).square().mean().backward()
    stepped = {name: (p - 0.1 * p.grad).detach() for name, p in module.named_parameters()}
    program = compiled(module, torch.randn(2, 4))
    gp.apply(program, module, in_place=True, optimizer=optimizer)
    optimizer.step()
    kept = torch.tensor(program.plan.parameters["0.weight"]["0"]["keep"])
    assert len(kept) == 4
    torch.testing.assert_close(module[0].weight.data, stepped["0.weight"][kept], rtol=1e-6, atol=0)
    torch.testing.assert_close(module[2].weight.data, stepped["2.weight"][:, kept], rtol=1e-6, atol=0)
    torch.testing.assert_close(module[2].bias.data, stepped["2.bias"], rtol=1e-6, atol=0)


def test_state_that_cannot_be_cut_is_refused_before_anything_moves():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adafactor(module.parameters(), lr=0.01)
    module(torch.randn(6, 4)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(module.state_dict())
    program = gp.run(RECIPE, gp.load(module, torch.randn(2, 4)))
    with pytest.raises(ModelError, match=r"Adafactor's `\w+` of `0.weight` cannot be cut"):
        gp.apply(program, module, in_place=True, optimizer=optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_what_the_class_has_no_place_for_is_refused():
    torch.manual_seed(0)
    module = nets.randomise(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3))).eval()
    program = gp.run(RECIPE + ",fold", gp.load(module, torch.randn(2, 3, 8, 8)))
    with pytest.raises(ModelError, match=r"the plan removes `1\.\w+`, which Sequential does not allow for"):
        gp.apply(program, module, in_place=True)


def test_a_plan_of_another_model_is_refused():
    module = nets.Residual()
    plan = compiled(module, torch.zeros(2, 3, 8, 8)).plan
    with pytest.raises(gp.GraphpruneError):
        gp.apply(plan, nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.zeros(2, 4), in_place=True)


def test_tied_tensors_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(4, 8)
            self.mid = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
            self.mid[1].weight = self.mid[0].weight
            self.down = nn.Linear(8, 3)

        def forward(self, x):
            x = self.up(x)
            for layer in self.mid:
                x = x + layer(x.relu())
            return self.down(x)

    torch.manual_seed(0)
    module, x = Tied(), torch.randn(5, 4)
    checked = gp.apply(gp.run(RECIPE, gp.load(module, x)), module, in_place=True)
    assert module.mid[0].weight is module.mid[1].weight
    assert module.mid[0].weight.shape == (4, 4)
    torch.testing.assert_close(module(x), checked.model(x))


def test_the_state_of_a_tied_tensor_is_cut_under_either_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.mid(self.embed(x)).relu())

    torch.manual_seed(0)
    module, x = Tied(), torch.randint(0, 11, (3, 5))
    optimizer = torch.optim.Adam(module.parameters())
    module(x).sum().backward()
    optimizer.step()
    gp.apply(gp.run(RECIPE, gp.load(module, x)), module, in_place=True, optimizer=optimizer)
    assert {state["exp_avg"].shape == p.shape for p, state in optimizer.state.items()} == {True}
    optimizer.zero_grad()
    module(x).sum().backward()
    optimizer.step()
