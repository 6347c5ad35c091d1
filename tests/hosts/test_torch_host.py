"""The torch host: what a torch user puts in and gets back."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import zipfile
from contextlib import nullcontext

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphprune as gp
from graphprune.coupling.groups import find_groups
from graphprune.errors import ModelError, OutputError, ShapeError
from graphprune.hosts.torch.edit import narrow_to_slice
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.regions import write_out
from graphprune.ir.program import Program
from graphprune.pipeline import verify as proof
from graphprune.pipeline.recipe import Recipe
from graphprune.pipeline.run import run

HALF = Recipe.parse("group,score,mask{channels=0.5x},propagate")


def load(module, inputs, **options):
    host = TorchHost.export(module, inputs, **options)
    return Program(host=host, source=host)


def residual(dtype=torch.float32):
    torch.manual_seed(0)
    return nets.randomise(nets.Residual()).to(dtype)


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_users_module_is_not_touched():
    module = residual().train()
    module.bn0.eval()  # a frozen norm, as in fine-tuning
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    storage = {key: tensor.data_ptr() for key, tensor in module.state_dict().items()}
    modes = {name: part.training for name, part in module.named_modules()}
    pruned = run(Recipe((*HALF.steps, *Recipe.parse("fold").steps)), load(module, (IMAGES,)))
    with torch.no_grad():
        pruned.model.fc.weight.add_(1)
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())
    assert {key: tensor.data_ptr() for key, tensor in module.state_dict().items()} == storage


def test_training_the_result_does_not_train_the_module_it_came_from():
    module = residual()
    before = module.fc.bias.detach().clone()
    pruned = run(HALF, load(module, (IMAGES,)))
    with torch.no_grad():
        pruned.model.fc.bias.add_(1)
    assert torch.equal(module.fc.bias, before)


@pytest.mark.parametrize("name", sorted(k for k, net in nets.ZOO.items() if net.prunable or net.mixed))
def test_names_of_parameters_and_buffers_are_kept(name):
    module, model = nets.module(name), run(HALF, nets.program(name)).model
    given = {key for key, _ in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]}
    have = {key for key, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    have = {key for key in have if "lifted" not in key}
    gone = [re.match(r"(experts|back)\.\d+\.", key) for key in given - have]  # an expert goes with all that is its own
    assert have <= given and all(gone)
    assert not any(key.startswith(expert[0]) for key in have for expert in gone)


def test_the_result_trains_on():
    program = load(residual(), (IMAGES,))
    model = run(HALF, program).model
    assert not model.training
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 3 + 1
    y = torch.randint(0, 3, (16,), generator=torch.Generator().manual_seed(3))
    model.train()
    assert model.training
    moved = {key: buffer.clone() for key, buffer in model.named_buffers() if "running" in key}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert moved and all(not torch.equal(buffer, moved[key]) for key, buffer in model.named_buffers() if key in moved)
    model.eval()
    moved = {key: buffer.clone() for key, buffer in model.named_buffers()}
    a, b = model(x[:3]), model(x[:1])
    torch.testing.assert_close(a[:1], b)
    assert all(torch.equal(buffer, moved[key]) for key, buffer in model.named_buffers())


def test_every_parameter_that_is_used_gets_a_gradient():
    model = run(HALF, load(residual(), (IMAGES,))).model.train()
    model(IMAGES).sum().backward()
    assert all(p.grad is not None and p.requires_grad for p in model.parameters())


def test_frozen_parameters_stay_frozen():
    module = residual()
    module.stem.weight.requires_grad_(False)
    model = run(HALF, load(module, (IMAGES,))).model
    assert not model.stem.weight.requires_grad and model.fc.weight.requires_grad


class Tied(nn.Module):
    """An embedding and a head that are one tensor, cut along its width."""

    def __init__(self):
        super().__init__()
        self.emb, self.fc, self.head = nn.Embedding(8, 6), nn.Linear(6, 6), nn.Linear(6, 8, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        x = self.emb(ids)
        return self.head(x + torch.relu(self.fc(x)))


def test_tied_weights_stay_tied(tmp_path):
    program = load(nets.randomise(Tied()), (torch.tensor([[1, 4, 2, 0]]),))
    pruned = run(HALF, program)
    assert pruned.model.emb.weight is pruned.model.head.weight
    assert pruned.model.emb.weight.shape == (8, 3)
    assert max(check.error for check in proof.verify(pruned)) <= 1e-12
    program.host.save(tmp_path / "model.pt2")
    loaded = TorchHost.load(tmp_path / "model.pt2")  # torch keeps two names of one storage
    again = run(HALF, Program(host=loaded, source=loaded))
    assert again.model.emb.weight is again.model.head.weight
    assert torch.equal(again.model.emb.weight, pruned.model.emb.weight)


def test_dropout_follows_train_and_eval():
    model = run(HALF, load(nets.InPlace().double(), (IMAGES.double(),))).model
    x = torch.ones(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.slow
def test_the_result_compiles():
    model = run(HALF, load(residual(), (IMAGES,))).model
    torch.testing.assert_close(torch.compile(model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)


def test_the_result_exports_again_and_survives_deepcopy():
    model = run(HALF, load(residual(), (IMAGES,))).model
    again = torch.export.export(model, (IMAGES,)).module()
    torch.testing.assert_close(again(IMAGES), model(IMAGES), rtol=0, atol=0)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(IMAGES), model(IMAGES), rtol=0, atol=0)
    twin.train()(IMAGES)
    assert not model.training


@pytest.mark.parametrize("name", ["Residual", "Packed", "Heads", "Language", "Transposed", "Unknown"])
def test_pt2_files_round_trip(name, tmp_path):
    pruned = run(HALF, nets.program(name))
    pruned.host.save(tmp_path / "model.pt2")
    loaded = TorchHost.load(tmp_path / "model.pt2")
    inputs = pruned.host.example()
    assert nets.relative_error(pruned.host.run(inputs), loaded.run(inputs)) == 0
    assert all(np.array_equal(a, b) for a, b in zip(inputs, loaded.example(), strict=True))
    names = [set(dict(one.model.named_parameters(remove_duplicate=False))) for one in (loaded, pruned.host)]
    assert names[0] == names[1]
    again = Program(host=loaded, source=loaded)
    assert {g.size for g in find_groups(again.graph)} == {g.size for g in find_groups(pruned.graph)}
    with torch.no_grad():
        plain = torch.export.load(tmp_path / "model.pt2").module()(*map(torch.from_numpy, inputs))
    assert (
        nets.relative_error(pruned.host.run(inputs), [x.numpy() for x in torch.utils._pytree.tree_leaves(plain)]) == 0
    )


def test_the_batch_stays_dynamic_all_the_way(tmp_path):
    program = load(residual(), (IMAGES,))
    assert isinstance(program.graph.inputs[0].shape[0], str)
    pruned = run(HALF, program)
    pruned.host.save(tmp_path / "model.pt2")
    loaded = TorchHost.load(tmp_path / "model.pt2")
    x = torch.randn(7, 3, 8, 8)
    for model in (pruned.model, loaded.model):
        torch.testing.assert_close(model(x)[:2], model(x[:2]), rtol=1e-5, atol=1e-6)
    assert isinstance(loaded.lift().inputs[0].shape[0], str)


def test_a_batch_that_cannot_vary_stays_what_it_was():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.b(F.relu(self.a(x.reshape(2, 6))))

    program = load(Fixed(), (torch.randn(2, 6),))
    assert program.graph.inputs[0].shape == (2, 6)
    assert run(HALF, program).model.a.weight.shape == (2, 6)


def test_dynamic_shapes_as_torch_takes_them():
    program = load(residual(), (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    assert isinstance(program.graph.inputs[0].shape[0], str)
    assert run(HALF, program).model(torch.randn(9, 3, 8, 8)).shape == (9, 3)


class Keywords(nn.Module):
    """Positional, keyword and non-tensor arguments, nested containers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x, more, *, scale=1.0, mask=None):
        y = self.a(x) + self.b(more["y"])
        return {"out": self.c(torch.relu(y) * scale) * mask, "twice": (more["z"],)}


CALL = {
    "args": (torch.randn(2, 6), {"y": torch.randn(2, 4), "z": torch.randn(2, 1)}),
    "kwargs": {"scale": 0.5, "mask": torch.ones(2, 3)},
}


def test_keyword_and_nested_inputs(tmp_path):
    module = Keywords()
    program = load(module, CALL)
    pruned = run(HALF, program)
    assert pruned.model.a.weight.shape == (2, 6)
    assert max(check.error for check in proof.verify(pruned)) <= 1e-12
    args, kwargs = CALL["args"], CALL["kwargs"]
    whole = run(Recipe.parse("fold"), program).model(*args, **kwargs)
    torch.testing.assert_close(whole["out"], module(*args, **kwargs)["out"])
    torch.testing.assert_close(whole["twice"][0], args[1]["z"])
    pruned.host.save(tmp_path / "model.pt2")
    loaded = TorchHost.load(tmp_path / "model.pt2")
    assert nets.relative_error(pruned.host.run(pruned.host.example()), loaded.run(loaded.example())) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions_are_pruned_and_proved_in_float64(dtype):
    program = load(residual(dtype), (IMAGES.to(dtype),))
    pruned = run(HALF, program)
    assert pruned.model.stem.weight.dtype == dtype
    assert pruned.model(IMAGES.to(dtype)).dtype == dtype
    assert max(check.error for check in proof.verify(pruned)) <= 1e-12
    folded = run(Recipe.parse("fold"), program)
    assert folded.model.stem.bias.dtype == dtype


class Casts(nn.Module):
    """Literals with a dtype: they follow when the proof runs in float64."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.a(x)).to(torch.float32) + torch.full((5,), 0.1, dtype=torch.float32)[:1]
        return self.b(x * torch.tensor([0.3])).float()


def test_a_tensor_that_is_returned_twice_is():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

        def forward(self, x):
            y = self.down(self.up(x).relu())
            return {"logits": y, "inside": [x, y]}

    artifact = gp.compile(Twice(), torch.randn(2, 4), channels="0.5x", measure=False)
    made = artifact.model(x := torch.randn(2, 4))
    assert made["inside"][0] is x and made["inside"][1] is made["logits"]


def test_casts_and_constants_do_not_lose_digits_in_the_proof():
    pruned = run(HALF, load(Casts(), (torch.randn(2, 6),)))
    assert max(check.error for check in proof.verify(pruned)) <= 1e-12


def test_a_norm_by_batch_statistics_is_pruned_a_channel_at_a_time_and_never_folded():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1))
    done = run(Recipe.parse("group,score,mask{channels=0.5x},propagate,fold"), load(module, (IMAGES,)))
    assert done.model.get_parameter("1.weight").shape == (2,)
    assert proof.verify(done)[0].error <= 1e-12


# ---- bad input ---------------------------------------------------------------------------------------


def test_a_module_that_cannot_be_traced_is_one_clear_error():
    class Broken(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    module = Broken().train()
    with pytest.raises(ModelError, match=r"Broken: torch.export could not trace it") as error:
        TorchHost.export(module, (IMAGES,))
    assert error.value.hint and module.training
    with pytest.raises(ModelError, match="could not trace it"):
        TorchHost.export(residual(), (torch.randn(2, 4, 8, 8),))
    with pytest.raises(ModelError, match="could not trace it"):
        TorchHost.export(residual(), ())


def saved(tmp_path):
    path = tmp_path / "model.pt2"
    TorchHost.export(nets.MLP(), (torch.randn(2, 6),)).save(path)
    return path


def rewritten(path, change):
    """The same archive with members replaced."""
    out = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out


class Bomb:
    def __reduce__(self):
        return exec, ("import builtins; builtins.exploded = True",)


def test_files_that_are_no_programs_are_refused(tmp_path):
    path = saved(tmp_path)
    data = path.read_bytes()
    cases = {
        "missing.pt2": None,
        "text.pt2": b"hello",
        "empty.pt2": b"",
        "truncated.pt2": data[: len(data) // 2],
        "zip.pt2": zipped({"a": b"b"}),
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            TorchHost.load(tmp_path / name)
    with pytest.raises(ModelError, match="no such file"):
        TorchHost.load(tmp_path)


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_flipped_byte_is_noticed(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if "/weights/" in info.filename and info.file_size > 100)
    data = bytearray(path.read_bytes())
    data[info.header_offset + 200 + len(info.filename)] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ModelError, match="damaged"):
        TorchHost.load(path)


@pytest.mark.parametrize("member", ["sample_inputs", "weights", "constants"])
def test_nothing_is_unpickled(member, tmp_path):
    import builtins

    path = saved(tmp_path)
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    payloads = {"raw": pickle.dumps(Bomb()), "torch": buffer.getvalue()}
    for payload in payloads.values():

        def change(name, content, payload=payload):
            if f"/{member}/" in name and name.endswith("_config.json"):
                return content.replace(b'"use_pickle": false', b'"use_pickle": true')
            return payload if f"/{member}/" in name else content

        bad = rewritten(path, change)
        try:
            TorchHost.load(bad)
        except ModelError:
            pass
        else:
            assert member == "constants"  # this model has none, so nothing was replaced
        assert not hasattr(builtins, "exploded")


def test_output_that_cannot_be_written(tmp_path):
    host = nets.program("MLP").host
    with pytest.raises(OutputError, match="cannot be written"):
        host.save(tmp_path / "no" / "such" / "folder" / "model.pt2")


# ---- the protocol ------------------------------------------------------------------------------------


def test_copies_share_storage_until_edited():
    host = nets.program("Residual").host
    twin = host.copy()
    assert twin.model.stem.weight.data_ptr() == host.model.stem.weight.data_ptr()
    twin.zero("stem.weight", 0, np.array([1]))
    twin.take("bn0.weight", 0, np.array([2, 0]))
    twin.set_parameter("fc.bias", np.zeros(3))
    assert host.parameter("stem.weight")[1].any() and host.parameter("bn0.weight").shape == (6,)
    assert host.parameter("fc.bias").any()
    np.testing.assert_array_equal(twin.parameter("bn0.weight"), host.parameter("bn0.weight")[[2, 0]])
    assert not twin.parameter("stem.weight")[1].any() and twin.parameter("stem.weight")[0].any()


def test_watch_sees_what_ops_give_every_output_of_them():
    program = nets.program("SplitUneven")
    split = next(op for op in program.graph.ops if op.kind == "split")
    names = [value.name for value in (*split.inputs, *split.outputs)]
    seen = program.host.watch(program.host.example(), names)
    np.testing.assert_array_equal(seen[names[0]], np.concatenate([seen[name] for name in names[1:]], 1))
    assert [seen[name].shape[1] for name in names[1:]] == [3, 5, 4]


class Layouts(nn.Module):
    """Convolutions beside what depends on how their results lie in memory."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change
        self.first, self.own = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Linear(8 * 36, 5)

    def forward(self, x):
        y = self.first(x)
        if self.change == "scaled":
            y.mul_(2.0)
        elif self.change == "assigned":
            y[:, 1] = 0.5
        elif self.change == "viewed":
            y.view(len(y), -1).relu_()
        elif self.change == "strided":
            y = torch.as_strided(y, (len(y), 8, 6, 6), (288, 36, 6, 1))
        z = F.relu(self.own(y)) + y
        return self.last(z.flatten(1)), z.permute(0, 2, 3, 1).reshape(len(z), -1), torch.cat([z, y], 1).view(-1, 8)


@pytest.mark.parametrize("change", ["none", "scaled", "assigned", "viewed", "strided"])
def test_watch_sees_the_same_however_values_lie_in_memory(change: str) -> None:
    torch.manual_seed(0)
    module, x = Layouts(change).eval(), torch.randn(2, 3, 6, 6)
    program = load(module, (x,))
    names = [value.name for value in program.graph.outputs]
    conv = next(op.outputs[0].name for op in program.graph.ops if op.kind == "conv")
    seen = program.host.watch([x.numpy()], [*names, conv])
    for name, value in zip(names, module(x), strict=True):
        np.testing.assert_allclose(seen[name], value.detach(), rtol=1e-5, atol=1e-6)
    first = {} if change in ("scaled", "viewed") else {conv: seen[conv]}
    again = program.host.watch([x.numpy()], names, first)
    for name in names:
        np.testing.assert_array_equal(again[name], seen[name])


def test_origins_are_module_paths():
    origins = {op.origin for op in nets.program("Residual").graph.ops}
    assert {"stem", "bn0", "block.conv1", "fc"} <= origins


def test_text_of_the_graph():
    text = nets.program("MLP").graph.text().splitlines()
    assert text[0].startswith("input  %") and text[0].endswith("x6")
    assert "weight %fc1.weight:7x6" in text
    assert any(line.startswith("%linear:") and " = linear(" in line and "%fc1.weight, _)" in line for line in text)
    assert text[-1].startswith("output %")


class Sum(nn.Module):
    """Inputs by position, by any number of positions, or by name."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style, self.first, self.last = style, nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, *more: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return self.last(self.first(x) + self.first(more[0] if self.style == "many" else y))


@pytest.mark.parametrize("style", ["many", "named"])
def test_the_batch_stays_open_however_inputs_are_given(style: str) -> None:
    x = torch.randn(2, 4)
    program = gp.load(Sum(style), (x, x) if style == "many" else {"args": (x,), "kwargs": {"y": x}})
    done = gp.run("group,score,mask{channels=0.5x},propagate", program)
    assert gp.verify(done)[0].error <= 1e-12
    wide = [np.ones((5, 4), np.float32)] * 2
    assert done.host.run(wide)[0].shape == (5, 3)


class Tiled(nn.Module):
    """Repeats by a dynamic size, as attention biases of positions are made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias, self.last = nn.Linear(4, 8), nn.Parameter(torch.ones(1, 8)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu() * self.bias.repeat(x.shape[0], 1))


def test_a_repeat_by_a_dynamic_size_leaves_the_other_axes_alone() -> None:
    program = gp.load(nets.randomise(Tiled()), torch.randn(2, 4))
    done = gp.run("group,score,mask{channels=0.5x},propagate", program)
    assert done.host.parameter("bias").shape == (1, 4) and gp.verify(done)[0].error <= 1e-12
    assert done.host.run([np.ones((5, 4), np.float32)])[0].shape == (5, 3)


def test_what_was_left_in_training_mode_on_purpose_is_told():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2)).eval()
    assert not gp.load(net, torch.randn(2, 3)).notes
    net[1].train()
    (note,) = gp.load(net, torch.randn(2, 3)).notes
    assert note == "`1` in training mode within a module in eval mode: read in eval mode, as all of it"
    assert net[1].training and not gp.load(net.train(), torch.randn(2, 3)).notes


def test_shapes_are_inferred_and_a_norm_of_another_width_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False))
    host = TorchHost.export(net, (IMAGES,))
    names, keep = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"], np.arange(5)
    for name in [*names, "2.running_mean"]:
        host.take(name, 0, keep)
    with pytest.raises(ShapeError, match="a BatchNorm of 5 channels with 8 numbers"):
        host.shapes()
    host.take("2.running_var", 0, keep)
    shapes = host.shapes()
    assert {shapes[op.outputs[0].name][1:] for op in host.lift().ops} == {(5, 6, 6)}
    assert host.run([IMAGES.numpy()])[0].shape == (2, 5, 6, 6)


class Products(nn.Module):
    """Layers with a bias that takes what is added to it, and those at the end with none."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(7)])
        self.b = nn.ParameterList([nn.Parameter(torch.randn(*shape)) for shape in [(4,), (1, 4), (2, 4), (4,), (4,)]])
        self.one, self.last = nn.Parameter(torch.randn(1)), nn.Linear(4, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.addmm(self.b[0], x, self.w[0])
        x = torch.addmm(self.b[1], x, self.w[1], beta=0.5, alpha=3.0)
        x = torch.addmm(self.b[2], x, self.w[2])
        x = x @ self.w[3] + self.b[3]
        x = self.last(x) + self.b[4]
        x = torch.addmm(self.one, x, self.w[4])
        x = torch.addmm(self.one, x, self.w[5], beta=0)
        return x @ self.w[6]


@pytest.mark.parametrize("number", range(8))
def test_a_bias_is_added_to_the_one_that_a_layer_has(number: int) -> None:
    host = TorchHost.export(Products(), (torch.randn(2, 4),), dynamic_shapes=({},)).copy("float64")
    edited, batch, bias = host.copy(), host.example(), np.arange(1.0, 5.0)
    layers = [op for op in host.lift().ops if op.kind in ("gemm", "matmul", "linear")]
    edited.add_bias(layers[number], bias)
    assert len(edited.lift().parameters) == len(host.lift().parameters) + (number > 4)
    names = [_read(one, number + 1) for one in (host, edited)]
    before, after = (one.watch(batch, [name])[name] for one, name in zip((host, edited), names, strict=True))
    np.testing.assert_allclose(after, before + bias, rtol=1e-12)


def _read(host: TorchHost, number: int) -> str:
    """What the layer of that number reads, the output behind the last."""
    graph = host.lift()
    reads = [op.inputs[0].name for op in graph.ops if op.kind in ("gemm", "matmul", "linear")]
    return [*reads, graph.outputs[0].name][number]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_collected_while_a_module_is_traced(fails: bool) -> None:
    """Walking over what tracing makes, and all that torch has imported, took a fifth of it."""
    collecting: list[bool] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            collecting.append(gc.isenabled())
            if fails:
                raise ValueError("no")
            return super().forward(x)

    with pytest.raises(ModelError) if fails else nullcontext():
        TorchHost.export(Watching(4, 3).eval(), torch.randn(2, 4))
    assert collecting and not any(collecting) and gc.isenabled()


def test_a_graph_in_which_nothing_is_rewritten_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        model = torch.export.export(nn.Linear(4, 3), (torch.randn(2, 4),)).module(check_guards=False)
    monkeypatch.setattr(type(model), "recompile", lambda self: pytest.fail("compiled again"))
    assert write_out(model, True) == []
    narrow_to_slice(model)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x, scale=None):
        x = x["x"] if isinstance(x, dict) else x
        return self.outer(torch.relu(self.inner(x))) * (1.0 if scale is None else scale)


@pytest.mark.parametrize(
    "example",
    [
        {"x": torch.ones(2, 6)},
        {"x": torch.ones(2, 6), "scale": torch.ones(2, 1)},
        ({"x": torch.ones(2, 6)},),
        {"args": (torch.ones(2, 6),), "kwargs": {"scale": torch.ones(2, 1)}},
    ],
)
def test_arguments_are_given_by_name_in_order_or_both(example):
    done = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(Named(), example))
    assert done.host.parameter("inner.weight").shape == (4, 6)
    assert all(check.holds for check in gp.verify(done))
    assert len(done.graph.inputs) == (2 if "scale" in str(example) else 1)


class Segments(nn.Module):
    """What networks of video do: the batch is frames of clips."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        n, c, h, w = x.shape
        clips = x.view(n // 2, 2, c, h, w)
        return self.last((clips + clips.mean(1, keepdim=True)).view(n, c, h, w))


def test_channels_behind_an_open_batch_that_is_split_are_cut():
    artifact = gp.compile(Segments(), torch.randn(4, 3, 5, 5), channels="0.5x", grain=1, measure=False)
    assert artifact.model.get_parameter("last.weight").shape == (2, 6, 1, 1)
    assert artifact.model(torch.randn(6, 3, 5, 5)).shape == (6, 2, 5, 5)
    assert artifact.report["samples"] == 4


def test_what_is_written_is_the_same_to_the_last_byte(tmp_path):
    for name in ("one", "other"):
        torch.manual_seed(0)
        artifact = gp.compile(Segments(), torch.ones(4, 3, 5, 5), channels="0.5x", measure=False)
        artifact.program.host.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
