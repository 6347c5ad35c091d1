"""Weights that are large: what is made of them is in files, and is what it is in memory."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import graphprune as gp
from graphprune.calibration import curvature
from graphprune.calibration.curvature import Curvature
from graphprune.cli import main
from graphprune.driver.artifact import ONCE
from graphprune.errors import ModelError, OutputError, VerificationError
from graphprune.hosts.onnx.run import Session
from graphprune.hosts.torch.casting import as_read
from graphprune.hosts.torch.host import TorchHost
from graphprune.hosts.torch.pretrained import made_from
from graphprune.ir import large
from graphprune.ir.large import Room
from graphprune.pipeline.correction import Correct

SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
SIZES |= dict(num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(large, "LARGE_BYTES", 0)
    monkeypatch.setattr(large, "SMALL_BYTES", 1)
    monkeypatch.setattr(large, "FILE_BYTES", 4096)


def llama(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)).to(dtype)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    model.save_pretrained(path)
    return path


def perceptron(folder: Path) -> Path:
    """Float32 with external data, one tensor of 256 bytes."""
    folder.mkdir(parents=True)
    made = np.random.default_rng(0)
    shapes = {"up": (16, 64), "down": (64, 16), "end": (16, 4)}
    weights = [numpy_helper.from_array(made.standard_normal(s, np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "down"], ["c"]),
        helper.make_node("Add", ["x", "c"], ["d"]),
        helper.make_node("MatMul", ["d", "end"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 16), ("y", 4))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "a.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "a.onnx"


def digests(folder: Path, *names: str) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def in_a_file(address: int) -> bool:
    """Whether memory at an address is a map of a temporary file that is gone."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return "(deleted)" in line
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
@pytest.mark.parametrize("alike", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_large_folder_becomes_the_same_bytes_and_is_written_once(alike, tmp_path, request):
    source, names = llama(tmp_path / "in"), ("model.safetensors", "plan.json", "config.json")
    options = dict(params="0.7x", measure=False, alike=alike)
    gp.compile(f"hf:{source}", out=tmp_path / "memory", **options)
    request.getfixturevalue("everything_is_large")
    artifact = gp.compile(f"hf:{source}", out=tmp_path / "files", **options)
    assert digests(tmp_path / "files", *names) == digests(tmp_path / "memory", *names)
    assert ONCE in artifact.report["notes"]
    assert not {"model.pt2", "weights.pt"} & {path.name for path in (tmp_path / "files").iterdir()}
    assert (tmp_path / "memory" / "model.pt2").exists()
    assert all(in_a_file(tensor.data_ptr()) for tensor in artifact.model.parameters())
    again = gp.load(f"hf:{source}")
    for name, value in again.graph.parameters.items():  # nothing was written into what was given
        assert np.array_equal(again.host.parameter(name), artifact.program.source.parameter(value.name))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_what_data_says_of_a_large_folder_is_the_same_bytes_segment_by_segment(tmp_path, request, monkeypatch):
    """Curvature and fitted weights are in files then, a segment's covariances in memory; the plan has no digit that
    the model has not."""
    source = llama(tmp_path / "in", torch.bfloat16)
    data = {"input_ids": np.random.default_rng(0).integers(3, 50, (4, 60))}
    recipe = "group{only=*gate_proj*},score{by=obs},mask{params=0.8x allocate=global alike=layers},propagate"
    options = dict(recipe=f"{recipe},compensate{{bias=false}}", data=data, measure=False)
    names = ("model.safetensors", "plan.json", "plan.safetensors", "config.json")
    gp.compile(f"hf:{source}", out=tmp_path / "memory", **options)
    request.getfixturevalue("everything_is_large")
    monkeypatch.setattr(curvature, "SEGMENT_BYTES", 1)
    scored = gp.run("group{only=*gate_proj*},score{by=obs}", gp.load(f"hf:{source}", data=data))
    readings = scored.fact(Curvature).readings.values()
    assert len(readings) == 2 and all(in_a_file(one.inverse.ctypes.data) for one in readings)
    artifact = gp.compile(f"hf:{source}", out=tmp_path / "files", **options)
    assert digests(tmp_path / "files", *names) == digests(tmp_path / "memory", *names)
    (correct,) = artifact.program.plan.of(Correct)
    for name, weight in correct.weights.items():
        assert in_a_file(weight.ctypes.data) and np.array_equal(weight, artifact.program.host.parameter(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_proof_of_a_large_folder_casts_a_weight_at_a_time(dtype, tmp_path, everything_is_large, monkeypatch):
    program = gp.load(f"hf:{llama(tmp_path / 'in', dtype)}")
    given = program.host
    exact, cast = given.copy("float64"), whole_in_float64(given)
    weights = [name for name, value in program.graph.parameters.items() if len(value.dims) > 1]
    assert weights and all(exact._tensor(name) is given._tensor(name) for name in weights)  # none was copied
    alive, most = weakref.WeakSet[torch.Tensor](), [0]

    def read(stored, floats):
        found = as_read(stored, floats)
        if found is not stored:
            alive.add(found)
            most[0] = max(most[0], len(alive))
        return found

    monkeypatch.setattr("graphprune.hosts.torch.run.as_read", read)
    for batch in (given.example(), [given.example()[0][::-1]]):
        (one,), (other,) = exact.run(batch), cast.run(batch)
        assert one.dtype == np.float64 and np.array_equal(one, other)
    assert most[0] == 1
    for name in weights:
        assert exact.parameter(name).dtype == np.float64 and np.array_equal(
            exact.parameter(name), given.parameter(name)
        )


def whole_in_float64(host: TorchHost) -> TorchHost:
    other = host.copy()
    other.room = None
    return other.copy("float64")


def test_what_is_edited_keeps_its_digits_in_the_proof(tmp_path, everything_is_large):
    given = gp.load(f"hf:{llama(tmp_path / 'in', torch.bfloat16)}").host
    exact, name = given.copy("float64"), "model.layers.0.mlp.up_proj.weight"
    exact.set_parameter(name, given.parameter(name) * 2)  # which bfloat16 has
    assert np.array_equal(exact.parameter(name), given.parameter(name) * 2)
    assert exact._tensor(name).dtype == torch.bfloat16
    fine = exact.parameter(name) * (1 + 1e-9)
    exact.set_parameter(name, fine)
    assert np.array_equal(exact.parameter(name), fine) and exact._tensor(name).dtype == torch.float64
    exact.zero(name, 1, np.array([3]))
    assert not exact.parameter(name)[:, 3].any() and given.parameter(name)[:, 3].any()
    assert exact.shapes()  # what is stored in two dtypes is read in one


def test_the_proof_of_a_large_folder_fails_where_pruned_is_not_masked(tmp_path, everything_is_large, monkeypatch):
    program = gp.run(
        "group,score,mask{channels=0.5x},propagate", gp.load(f"hf:{llama(tmp_path / 'in', torch.bfloat16)}")
    )
    (check, _, same) = gp.verify(program)
    assert check.error <= 1e-12 == check.tolerance and check.spread is None and same.holds
    monkeypatch.setattr(TorchHost, "zero", lambda *args: None)
    with pytest.raises(VerificationError, match="differs from the masked one"):
        gp.verify(program)


@pytest.mark.slow
def test_a_large_folder_that_the_class_has_no_place_for_is_written_as_any(tmp_path, everything_is_large):
    recipe = "factor{layers=*down_proj},group,score,mask{width=*rank=4},propagate"
    artifact = gp.compile(f"hf:{llama(tmp_path / 'in')}", recipe=recipe, out=tmp_path / "out", measure=False)
    assert ONCE not in artifact.report["notes"]
    assert any(note.startswith("nothing that from_pretrained loads") for note in artifact.report["notes"])
    found = TorchHost.load(tmp_path / "out" / "model.pt2")
    example = artifact.program.host.example()
    assert np.array_equal(found.run(example)[0], artifact.program.host.run(example)[0])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_a_large_onnx_file_becomes_the_same_bytes(tmp_path, request):
    source = perceptron(tmp_path / "in")
    names = ("model.onnx", "model.onnx.data", "plan.json")
    gp.compile(source, params="0.7x", grain=1, out=tmp_path / "memory", measure=False)
    request.getfixturevalue("everything_is_large")
    artifact = gp.compile(source, params="0.7x", grain=1, out=tmp_path / "files", measure=False)
    assert digests(tmp_path / "files", *names) == digests(tmp_path / "memory", *names)
    tensor = artifact.model.graph.initializers["up"].const_value
    assert tensor.shape[1] < 64 and in_a_file(tensor.numpy().ctypes.data)


def test_weights_that_are_fed_give_what_copied_ones_do(tmp_path, monkeypatch):
    monkeypatch.setattr("graphprune.hosts.onnx.run._INLINE", 1)
    host = gp.load(perceptron(tmp_path / "in")).host
    x = {"x": np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)}
    copied = Session(host.model)
    monkeypatch.setattr(large, "LARGE_BYTES", 0)
    fed = Session(host.model)
    assert set(fed._fed) == {"up", "down", "end"} and not copied._fed
    assert np.allclose(copied.run(x)[0], fed.run(x)[0], rtol=1e-5, atol=1e-5)


def test_an_op_that_takes_no_fed_weight_has_it_as_it_was(monkeypatch):
    """ONNX Runtime's quantised Attention wants its weights when it is made."""
    monkeypatch.setattr("graphprune.hosts.onnx.run._INLINE", 1)
    monkeypatch.setattr(large, "LARGE_BYTES", 0)
    weight = numpy_helper.from_array(np.ones((4, 8), np.uint8), "w")
    scale, zero = (numpy_helper.from_array(np.array(one), n) for one, n in ((np.float32(1), "s"), (np.uint8(0), "z")))
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s", "z"], ["y"], domain="com.microsoft")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 4), ("y", 8))]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight, scale, zero])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    found = Session(gp.load(helper.make_model(graph, opset_imports=sets, ir_version=9)).host.model)
    assert np.allclose(found.run({"x": np.ones((1, 4), np.float32)})[0], 4, atol=0.1)


def test_a_disk_without_room_is_said(monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match="no room for 100,000,000 bytes") as told:
        Room().take(100_000_000)
    assert "TMPDIR" in str(told.value.hint)


def test_what_shares_a_file_does_not_overlap(monkeypatch):
    monkeypatch.setattr(large, "FILE_BYTES", 256)
    room = Room()
    sizes = [1, 63, 64, 65, 300, 200, 256, 7]
    views = [room.take(size) for size in sizes]
    for k, view in enumerate(views):
        view[:] = bytes([k]) * len(view)
    assert [(len(view), set(view)) for view in views] == [(size, {k}) for k, size in enumerate(sizes)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have other allocators")
def test_what_was_freed_is_given_back():
    """In a process of its own, whose heap has no holes that others left."""
    code = """
from pathlib import Path
import numpy as np
from graphprune.ir import large

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

kept = [(np.ones(1 << 13), np.ones(1 << 7)) for _ in range(1000)]  # 64 kB each, and between them what stays
small = [one for _, one in kept]
del kept
before = anonymous()
large.give_back()
assert before - anonymous() > 40 << 20 and len(small) == 1000
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_correction_gives_back_between_its_weights_what_was_freed(monkeypatch):
    module = torch.nn.Sequential(*(torch.nn.Linear(16, 16, bias=False) for _ in range(6)))
    program = gp.load(module, (torch.randn(2, 16),))
    given = {name: program.host.parameter(name) * 2 for name in program.graph.parameters}
    placed, after = [], []
    set_parameter = TorchHost.set_parameter
    monkeypatch.setattr(TorchHost, "set_parameter", lambda *args: (placed.append(args[1]), set_parameter(*args)))
    monkeypatch.setattr(large, "give_back", lambda: after.append(len(placed)))
    monkeypatch.setattr(large, "FILE_BYTES", 1 << 10)  # of one weight: given back when it is exceeded
    done = Correct(given).apply(program)
    assert len(placed) == 6 and after == [2, 4, 6]
    assert all(np.array_equal(done.host.parameter(name), weight) for name, weight in given.items())


def test_inspect_reads_no_weight_and_compile_checks_them(tmp_path, monkeypatch):
    source = llama(tmp_path / "in")
    plain = CliRunner().invoke(main, ["inspect", f"hf:{source}", "--json"], catch_exceptions=False)

    def read(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(TorchHost, "parameter", read)
    unread = CliRunner().invoke(main, ["inspect", f"hf:{source}", "--json"], catch_exceptions=False)
    assert unread.exit_code == 0 and unread.stdout == plain.stdout
    monkeypatch.undo()
    hf = pytest.importorskip("transformers")
    model = hf.LlamaForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(ModelError, match="weight` has 1 NaN"):
        gp.compile(f"hf:{tmp_path / 'nan'}", params="0.7x")


def test_a_class_made_from_a_configuration_is_what_the_library_loads(tmp_path):
    """Its tables of angles too, which are no weights, and stay float32 beside weights of half precision."""
    hf = pytest.importorskip("transformers")
    loaded = hf.LlamaForCausalLM.from_pretrained(llama(tmp_path / "in", torch.bfloat16), dtype="auto")
    made = made_from(type(loaded), loaded.config, loaded.state_dict(), torch.bfloat16)
    for (name, one), (_, other) in zip(made.named_buffers(), loaded.named_buffers(), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other), name
    assert torch.get_default_dtype() == torch.float32
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(made(ids).logits, loaded(ids).logits)
    assert made.lm_head.weight.data_ptr() == loaded.lm_head.weight.data_ptr()  # nothing was copied


def test_weights_that_a_device_map_left_on_the_meta_device_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4, device="meta"))
    model.hf_device_map = {"0": "cpu", "1": "disk"}
    with pytest.raises(ModelError) as told:
        gp.load(model, torch.randn(2, 4))
    assert "2 parameters of Sequential are on the meta device" in told.value.message
    assert "`1.weight`, placed by device_map on cpu, disk" in told.value.message
    assert "hf:FOLDER" in str(told.value.hint)


def test_one_whose_device_map_has_loaded_all_is_read_as_any():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    model.hf_device_map = {"": "cpu"}
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert np.allclose(gp.load(model, x).host.run([x.numpy()])[0], model(x).numpy(), rtol=0, atol=1e-6)
