"""What methods of training do at the edges: of their options, of optimizers, of what is frozen."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_train_kin import sgd
from test_train_methods import pair, task
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

import graphprune as gp
from graphprune.cost.static import macs
from graphprune.errors import ModelError, RecipeError
from graphprune.ir.facts import Groups, Keep


def trained(module, penalty, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        (task(module, step) + penalty()).backward()
        optimizer.step()
        penalty.step()


@pytest.fixture(scope="module")
def start():
    return pair(width=16)


def copied(start):
    module, program = copy.deepcopy(start[0]), start[1]
    return module, program


@pytest.mark.parametrize(("total", "every"), [(10, 8), (17, 8), (22, 8), (10, 80), (3, 80)])
def test_smcp_meets_its_budget_however_rarely_it_chooses(start, total, every):
    module, program = copied(start)
    optimizer = sgd(module)
    penalty = gp.train.SMCP(program, module, optimizer, budget="macs=0.5x", every=every, total_steps=total)
    trained(module, penalty, optimizer, total)
    known = gp.run("group", program)
    (group,) = known.fact(Groups)
    cost, count = macs(known.graph, known.host), float(penalty.kept().sum())
    assert cost({group.dim: count}) <= 0.5 * cost() < cost({group.dim: count + 1})


def test_smcp_tells_channels_of_alike_norms_apart(start):
    module, program = copied(start)
    penalty = gp.train.SMCP(program, module, sgd(module))
    worth, alive = penalty.importance(), penalty.kept()
    assert len(worth.unique()) == 16
    assert worth[alive].min() > worth[~alive].max()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("Transport", {"total_steps": 1}), ("LAPP", {"total_steps": 1, "cold": 1e-4}), ("Consensus", {"start": 40.0})],
)
def test_hard_gates_keep_their_order(start, kind, options):
    module, program = copied(start)
    penalty = getattr(gp.train, kind)(program, module, sgd(module), **options)
    if kind == "Consensus":
        penalty.logits.data += torch.arange(16) / 8
    penalty.step()
    assert len(penalty.importance().unique()) == 16
    assert len((penalty.own_gates() if kind == "LAPP" else penalty.gates()).unique()) < 16


@pytest.mark.parametrize("kind", ["GroupLasso", "Movement"])
def test_a_fused_optimizer_teaches_what_any_does(start, kind):
    """The scaler neither unscales for it nor keeps it from a step that is skipped."""
    found = []
    for fused in (False, True):
        module, program = copied(start)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, fused=fused)
        penalty = getattr(gp.train, kind)(
            program, module, optimizer, **({"total_steps": 20} if kind == "Movement" else {})
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(7):
            optimizer.zero_grad()
            scaler.scale(task(module, step) + penalty()).backward()
            if step == 2:
                module[2].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            penalty.step()
        found.append([*penalty.state_dict().values(), *module.state_dict().values()])
    for one, other in zip(*found, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


class Heads(nn.Module):
    def __init__(self, both):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.last, self.both = nn.Linear(6, 3), both

    def forward(self, x):
        z = self.first(x).sigmoid()
        return self.last((self.a(z) + self.b(z).tanh() if self.both else self.a(z)).sigmoid())


@pytest.mark.parametrize(("kind", "both"), [("Movement", True), ("StochasticMasks", True), ("Catalyst", False)])
def test_what_is_frozen_reads_nothing_that_goes(kind, both):
    """Behind a sigmoid, which makes a half of zero."""
    torch.manual_seed(0)
    module = Heads(both).double()
    program = gp.load(module, torch.zeros(2, 5, dtype=torch.float64))
    if kind == "StochasticMasks":
        program = gp.run("group,score,mask{channels=0.5x}", program)
    (module.b if both else module.a).requires_grad_(False)
    optimizer = sgd(module)
    penalty = getattr(gp.train, kind)(program, module, optimizer, total_steps=8)
    trained(module, penalty, optimizer, 8)
    known = penalty.learned()
    name = "b" if both else "a"
    assert any(f"`{name}.weight`, which is not trained, would read it on" in note for note in known.notes)
    cut, x = gp.run("propagate", known), torch.randn(16, 5, dtype=torch.float64)
    assert cut.model.get_parameter("first.weight").shape[0] == 8
    assert cut.model.get_parameter("last.weight").shape[1] == 3
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(x), cut.model(x), rtol=1e-12, atol=1e-12)


def test_where_all_is_read_by_what_is_frozen_nothing_is_trained(start):
    module, program = copied(start)
    module[2].requires_grad_(False)
    with pytest.raises(ModelError, match=r"Movement: no group is left to train; `0`: `2.weight`, which is not trained"):
        gp.train.Movement(program, module, sgd(module), total_steps=5)


@pytest.mark.parametrize("kind", ["GroupLasso", "Polarization"])
def test_an_optimizer_of_another_module_is_refused(start, kind):
    module, program = copied(start)
    before = copy.deepcopy(module.state_dict())
    foreign = sgd(copy.deepcopy(module))
    with pytest.raises(ModelError, match=f"{kind}: the SGD holds no parameter of this Sequential"):
        getattr(gp.train, kind)(program, module, foreign)
    assert not foreign._optimizer_step_pre_hooks
    assert all(torch.equal(before[name], own) for name, own in module.state_dict().items())


@pytest.mark.parametrize("kind", ["BiP", "ACIP"])
def test_of_two_methods_that_mask_the_same_the_second_is_refused(start, kind):
    module, program = copied(start)
    optimizer = sgd(module)
    first = gp.train.SMCP(program, module, optimizer)
    options = {"BiP": {"keep": 0.5}, "ACIP": {"total_steps": 20, "target": 0.9}}[kind]
    with pytest.raises(ModelError, match=rf"{kind} masks `.*`, which SMCP masks already"):
        getattr(gp.train, kind)(program, module, optimizer, **options)
    first.remove()
    getattr(gp.train, kind)(program, module, optimizer, **options).remove()
    gp.train.SMCP(program, module, optimizer)


@pytest.mark.parametrize("kind", ["BiP", "SMCP", "Movement", "ACIP"])
def test_what_another_optimizer_moves_is_not_masked(start, kind):
    """Its steps would be undone, as the dense weights come back."""
    module, program = copied(start)
    before = copy.deepcopy(module.state_dict())
    options = {"Movement": {"total_steps": 20}, "ACIP": {"total_steps": 20, "target": 0.9}}.get(kind, {})
    with pytest.raises(ModelError, match=f"{kind} masks `2.weight`, which the SGD does not hold"):
        getattr(gp.train, kind)(program, module, sgd(module[0]), **options)
    assert all(torch.equal(before[name], own) for name, own in module.state_dict().items())
    module[2].requires_grad_(False)
    if kind == "ACIP":
        getattr(gp.train, kind)(program, module, sgd(module[0]), **options)


@pytest.mark.parametrize("kind", ["GroupLasso", "Catalyst", "Movement"])
def test_a_closure_is_refused(start, kind):
    """It makes gradients after they were to be seen."""
    module, program = copied(start)
    optimizer = sgd(module)
    penalty = getattr(gp.train, kind)(
        program, module, optimizer, **({} if kind == "GroupLasso" else {"total_steps": 20})
    )

    def closure():
        optimizer.zero_grad()
        loss = task(module, 0) + penalty()
        loss.backward()
        return loss

    before = copy.deepcopy(module.state_dict())
    for call in (lambda: optimizer.step(closure), lambda: optimizer.step(closure=closure)):
        with pytest.raises(ModelError, match=f"{kind}: `optimizer.step` was given a closure"):
            call()
    assert all(torch.equal(before[name], own) for name, own in module.state_dict().items())
    penalty.remove()
    optimizer.step(closure)


def test_smcp_chooses_by_what_it_knew_where_nothing_was_learned(start):
    """A step that the scaler skips leaves no saliency to choose by."""
    module, program = copied(start)
    optimizer = sgd(module)
    penalty = gp.train.SMCP(program, module, optimizer, budget="macs=0.5x", every=1)
    trained(module, penalty, optimizer, 3)
    known, alive = penalty.saliency.clone(), penalty.alive.clone()
    penalty.step()
    penalty.step()
    assert torch.equal(penalty.alive, alive)
    assert alive.argsort(descending=True, stable=True).tolist() != list(range(len(alive)))
    weight = penalty.dense()["2.weight"].clone()
    optimizer.zero_grad()
    task(module, 3).backward()
    wanted = (module[2].weight.grad * weight).sum(0).abs()
    optimizer.step()
    assert not torch.equal(known, wanted)
    torch.testing.assert_close(penalty.saliency, wanted.detach())


def test_smcps_scores_are_those_since_the_last_choice_from_the_start(start):
    module, program = copied(start)
    optimizer = sgd(module)
    penalty = gp.train.SMCP(program, module, optimizer, budget="macs=0.5x")
    weight = penalty.dense()["2.weight"].clone()
    task(module, 0).backward()
    wanted = (module[2].weight.grad * weight).sum(0).abs()
    optimizer.step()
    torch.testing.assert_close(penalty.saliency, wanted.detach())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_adasap_moves_nothing_along_an_overflow(start, value):
    """Else statistics of BatchNorm would be lost for good."""
    module, program = copied(start)
    penalty = gp.train.AdaSAP(program, module, sgd(module))
    task(module, 0).backward()
    module[0].weight.grad[3, 0] = value
    before = copy.deepcopy(module.state_dict())
    with penalty.perturbed():
        assert all(own.isfinite().all() for own in module.parameters())
        moved = (module[0].weight != before["0.weight"]).any(1)
        assert not module[0].weight[3, 0] - before["0.weight"][3, 0]
    assert moved.sum() > 6
    assert all(torch.equal(before[name], own) for name, own in module.state_dict().items())


def test_adasap_perturbs_half_precision(start):
    """The radius over the length of a small gradient is more than half precision holds."""
    module, program = copied(start)
    module = module.half()
    penalty = gp.train.AdaSAP(program, module, sgd(module), low=0.05, high=0.1)
    before = copy.deepcopy(module.state_dict())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    module[0].weight.grad[2] = 1e-7
    with penalty.perturbed():
        moved = (module[0].weight.float() - before["0.weight"].float()).norm(dim=1)
    assert 0.045 < moved[2] < 0.105
    assert moved.count_nonzero() == 1


NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("Consensus", {"target": 0.0}, r"Consensus: `target` cannot be 0.0\n.*a number in \(0, 1\]"),
        ("LAPP", {"temperature": 0.0}, "`temperature` cannot be 0.0"),
        ("LAPP", {"target": 1.5}, "`target` cannot be 1.5"),
        ("VAR", {"strength": NAN}, "`strength` cannot be nan"),
        ("GroupLasso", {"strength": -1.0}, r"`strength` cannot be -1.0\n.*a number in \[0, inf\)"),
        ("SMCP", {"every": 0}, r"SMCP: `every` cannot be 0\n.*a whole number, 1 or more"),
        ("GrowingRegularization", {"every": 0}, "`every` cannot be 0"),
        ("Catalyst", {"total_steps": 0}, "`total_steps` cannot be 0"),
        ("GReg2", {"total_steps": -5}, "`total_steps` cannot be -5"),
        ("BiP", {"total_steps": 2.5}, "`total_steps` cannot be 2.5"),
        ("Transport", {"total_steps": 5, "target": 0}, "`target` cannot be 0"),
        ("Transport", {"total_steps": 5, "cold": 0.0}, "`cold` cannot be 0.0"),
        ("AdaSAP", {"low": 0.5, "high": 0.1}, r"`high` cannot be 0.1\n.*a number in \[0.5, inf\)"),
        ("AdaSAP", {"low": -0.5}, "`low` cannot be -0.5"),
        ("Polarization", {"t": 2.5}, "`t` cannot be 2.5"),
        ("Polarization", {"t": 0.7, "keep": 0.5}, "t=0.7 and keep=0.5"),
        ("BiP", {"warm_up": 1.5}, "`warm_up` cannot be 1.5"),
        ("BiP", {"warm_up": 0.5}, "warm_up=0.5 of no number of steps"),
        ("BiP", {"curvature": 0.0}, "`curvature` cannot be 0.0"),
        ("BiP", {"scope": "tensor"}, "`scope=tensor` says nothing of whole channels"),
        ("TRP", {"total_steps": 0}, "`total_steps` cannot be 0"),
    ],
)
def test_a_number_outside_of_its_range_is_refused_by_name(start, kind, options, text):
    module, program = copied(start)
    if kind == "GrowingRegularization":
        program = program.learn(gp.run("group,score,mask{channels=0.5x}", program).fact(Keep))
    with pytest.raises(RecipeError, match=text):
        getattr(gp.train, kind)(program, module, sgd(module), **options)


@pytest.mark.parametrize(("kind", "option"), [("GReg2", "strength"), ("GrowingRegularization", "power")])
def test_what_a_method_sets_itself_it_does_not_take(start, kind, option):
    module, program = copied(start)
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        getattr(gp.train, kind)(program, module, sgd(module), **{option: 1})


def test_answers_say_what_they_take():
    logits = torch.randn(4, 3)
    with pytest.raises(RecipeError, match="answers: `temperature` cannot be 0"):
        gp.train.answers(logits, logits, 0)
    with pytest.raises(RecipeError, match=r"answers: logits of the shape \(4,\)"):
        gp.train.answers(logits[:, 0], logits[:, 0])


def test_the_names_of_classes_say_nothing_to_hsic():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    x, y = torch.randn(24, 6), torch.arange(24) % 2
    bottleneck, values = gp.train.HSICBottleneck(module, ("1",)), []
    for labels in (y, y + 8, 1 - y, F.one_hot(y).float()):
        module(x)
        values.append(bottleneck(x, labels).item())
    assert values == pytest.approx([values[0]] * 4, rel=1e-5)


@pytest.mark.parametrize("broken", [False, True])
def test_a_teacher_is_left_in_its_modes(broken):
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    program, x = gp.load(module, torch.zeros(2, 5)), torch.randn(6, 5)
    teacher = copy.deepcopy(module).train()
    teacher[1].eval()
    inner = gp.train.InnerDistillation(program, module, teacher, at=("1",))
    module(x)
    if broken:
        with pytest.raises(RuntimeError):
            inner(x[:, :2])
    else:
        inner(x)
    assert [part.training for part in teacher] == [True, False, True]


def test_shares_that_are_rolled_through_are_decimal():
    shares = []
    program = object()

    def attempt(held, share):
        shares.append(share)
        return held

    gp.train.roll_back(program, attempt, lambda one: True, step=0.1, least=0.05)
    assert shares == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]


@pytest.mark.parametrize("kind", ["LAPP", "Polarization", "Consensus", "Transport"])
def test_an_optimizer_that_has_shared_out_what_it_holds_trains_no_gates(start, kind, alone):
    """ZeroRedundancyOptimizer would leave them as they are, without a word."""
    module, program = copied(start)
    before = copy.deepcopy(module.state_dict())
    options = {"total_steps": 20} if kind in ("LAPP", "Transport") else {}
    shared = ZeroRedundancyOptimizer(module.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ModelError, match=f"{kind} trains parameters of its own, which ZeroRedundancyOptimizer would"):
        getattr(gp.train, kind)(program, module, shared, **options)
    assert all(torch.equal(before[name], own) for name, own in module.state_dict().items())
    assert sum(len(group["params"]) for group in shared.param_groups) == len(list(module.parameters()))


def test_what_has_no_parameters_of_its_own_works_with_any_optimizer(start, alone):
    results = []
    for kind in (torch.optim.SGD, ZeroRedundancyOptimizer):
        module, program = copied(start)
        options = {"optimizer_class": torch.optim.SGD} if kind is ZeroRedundancyOptimizer else {}
        optimizer = kind(module.parameters(), lr=0.1, **options)
        penalty = gp.train.Catalyst(program, module, optimizer, total_steps=8)
        trained(module, penalty, optimizer, 8)
        assert penalty.closed()
        results.append(module.state_dict())
    assert all(torch.equal(results[0][name], own) for name, own in results[1].items())
