"""The user's own class at the new widths: by gp.rebuild, and in plain torch by what lies in the folder."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from alone import WITHOUT
from torch import nn
from torch.nn.utils import parametrizations as new
from torch.nn.utils import spectral_norm, weight_norm

import graphprune as gp


class Own(nn.Module):
    """Layers of most kinds, a tied weight, a buffer that is not saved, and a convolution that gains a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.wide = nn.Conv2d(12, 12, 3, groups=12, bias=False)
        self.norm, self.act = nn.GroupNorm(1, 12), nn.PReLU(12)
        self.up = nn.ConvTranspose2d(12, 10, 2)
        self.a, self.b, self.head = nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 2)
        self.b.weight = self.a.weight
        self.register_buffer("gain", torch.arange(12.0) + 1, persistent=False)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x))) * self.gain.view(1, -1, 1, 1)
        x = self.up(self.act(self.wide(x))).mean((2, 3))
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
DATA = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def artifact() -> gp.Artifact:
    torch.manual_seed(0)
    return gp.compile(Own().eval(), (X,), channels="0.5x", data=DATA, measure=False)


@pytest.fixture(scope="module")
def folder(artifact: gp.Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact.save(tmp_path_factory.mktemp("living") / "out")


def test_the_users_own_class_is_rebuilt(artifact: gp.Artifact, folder: Path) -> None:
    want = artifact.program.model(X)
    for made in (artifact, artifact.program, folder, folder / "plan.json"):
        model = gp.rebuild(made, Own())
        assert type(model) is Own and torch.allclose(model.eval()(X), want, atol=1e-6)
        assert model.stem.out_channels == model.stem.weight.shape[0] == model.bn.num_features == 6
        assert model.wide.groups == 6 and model.act.num_parameters == 6
        assert model.a.weight is model.b.weight and len(model.gain) == 6
    trained = model.train()(X).square().mean()
    trained.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("norm"))


ALONE = (
    WITHOUT
    + """
import torch
from torch import nn
sys.path.insert(0, sys.argv[1])
from rebuild import rebuild
from own import Own
model = rebuild(Own(), sys.argv[1])
print(model.load_state_dict(torch.load(f"{sys.argv[1]}/weights.pt", weights_only=True)))
torch.save(model.eval()(torch.load(f"{sys.argv[1]}/x.pt")), f"{sys.argv[1]}/y.pt")
"""
)


def test_plain_torch_rebuilds_it_where_graphprune_is_not(artifact: gp.Artifact, folder: Path) -> None:
    source = Path(__file__).read_text()
    own = source[source.index("class Own") : source.index("X = torch")]
    (folder / "own.py").write_text(f"import torch\nfrom torch import nn\n\n\n{own}")
    torch.save(X, folder / "x.pt")
    done = subprocess.run([sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, check=False)
    assert done.stdout == "<All keys matched successfully>\n", done.stderr
    assert torch.allclose(torch.load(folder / "y.pt"), artifact.program.model(X), atol=1e-6)


def test_the_widths_are_for_people(folder: Path) -> None:
    found = json.loads((folder / "widths.json").read_text())
    assert found["tensors"]["stem.weight"] == {"was": [12, 3, 3, 3], "is": [6, 3, 3, 3]}
    assert found["layers"]["stem"] == {"in_channels": 3, "out_channels": 6, "groups": 1}
    assert found["layers"]["wide"] == {"in_channels": 6, "out_channels": 6, "groups": 6}
    assert found["layers"]["up"]["in_channels"] == 6
    assert list(found["tensors"]["gain"]["keep"]) == ["0"] and len(found["tensors"]["gain"]["keep"]["0"]) == 6
    assert found["identity"] == []


def test_a_norm_that_was_folded_becomes_nothing() -> None:
    net = lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))  # noqa: E731
    done = gp.run("group,score,mask{channels=0.5x},propagate,fold", gp.load(net().eval(), (X,)))
    model = gp.rebuild(done, net())
    assert isinstance(model[1], nn.Identity) and model[0].bias.shape == (4,)
    assert torch.allclose(model.eval()(X), done.model(X), atol=1e-6)


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


def test_recurrent_layers_are_rebuilt() -> None:
    x = torch.randn(2, 3, 5)
    done = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(Lstm().eval(), (x,)))
    model = gp.rebuild(done, Lstm())
    assert model.lstm.hidden_size == 4 and torch.allclose(model.eval()(x), done.model(x), atol=1e-6)


def test_the_eps_of_a_norm_of_fewer_channels_is_rebuilt() -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Linear(5, 8), nn.RMSNorm(8, eps=0.5), nn.Linear(8, 2))

    x = torch.randn(3, 5)
    done = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(net().eval(), (x,)))
    model = gp.rebuild(done, net())
    assert model[1].eps == 1.0 and torch.allclose(model(x), done.model(x), atol=1e-6)


def test_every_bias_that_is_new_is_one_of_its_own() -> None:
    def net() -> nn.Sequential:
        layers = [nn.Sequential(nn.Linear(9, 9, bias=False), nn.ReLU()) for _ in range(8)]
        return nn.Sequential(*layers, nn.Linear(9, 9, bias=False))

    torch.manual_seed(0)
    x, data = torch.randn(3, 9), np.random.default_rng(0).standard_normal((64, 9)).astype(np.float32)
    made = gp.compile(net().eval(), (x,), channels="0.7x", data=data, measure=False)
    model = gp.rebuild(made, net())
    names = [name for name, _ in model.named_parameters()]
    assert sum(name.endswith("bias") for name in names) == 8  # all but the first, which reads the input
    assert torch.allclose(model(x), made.program.model(x), atol=1e-6)


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, 2, 4).flatten(1))


def test_what_cannot_be_rebuilt_says_why(folder: Path, artifact: gp.Artifact) -> None:
    x = torch.randn(3, 4)
    done = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(Written().eval(), (x,)))
    with pytest.raises(gp.GraphpruneError, match=r"Written cannot be rebuilt: .*(view|shape|size)"):
        gp.rebuild(done, Written())
    with pytest.raises(gp.GraphpruneError, match="Linear cannot be rebuilt: "):
        gp.rebuild(artifact, nn.Linear(3, 3))
    with pytest.raises(gp.GraphpruneError, match=r"widths\.json: no such file"):
        gp.rebuild(folder.parent, Own())
    own = gp.run("group,score,mask{channels=0.5x unconstrained=readers},reorder,propagate", gp.load(Own().eval(), (X,)))
    with pytest.raises(gp.GraphpruneError, match="has no place for what was made of it"):
        gp.rebuild(own, Own())


def small_onnx() -> onnx.ModelProto:
    text = """
        <ir_version: 8, opset_import: ["": 13], producer_name: "mine", producer_version: "7">
        net (float[N,3] x) => (float[N,2] y) { h = Gemm <transB = 1> (x, w) r = Relu (h) y = Gemm <transB = 1> (r, v) }
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3)), ("v", (2, 8))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    model.metadata_props.add(key="author", value="me")
    return model


def test_an_onnx_result_says_how_it_was_made_and_stays_what_it_was(tmp_path: Path) -> None:
    given = small_onnx()
    gp.compile(given, macs="0.5x", measure=False, out=tmp_path / "out")
    made = onnx.load(tmp_path / "out" / "model.onnx")
    said = {entry.key: entry.value for entry in made.metadata_props}
    assert said["author"] == "me" and said["graphprune.budget"] == "macs=0.5x" and said["graphprune.seed"] == "0"
    assert gp.Recipe.parse(said["graphprune.recipe"]).text() == said["graphprune.recipe"]
    assert "graphprune " in said["graphprune.versions"] and "onnx " in said["graphprune.versions"]
    for field in ("ir_version", "opset_import", "producer_name", "producer_version", "domain", "model_version"):
        assert getattr(made, field) == getattr(given, field), field
    assert [i.name for i in made.graph.input] == ["x"] and made.graph.input[0] == given.graph.input[0]
    assert made.graph.output[0] == given.graph.output[0]


def test_what_an_onnx_result_has_otherwise_is_said(tmp_path: Path) -> None:
    """Weights that are inputs as well, as old exporters had to write them."""
    given = small_onnx()
    given.ir_version = 3
    given.graph.input.extend(
        onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in given.graph.initializer
    )
    report = gp.compile(given, macs="0.5x", measure=False, out=tmp_path / "out").report
    made = onnx.load(tmp_path / "out" / "model.onnx")
    assert made.ir_version == 4 and [i.name for i in made.graph.input] == ["x"]
    assert report["notes"][0] == (
        "its 2 weights are no inputs of the model any more, and IR version 3 became 4: what a caller could replace "
        "ONNX Runtime does not optimise"
    )


@pytest.mark.parametrize("first", ["", "group,score,mask{channels=0.7x},propagate,fold"])
def test_what_was_compiled_is_compiled_again(first: str) -> None:
    """After a fit, after a fold: with data, as it was the first time. Two plans in turn are the two compilations."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3, bias=False))
    net = nn.Sequential(*net, nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()
    given = {"recipe": first} if first else {"macs": "0.6x"}
    one = gp.compile(net, (X,), data=DATA, measure=False, **given)
    two = gp.compile(one.program, macs="0.6x", measure=False)
    before, after = two.report["before"]["macs"], two.report["after"]["macs"]
    assert before == one.report["after"]["macs"] and after <= 0.6 * before
    assert all(check["max_relative_error"] <= 1e-12 for check in two.report["verification"]["checks"])
    assert sum("was pruned before" in note for note in two.report["notes"]) == 1
    again = gp.apply(one.program, net)
    again = gp.apply(two.program, again.model)
    assert torch.equal(again.model(X), two.program.model(X))


class Twice(nn.Module):
    """A buffer that is not saved, and layers without a bias, each of a width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12, bias=False), nn.Linear(12, 24, bias=False)
        self.c = nn.Linear(24, 3, bias=False)
        self.register_buffer("gain", torch.arange(12.0) + 1, persistent=False)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)) * self.gain)))


@pytest.mark.parametrize("data", [False, True])  # with it the first compilation gives `b` a bias, the second leaves it
@pytest.mark.parametrize("second", [{"a": 5}, {"b": 12}])
def test_what_was_compiled_twice_is_rebuilt_from_the_class_as_it_was(second, data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, rows = torch.randn(4, 6), np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    one = gp.compile(Twice().eval(), x, width={"a": 8}, data=rows if data else None, measure=False)
    assert ("b.bias" in one.model.state_dict()) is data
    two = gp.compile(replace(one.program, data=()), width=second, measure=False, out=tmp_path / "out")
    want = two.model(x)
    for made in (two, tmp_path / "out"):
        mine = gp.rebuild(made, Twice())
        torch.testing.assert_close(mine(x), want)
        assert mine.a.out_features == len(mine.gain) == second.get("a", 8)
        assert mine.b.out_features == second.get("b", 24)
    found = json.loads((tmp_path / "out" / "widths.json").read_text())
    assert found["tensors"]["a.weight"] == {"was": [12, 6], "is": [second.get("a", 8), 6]}


class Drawn(Twice):
    def forward(self, x):
        return super().forward(x + torch.randn_like(x))


class Normed(nn.Module):
    """An RMS norm written out, its eps in forward, its weight the network's own or of a part."""

    def __init__(self, inner: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.weight = None if inner else nn.Parameter(torch.ones(16))
        self.norm = nn.PReLU(16) if inner else None

    def forward(self, x):
        x, weight = self.stem(x), self.weight if self.norm is None else self.norm.weight
        return self.head(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2) * weight)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.stem(x)))


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (Normed, "Normed cannot be rebuilt: `Normed` has no attribute that is its eps, 0.01"),
        (lambda: Normed(inner=True), "Normed cannot be rebuilt: `norm` has no attribute that is its eps, 0.01"),
        (Encoder, "Encoder cannot be rebuilt: its forward raises RuntimeError"),
    ],
)
def test_files_that_cannot_work_are_not_written_and_the_report_says_why(net, why, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = gp.compile(net().eval(), torch.randn(2, 5, 6), macs=0.5, measure=False, verify=False, out=tmp_path / "a")
    made.save(tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        files = {path.name for path in folder.iterdir()}
        assert not files & {"widths.json", "weights.pt", "rebuild.py"} and "model.pt2" in files
        notes = json.loads((folder / "report.json").read_text())["notes"]
        assert sum(note.startswith(f"no widths.json was written: {why}") for note in notes) == 1
        with pytest.raises(gp.GraphpruneError, match=re.escape(why)):
            gp.rebuild(folder, net())
    with pytest.raises(gp.GraphpruneError, match=re.escape(why)):
        gp.rebuild(made, net())


class Parametrized(nn.Module):
    """Weights that are computed at every call, by all ways that torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.a = weight_norm(nn.Conv1d(4, 16, 3, padding=1))
        self.b = spectral_norm(nn.ConvTranspose1d(16, 12, 4, 2, 1))
        self.c = new.weight_norm(nn.Conv1d(12, 10, 3))
        self.d = new.spectral_norm(nn.Conv1d(10, 8, 3))
        self.rnn = new.weight_norm(nn.GRU(8, 12, batch_first=True), "weight_hh_l0")
        self.head = nn.Linear(12, 1)

    def forward(self, x):
        for layer in (self.a, self.b, self.c, self.d):
            x = torch.relu(layer(x))
        return self.head(self.rnn(x.mT)[0])


def test_parametrizations_are_baked_and_what_was_given_stays_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Parametrized().train(), torch.randn(2, 4, 12)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    made = gp.compile(net, x, macs=0.5, measure=False, verify=False, out=tmp_path / "out")
    assert not any("widths.json" in note for note in made.report["notes"])
    now, want = net.state_dict(), made.model(x)
    assert now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)
    with torch.no_grad():
        net(x)
        gp.rebuild(made, copy.deepcopy(net))
        net(x)  # the copy shares the classes that torch made of its layers'
    assert net.training
    for one in (made, tmp_path / "out"):
        torch.testing.assert_close(gp.rebuild(one, Parametrized()).eval()(x), want)
    spec = importlib.util.spec_from_file_location("alone", tmp_path / "out" / "rebuild.py")
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    mine = alone.rebuild(Parametrized(), tmp_path / "out")
    mine.load_state_dict(torch.load(tmp_path / "out" / "weights.pt"))
    torch.testing.assert_close(mine.eval()(x), want)


def test_a_module_that_is_not_as_it_was_says_nothing_of_its_class(tmp_path: Path) -> None:
    """Cut in place since, of a class that holds what has no copy, or that draws random numbers."""
    x, net = torch.randn(4, 6), Twice().eval()
    made = gp.compile(net, x, channels=0.5, measure=False)
    gp.apply(made, net, x, in_place=True)
    held = Twice().eval()
    vars(held)["lock"] = threading.Lock()
    for k, one in enumerate((made, gp.compile(held, x, channels=0.5, measure=False))):
        mine = gp.rebuild(one.save(tmp_path / f"out{k}"), Twice())
        torch.testing.assert_close(mine(x), one.model(x))
    drawn = gp.compile(Drawn().eval(), x, channels=0.5, measure=False, out=tmp_path / "drawn")
    assert not any("widths.json" in note for note in drawn.report["notes"])
