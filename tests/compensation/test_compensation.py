"""What is made up for after a cut: least squares, means, BatchNorm statistics; the walk they take."""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import replace

import nets
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.calibration.activations import Walk
from graphprune.calibration.batches import batches
from graphprune.calibration.least_squares import NormalEquations
from graphprune.compensation import lsq
from graphprune.coupling.contractions import contractions
from graphprune.coupling.groups import find_groups
from graphprune.driver.auto import default_recipe
from graphprune.errors import RecipeError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.torch.host import TorchHost
from graphprune.ir.facts import Keep
from graphprune.ir.program import Program
from graphprune.passes.propagate import Propagate
from graphprune.pipeline import verify as proof
from graphprune.pipeline.plan_file import read_plan, write_plan
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.replay import replay
from graphprune.pipeline.run import run, run_pass

CUT = "group,score{by=random},mask{channels=0.5x},propagate"


def do(recipe, program):
    return run(Recipe.parse(recipe), program)


def load(module, shape, samples=64, seed=0):
    host = TorchHost.export(
        nets.randomise(module.double().eval(), seed), (torch.zeros(2, *shape, dtype=torch.float64),)
    )
    program = Program(host=host, source=host)
    x = np.random.default_rng(1).standard_normal((samples, *shape))
    return replace(program, data=batches(x, program.graph.inputs))


def onnx_program(name):
    """A network of the zoo as the legacy exporter writes it, with its BatchNorms."""
    program, file = nets.program(name), io.BytesIO()
    args = tuple(torch.from_numpy(x).float() for x in program.host.example())
    axes = {f"x{k}": {0: "batch"} for k in range(len(args))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            copy.deepcopy(nets.module(name)).float(),
            args,
            file,
            dynamo=False,
            opset_version=17,
            input_names=list(axes),
            dynamic_axes=axes,
        )
    host = OnnxHost(onnx.load_from_string(file.getvalue()))
    return Program(host=host, source=host)


def data_of(program):
    return np.concatenate([batch[0] for batch in program.data])


def outputs(program):
    return np.concatenate([program.host.run(batch)[0] for batch in program.data])


# ---- layers as matrices --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), groups=2),
        nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False),
        nn.Conv2d(4, 8, 4, padding="same", groups=4),
        nn.Conv1d(4, 6, 5, stride=3, padding=2),
        nn.Conv3d(4, 2, 2, padding=1),
        nn.Linear(5, 7),
    ],
    ids=str,
)
def test_rows_times_matrix_is_what_the_layer_computes(layer):
    shape = {nn.Conv1d: (4, 9), nn.Conv2d: (4, 7, 8), nn.Conv3d: (4, 5, 4, 3), nn.Linear: (3, 5)}[type(layer)]
    program = load(nn.Sequential(layer), shape, samples=3)
    (found,) = contractions(program.graph, own=True)
    batch = program.data[0]
    y = program.host.run(batch)[0]
    x = found.rows(batch[0])
    made = np.einsum("rgi,goi->rgo", x, found.flat_matrix(program.host)).reshape(len(x), -1) + found.bias(program.host)
    np.testing.assert_allclose(made, found.targets(y), rtol=0, atol=1e-12)
    assert found.positions(batch[0]) == len(x) == len(found.targets(y))
    some = np.array([0, 2, len(x) - 1])
    np.testing.assert_array_equal(found.targets(y, some), found.targets(y)[some])
    np.testing.assert_array_equal(found.rows(batch[0], some), x[some])
    weight = program.host.parameter(found.weight)
    np.testing.assert_array_equal(found.tensor(found.flat_matrix(program.host), weight.shape), weight)


def test_normal_equations_over_batches_solve_what_lstsq_solves_at_once():
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((200, 1, 5)) + 3, rng.standard_normal((200, 4))
    sums = NormalEquations(1, 5, 4)
    for part in np.array_split(np.arange(200), 7):
        sums.add(x[part], t[part])
    weight, bias = sums.solve(np.ones((1, 4, 5)), 0)
    want = np.linalg.lstsq(np.c_[x[:, 0], np.ones(200)], t, rcond=None)[0]
    np.testing.assert_allclose(weight[0].T, want[:5], atol=1e-10)
    np.testing.assert_allclose(bias, want[5], atol=1e-10)
    near, _ = sums.solve(np.ones((1, 4, 5)), 1e9)
    np.testing.assert_allclose(near, 1, atol=1e-6)  # the pull is to what it was, not to zero


# ---- the walk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.parametrize("name", ["Residual", "Dense", "Attention", "Shuffle"])
def test_a_walk_sees_what_a_run_sees_and_each_op_is_run_once(name, kind, monkeypatch):
    program = nets.program(name) if kind == "torch" else onnx_program(name)
    graph, host = program.graph, program.host
    batch = host.example()
    asked = []
    watch = type(host).watch

    def counting(self, batch, names, known=None):
        asked.append(set(names) - set(known or {}))
        return watch(self, batch, names, known)

    monkeypatch.setattr(type(host), "watch", counting)
    names = [op.outputs[0].name for op in graph.ops if op.outputs and not op.outputs[0].constant]
    whole = watch(host, batch, names)
    with Walk(host, graph, [batch]) as walk:
        for position, op in enumerate(graph.ops):
            for value in op.inputs:
                if value is not None and value.name in whole:
                    (seen,) = walk.at(position, [value.name])
                    np.testing.assert_allclose(seen[value.name], whole[value.name], rtol=1e-5, atol=1e-6)
    assert all(len(names) <= len(graph.ops) for names in asked)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_what_was_seen_ahead_is_not_made_again(kind, monkeypatch):
    program = nets.program("Residual") if kind == "torch" else onnx_program("Residual")
    graph, host, made = program.graph, program.host, []
    last = graph.ops[-1].outputs[0].name
    want = host.watch(host.example(), [last])[last]
    watch = type(host).watch

    def counting(self, batch, names, known=None):
        made.extend(name for name in names if name not in (known or {}))
        return watch(self, batch, names, known)

    monkeypatch.setattr(type(host), "watch", counting)
    with Walk(host, graph, [host.example()], edited=False) as walk:
        for position in (1, 1, 3):
            (seen,) = walk.at(position, [last])
            np.testing.assert_allclose(seen[last], want, rtol=1e-5, atol=1e-6)
    assert made.count(last) == 1
    made.clear()
    with Walk(host, graph, [host.example()]) as walk:  # an edit on the way may change it
        for position in (1, 3):
            list(walk.at(position, [last]))
    assert made.count(last) == 2


def test_what_a_walk_keeps_goes_to_files_beyond_the_limit(monkeypatch):
    monkeypatch.setattr("graphprune.calibration.activations.LIMIT_BYTES", 10)
    program = load(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2)), (4,), samples=130)
    with Walk(program.host, program.graph, program.data) as walk:
        found = walk.live(2)
        assert found and not any(live.held_bytes for live in found)
        (name,) = found[0]
        np.testing.assert_array_equal(found[0][name], program.host.watch(program.data[0], [name])[name])
        output = program.graph.outputs[0].name  # goes on from what is in the files
        np.testing.assert_array_equal(next(walk.at(2, [output]))[output], program.host.run(program.data[0])[0])


# ---- least squares -------------------------------------------------------------------------------------


def test_the_last_layer_is_the_least_squares_fit_of_the_original_outputs(monkeypatch):
    """Against numpy, on the only layer that reads what was cut."""
    monkeypatch.setattr(lsq, "DAMP", 0.0)
    program = load(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5)), (4,), samples=200)
    done = do(f"{CUT},compensate", program)
    hidden = np.maximum(data_of(program) @ done.host.parameter("0.weight").T + done.host.parameter("0.bias"), 0)
    want = np.linalg.lstsq(np.c_[hidden, np.ones(len(hidden))], outputs(program), rcond=None)[0]
    np.testing.assert_allclose(done.host.parameter("2.weight"), want[:-1].T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(done.host.parameter("2.bias"), want[-1], rtol=1e-6, atol=1e-9)


def test_channels_that_are_copies_of_others_cost_nothing(monkeypatch):
    monkeypatch.setattr(lsq, "DAMP", 1e-9)

    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bn, self.b, self.c = (
                nn.Conv2d(3, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.Conv2d(8, 4, 3, stride=2, padding=1),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.bn(self.a(x))))))

    module = nets.randomise(Copies().double().eval())
    with torch.no_grad():
        for tensor in (
            module.a.weight,
            module.a.bias,
            *(getattr(module.bn, n) for n in ("weight", "bias", "running_mean", "running_var")),
        ):
            tensor[4:] = tensor[:4]
    host = TorchHost.export(module, (torch.zeros(2, 3, 8, 8, dtype=torch.float64),))
    program = Program(host=host, source=host)
    program = replace(
        program, data=batches(np.random.default_rng(0).standard_normal((64, 3, 8, 8)), program.graph.inputs)
    )
    groups = find_groups(program.graph)
    cut = run_pass(Propagate(), program.learn(groups).learn(Keep({"a": np.arange(4)})))
    made = do("compensate", cut)
    spread = outputs(program).std()
    assert np.abs(outputs(cut) - outputs(program)).max() > 0.1 * spread
    assert np.abs(outputs(made) - outputs(program)).max() < 1e-3 * spread


@pytest.mark.parametrize("name", ["Residual", "OptionA", "Dense", "Depthwise", "Grouped", "MLP"])
def test_least_squares_comes_closer_to_the_original_than_means(name):
    program = nets.program(name)
    x = np.random.default_rng(3).standard_normal((96, *program.host.example()[0].shape[1:]))
    program = replace(program, data=batches(x, program.graph.inputs))
    cut = do(CUT, program)
    errors = {
        by: np.square(outputs(do(f"compensate{{by={by}}}", cut)) - outputs(program)).mean() for by in ("mean", "lsq")
    }
    assert errors["lsq"] < 0.97 * errors["mean"]


def test_the_sum_is_the_target_so_that_a_block_repairs_what_was_before_it():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.one, self.two = (
                nn.ModuleList(nn.Conv2d(8, 16, 3, padding=1) for _ in range(4)),
                nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(4)),
            )

        def forward(self, x):
            x = self.stem(x)
            for one, two in zip(self.one, self.two, strict=True):
                x = torch.relu(x + two(torch.relu(one(x))))
            return x

    program = load(Blocks(), (3, 6, 6), samples=128)
    cut = do("group,score{by=random},mask{channels=0.4x},propagate", program)
    made = do("compensate", cut)
    apart = np.square(outputs(made) - outputs(program)).mean()

    fit = lsq._Fit._target
    try:
        lsq._Fit._target = lambda self, layer: lsq.Target(self._original(layer.out))
        plain = do("compensate", cut)
    finally:
        lsq._Fit._target = fit
    assert apart < 0.97 * np.square(outputs(plain) - outputs(program)).mean()


@pytest.mark.parametrize("by", ["lsq", "mean", "bn", "renorm"])
def test_a_stored_plan_gives_the_same_bytes_and_passes_the_proof(by, tmp_path):
    program = nets.program("Residual")
    x = np.random.default_rng(3).standard_normal((40, *program.host.example()[0].shape[1:]))
    program = replace(program, data=batches(x, program.graph.inputs))
    done = do(f"{CUT},compensate{{by={by}}},fold", program)
    write_plan(tmp_path, done.plan)
    again = replay(read_plan(tmp_path / "plan.json"), program.host)
    ours, theirs = done.model.state_dict(), again.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[key].numpy().tobytes() == theirs[key].numpy().tobytes() for key in ours)
    assert all(check.error <= check.tolerance for check in proof.verify(done))
    assert (tmp_path / "plan.safetensors").exists() == (by != "mean")


def test_a_plan_without_its_weights_is_refused(tmp_path):
    program = load(nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5)), (4,))
    write_plan(tmp_path, do(f"{CUT},compensate", program).plan)
    (tmp_path / "plan.safetensors").write_bytes(b"nothing")
    with pytest.raises(RecipeError, match=r"plan.safetensors: not the weights of this plan"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"plan.safetensors: no such file, and the plan has 1 fitted weights"):
        read_plan(tmp_path / "plan.json")


def test_onnx_is_fitted_as_torch_is():
    onnx_side = onnx_program("Residual")
    x = np.random.default_rng(3).standard_normal((64, *onnx_side.host.example()[0].shape[1:])).astype(np.float32)
    found = []
    for whole in (onnx_side, nets.program("Residual")):
        whole = replace(whole, data=batches(x, whole.graph.inputs))
        cut = do("group,score{by=obs},mask{channels=0.5x},propagate", whole)
        made = [do("compensate{by=mean}", cut), do("compensate", cut)]
        found.append([np.square(outputs(one) - outputs(whole)).mean() for one in made])
        assert all(check.error <= check.tolerance for check in proof.verify(made[1]))
    np.testing.assert_allclose(*found, rtol=0.01)
    assert found[0][1] < 0.9 * found[0][0]


class Tied(nn.Module):
    """A layer whose weight two ops read, and one that its op scales."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 12)
        self.c = nn.Parameter(torch.zeros(12, 3))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.b(torch.relu(self.a(x))))))
        return torch.addmm(self.bias, x, self.c, alpha=2.0)


def test_layers_that_cannot_be_fitted_get_their_mean_outputs_back():
    program = load(Tied(), (4,), samples=100)
    assert [layer.op.origin for layer in contractions(program.graph, own=True)] == ["a"]
    cut = do(CUT, program)
    done = do("compensate", cut)
    errors = [np.abs(outputs(one).mean(0) - outputs(program).mean(0)).max() for one in (cut, done)]
    assert errors[0] > 1e-2 and errors[1] < 1e-12
    assert all(check.error <= check.tolerance for check in proof.verify(done))


class SharedBias(nn.Module):
    """Layers that read the same bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(12, 6), nn.Linear(6, 6)
        self.b.bias = self.c.bias

    def forward(self, x):
        return self.c(self.b(torch.relu(self.a(x))))


def test_without_biases_layers_that_share_one_keep_it():
    program = load(SharedBias(), (4,), samples=100)
    cut = do(CUT, program)
    done = do("compensate{bias=false}", cut)
    assert done.graph.parameters.keys() == program.graph.parameters.keys()
    errors = [np.square(outputs(one) - outputs(program)).sum() for one in (cut, done)]
    assert errors[1] < 0.7 * errors[0]


def test_means_pass_through_depthwise_layers_norms_and_activations():
    """What a 1x1 convolution behind them gives on average stays what it was."""
    program = nets.program("Depthwise")
    x = np.random.default_rng(3).standard_normal((40, *program.host.example()[0].shape[1:]))
    program = replace(program, data=batches(x, program.graph.inputs))
    (group,) = [g for g in find_groups(program.graph) if any(m.parameter == "dw1.weight" for m in g.members)]
    cut = run_pass(Propagate(), program.learn(find_groups(program.graph)).learn(Keep({group.name: np.arange(3)})))
    (out,) = [op.outputs[0].name for op in program.graph.ops if op.inputs[1:] and op.inputs[1].name == "out.weight"]
    means = [
        np.concatenate([one.host.watch(batch, [out])[out] for batch in program.data]).mean((0, 2, 3))
        for one in (program, cut, do("compensate{by=mean}", cut))
    ]
    assert np.abs(means[1] - means[0]).max() > 1e-3
    np.testing.assert_allclose(means[2], means[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_auto_is_the_same_on_both_hosts(kind):
    program = nets.program("Residual") if kind == "torch" else onnx_program("Residual")
    x = np.random.default_rng(3).standard_normal((64, *program.host.example()[0].shape[1:]))
    program = replace(program, data=batches(x.astype(program.host.example()[0].dtype), program.graph.inputs))
    recipe = default_recipe("macs", "0.6x", data=True).text()
    done, plain = do(recipe, program), do("group,score,mask{macs=0.6x allocate=global},propagate", program)
    errors = [
        np.square(outputs(one) - outputs(program)).mean() / outputs(program).var(0).mean() for one in (done, plain)
    ]
    assert errors[0] < 0.5 * errors[1]
    assert all(check.error <= check.tolerance for check in proof.verify(done))


# ---- BatchNorm statistics --------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.m = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.c = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.c(torch.relu(self.m(self.b(torch.relu(self.n(self.a(x)))))))


def test_recalibration_is_what_training_mode_converges_to():
    program = load(Normed(), (3, 8, 8), samples=50)
    cut = do(CUT, program)
    done = do("compensate{by=bn}", cut)
    model = copy.deepcopy(cut.model)
    for name in ("n", "m"):  # one BatchNorm after the other, as in the definition
        seen = []
        x = torch.from_numpy(data_of(program))
        state = model.state_dict()
        layer = {"n": "a", "m": "b"}[name]
        with torch.no_grad():
            hidden = torch.nn.functional.conv2d(x, state["a.weight"], state["a.bias"])
            if layer == "b":
                hidden = torch.nn.functional.batch_norm(
                    hidden,
                    state["n.running_mean"],
                    state["n.running_var"],
                    state["n.weight"],
                    state["n.bias"],
                    eps=1e-5,
                )
                hidden = torch.nn.functional.conv2d(torch.relu(hidden), state["b.weight"], state["b.bias"])
        seen.append(hidden)
        state[f"{name}.running_mean"].copy_(hidden.mean((0, 2, 3)))
        state[f"{name}.running_var"].copy_(hidden.var((0, 2, 3), unbiased=False))
        np.testing.assert_allclose(
            done.host.parameter(f"{name}.running_mean"), state[f"{name}.running_mean"], rtol=1e-9
        )
        np.testing.assert_allclose(done.host.parameter(f"{name}.running_var"), state[f"{name}.running_var"], rtol=1e-9)


def test_renormalisation_gives_every_norm_the_original_moments():
    program = load(Normed(), (3, 8, 8), samples=50)
    cut = do(CUT, program)
    done = do("compensate{by=renorm}", cut)
    norms = [op for op in done.graph.ops if op.kind == "batch_norm"]
    keep = {"n": cut.plan["parameters"]["n.weight"]["0"]["keep"], "m": cut.plan["parameters"]["m.weight"]["0"]["keep"]}
    for op, name in zip(norms, ("n", "m"), strict=True):
        out = op.outputs[0].name
        seen = [np.concatenate([one.host.watch(b, [out])[out] for b in program.data]) for one in (program, done)]
        np.testing.assert_allclose(seen[1].mean((0, 2, 3)), seen[0].mean((0, 2, 3))[keep[name]], atol=1e-8)
        np.testing.assert_allclose(seen[1].std((0, 2, 3)), seen[0].std((0, 2, 3))[keep[name]], rtol=1e-6)


@pytest.mark.parametrize("by", ["bn", "renorm"])
def test_statistics_are_set_in_networks_with_ops_without_operands(by):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
            self.n, self.b = nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            return self.b(self.n(self.a(x)).relu()) + torch.arange(4, dtype=x.dtype)

    program = gp.load(Positions().eval(), torch.randn(4, 3, 4, 4), data=torch.randn(64, 3, 4, 4))
    done = gp.run(f"group,score,mask{{channels=0.5x}},propagate,compensate{{by={by}}}", program)
    assert not np.allclose(done.host.parameter("n.running_var"), 1.0)


@pytest.mark.parametrize(("trained", "worse"), [(True, False), (False, True)])
def test_statistics_that_take_the_outputs_further_away_are_told(trained, worse):
    """They promise nothing: measured where nothing was trained, they make another network."""
    torch.manual_seed(0)
    model, x = Normed(), torch.randn(40, 3, 8, 8) + 1
    if trained:
        for norm in (model.n, model.m):
            norm.momentum = None
        with torch.no_grad():
            model.train()(x)
    program = gp.load(model.eval(), x[:2], data=x)
    cut = do(CUT, program)
    done = do("compensate{by=bn}", cut)
    before, after = (
        sum(np.square(a.host.run(b)[0] - program.host.run(b)[0]).sum() for b in a.data) for a in (cut, done)
    )
    told = [note for note in done.notes if "promises no smaller error" in note]
    assert (after > before, len(told)) == (worse, worse)


def test_a_fit_without_intercept_is_the_least_squares_one_without_a_column_of_ones():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((200, 5)) + 3, rng.standard_normal((200, 4)) + 1
    sums = NormalEquations(1, 5, 4)
    for k in (0, 120):
        sums.add(x[k : k + 120, None], target[k : k + 120])
    weight, bias = sums.solve(np.ones((1, 4, 5)), 0.0, intercept=False)
    np.testing.assert_allclose(weight[0], np.linalg.lstsq(x, target)[0].T, rtol=1e-8)
    assert not bias.any()
    whole, shift = sums.solve(np.ones((1, 4, 5)), 0.0)
    np.testing.assert_allclose(np.c_[whole[0], shift], np.linalg.lstsq(np.c_[x, np.ones(200)], target)[0].T, rtol=1e-8)


class Products(nn.Module):
    """One weight is computed (transposed), one is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(3, 16)), nn.Parameter(torch.zeros(8, 16))
        self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(torch.relu(x @ self.a) @ self.b.t())
        return self.d(torch.relu(self.c(torch.relu(self.c(x)))))


def test_weights_that_cannot_be_fitted_are_said_where_weights_are_fitted():
    program = load(Products(), (3,))
    (said,) = do(f"{CUT},compensate", program).notes
    assert "fits no weight that is shared or computed: matmul_1 (matmul), c (linear)" in said
    assert do(f"{CUT},compensate{{by=mean}}", program).notes == ()
