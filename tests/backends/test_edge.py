"""Code for devices: it runs without TVM, on other machines too, and computes what ONNX Runtime computes."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, save
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
from torch import nn
from torch.nn import functional

import graphprune as gp
from graphprune.backends import target
from graphprune.backends.boards import Board, board, boards, read
from graphprune.backends.edge import c_writer
from graphprune.backends.edge.c_writer import MOST_ARGUMENTS, MOST_BUFFERS, check
from graphprune.backends.edge.call_sequence import Buffer, Plan
from graphprune.backends.edge.target import Edge
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.cli import main
from graphprune.errors import GraphpruneError, TargetError
from graphprune.ir.program import Program

TOLERANCE = 1e-4
DETECTOR = Path(__file__).parents[3] / "shared" / "data" / "onnx" / "version-RFB-320.onnx"
Made = Callable[[str], tuple[Edge, Path]]
MACHINES = ["aarch64", "armv7", "riscv64", "x86_64", "c"]


class Net(nn.Module):
    """Dense, strided, depthwise and grouped convolutions, a sum, a concat, two outputs, one a view of an
    input, one given twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.deep, self.wide = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(self.norm(self.stem(x)))
        z = torch.cat([y, torch.relu(self.deep(y) + self.wide(y))], 1)
        logits = self.head(z.mean((2, 3)))
        return logits.softmax(-1), z.flatten(1), x.flatten(1), logits


@pytest.fixture(scope="module")
def net() -> Program:
    torch.manual_seed(0)
    module = Net().eval()
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if buffer.dtype == torch.float32:
                buffer.copy_(torch.rand(buffer.shape) + 0.5 if name.endswith("var") else torch.randn(buffer.shape))
    return gp.load(module, torch.randn(2, 3, 18, 18))


def need(name: str) -> Edge:
    """The target, or a skip that says what this machine lacks."""
    pytest.importorskip("tvm")
    made = target(name)
    assert isinstance(made, Edge)
    if not shutil.which(board(name).cc):
        pytest.skip(f"no {board(name).cc}")
    if reason := made.unable():
        pytest.skip(reason)
    return made


def error(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    assert [(a.shape, a.dtype) for a in got] == [(a.shape, a.dtype) for a in want]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want, strict=True))


# ---- code for devices --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(net: Program, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Edge, Path]]:
    """The target of a name and its library, compiled once."""

    @cache
    def make(name: str) -> tuple[Edge, Path]:
        on = need(name)
        return on, on.emit(net, tmp_path_factory.mktemp(name))

    return make


@pytest.mark.parametrize("name", MACHINES)
def test_a_device_computes_what_onnx_runtime_computes(name: str, net: Program, made: Made) -> None:
    (on, path), batch = made(name), net.host.example()
    for threads in (1, 2):
        assert error(on.load(path, threads=threads).run(batch), Onnx().run(net, batch)) <= TOLERANCE
    other = [array + 1 for array in batch]
    assert error(on.load(path).run(other), Onnx().run(net, other)) <= TOLERANCE


@pytest.mark.parametrize("name", MACHINES)
def test_the_folder_is_small_and_needs_libc_alone(name: str, net: Program, made: Made) -> None:
    _, library = made(name)
    weights = sum(net.host.parameter(name).nbytes for name in net.graph.parameters)
    assert library.stat().st_size + library.with_name("weights.bin").stat().st_size <= 1.1 * weights + 2**20
    said = subprocess.run(["readelf", "-d", library], capture_output=True, text=True)
    if said.returncode == 0:
        needed = [line.split("[")[1].rstrip("]") for line in said.stdout.splitlines() if "NEEDED" in line]
        allowed = ("libc.", "libm.", "libgomp.", "ld-linux", "libgcc_s.")
        assert needed and all(one.startswith(allowed) for one in needed), needed


class Functions(nn.Module):
    """What C has names for in <math.h>: infinities, NaN, and functions of one or two numbers."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        far = functional.pad(x, (1, 1, 1, 1), value=-torch.inf)
        attended = functional.scaled_dot_product_attention(x[:, 0], x[:, 1], x[:, 0])
        return (
            functional.hardswish(x), functional.hardsigmoid(x), x.clamp(min=0), x.clamp(max=1), attended,
            functional.max_pool2d(far, 3), torch.where(torch.isinf(far), 0, far), torch.where(x > 0, x, torch.nan),
            x.abs(), functional.softsign(x), functional.logsigmoid(x), functional.normalize(x), x.exp().log1p(),
            functional.lp_pool2d(x, 2, 2), functional.mish(x), x.round(), x.trunc(), x.expm1(), x.abs().log2(),
        )  # fmt: skip


def test_numbers_and_functions_have_names_in_c(tmp_path: Path) -> None:
    on, program = need("c"), gp.load(Functions(), 2 * torch.randn(2, 3, 6, 6))
    batch = program.host.example()
    got, want = on.load(on.emit(program, tmp_path)).run(batch), program.host.run(batch)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_double_precision_has_them_too(tmp_path: Path) -> None:
    x, y = (make_tensor_value_info(name, TensorProto.DOUBLE, [8]) for name in "xy")
    nodes = [make_node("Mod", ["x", "two"], ["m"], fmod=1), make_node("Abs", ["m"], ["a"])]
    nodes += [make_node("Clip", ["a", "", "one"], ["y"])]
    constants = [make_tensor("two", TensorProto.DOUBLE, [], [2.0]), make_tensor("one", TensorProto.DOUBLE, [], [1.0])]
    graph = make_graph(nodes, "g", [x], [y], constants)
    save(make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=9), tmp_path / "model.onnx")
    on, program = need("c"), gp.load(tmp_path / "model.onnx")
    batch = [np.linspace(-5, 5, 8)]
    assert error(on.load(on.emit(program, tmp_path)).run(batch), program.host.run(batch)) <= 1e-12


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_half_precision_is_refused_before_any_work(form: str, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    program = gp.load(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).half(), torch.zeros(1, 3, 8, 8).half())
    if form == "onnx":
        program = gp.load(Onnx().emit(program, tmp_path))
    for refuse in (target("c").admit, lambda program: target("c").emit(program, tmp_path)):
        with pytest.raises(TargetError) as caught:
            refuse(program)
        said = str(caught.value)
        assert said.startswith("target `c`: ") and "1x3x8x8 is float16, which C does not have\n  hint: convert" in said


def test_build_sh_builds_what_was_not_linked(net: Program, tmp_path: Path) -> None:
    need("x86_64" if platform.machine() == "x86_64" else "c")
    on = target("c{link=false}")
    assert on.emit(net, tmp_path) == tmp_path / "build.sh"
    assert not (tmp_path / "run").exists() and on.unable() == "not linked here"
    subprocess.run(
        ["sh", "build.sh"],
        cwd=tmp_path,
        check=True,
        env={"PATH": "/usr/bin:/bin", "CFLAGS": "-O1 -pedantic -Wall -Wextra -Werror"},
    )
    batch = net.host.example()
    assert error(target("c").load(tmp_path / "libmodel.so").run(batch), Onnx().run(net, batch)) <= TOLERANCE


def source(of: Program, tmp_path: Path) -> list[str]:
    """The lines of kernels.c."""
    need("c").emit(of, tmp_path)
    return (tmp_path / "kernels.c").read_text().splitlines()


def test_loops_of_which_no_turn_waits_for_another_are_marked_and_no_others(net: Program, tmp_path: Path) -> None:
    """A mark lets GCC do all turns at once: of every number that a marked loop writes there is one for each turn."""
    lines, marked = source(net, tmp_path), 0
    for at, line in enumerate(lines):
        if not (found := re.fullmatch(r"( *)GP_LANES for \(\w+ (\w+) = 0; .*", line)):
            continue
        marked, of_a_turn = marked + 1, {found[2]}
        for inner in lines[at + 1 : lines.index(found[1] + "}", at)]:
            if named := re.fullmatch(r" *int32_t (\w+) = (.*);", inner):
                of_a_turn |= {named[1]} if of_a_turn & set(re.findall(r"\w+", named[2])) else set()
            elif written := re.fullmatch(r" *\w+\[(.*?)\] = .*;", inner):
                assert of_a_turn & set(re.findall(r"\w+", written[1])), inner
    assert marked > 100


def test_sums_of_a_tile_are_on_the_stack(tmp_path: Path) -> None:
    """GCC takes nothing else for a register: 128 channels were added up in what had been a band of the input."""
    convs = nn.Conv2d(128, 128, 3, padding=1, groups=128), nn.ReLU(), nn.Conv2d(128, 128, 1)
    lines = source(gp.load(nn.Sequential(*convs), torch.randn(1, 128, 15, 20)), tmp_path)
    summed = {found[1] for line in lines if (found := re.match(r" *(\w+)\[(.*?)\] = \(\1\[\2\] \+ ", line))}
    stacked = {found[1] for line in lines if (found := re.fullmatch(r" *float (\w+)\[\d+\];", line))}
    assert len(summed) > 1 and summed <= stacked


def test_weights_that_fill_no_vectors_are_padded_at_compile_time(tmp_path: Path) -> None:
    """A kernel has room for what it makes, and none for its weights."""
    on = need("c")
    net = gp.load(nn.Sequential(nn.Linear(64, 101), nn.ReLU(), nn.Linear(101, 37)), torch.randn(5, 64))
    library = on.emit(net, tmp_path)
    assert on.found(library)["workspace_bytes"] < 4 * 101 * 37
    batch = net.host.example()
    assert error(on.load(library).run(batch), Onnx().run(net, batch)) <= TOLERANCE


def test_a_copy_asks_once_where_it_is(tmp_path: Path) -> None:
    """GCC moves one question out of a loop: of the rows above an image, and its columns are asked nothing."""
    convs = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
    loop, asked = "", []
    for line in source(gp.load(nn.Sequential(*convs), torch.randn(1, 3, 32, 32)), tmp_path):
        loop = found[1] if (found := re.match(r" *(?:GP_LANES )?for \(\w+ (\w+) = ", line)) else loop
        asked += [(loop, line)] if re.match(r" *if \(.* <=? ", line) else []
    assert len(asked) > 1
    for loop, line in asked:
        assert "&&" not in line and not re.search(rf"\b{loop}\b", line)


def test_products_are_left_to_the_compiler(made: Made) -> None:
    """fmaf is a call where the CPU has no such instruction."""
    assert "fma" not in (made("c")[1].parent / "kernels.c").read_text()


def test_the_header_is_cpp_too(made: Made, tmp_path: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("no g++")
    (tmp_path / "use.cc").write_text('#include "model.h"\nint main() { return model.input_count != 1; }\n')
    folder = made("c")[1].parent
    flags = ["-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{folder}"]
    subprocess.run(["g++", *flags, "-c", tmp_path / "use.cc", "-o", tmp_path / "use.o"], check=True)


def test_damaged_weights_and_what_is_no_file_are_refused(net: Program, made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made("c")[1].parent, folder)
    net.host.example()[0].tofile(tmp_path / "x.bin")

    def run(given: Path) -> tuple[int, str]:
        """Started through the PATH: the program's own name has no slash."""
        done = subprocess.run(
            ["run", str(tmp_path), str(given)], executable=folder / "run", capture_output=True, text=True, cwd=tmp_path
        )
        return done.returncode, done.stderr

    assert run(tmp_path / "x.bin") == (0, "")
    assert run(tmp_path) == (1, f"{tmp_path}: not a regular file\n")
    weights = bytearray((folder / "weights.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (folder / "weights.bin").write_bytes(weights)
    assert run(tmp_path / "x.bin") == (1, f"{folder}/weights.bin: damaged, or of another model\n")


def test_flash_holds_the_weights_and_hardly_more(tmp_path: Path) -> None:
    """Minimal filtering would make twice as much of them; a board of one's own may take it."""
    pytest.importorskip("tvm")
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(), nn.Conv2d(48, 17, 3)]
    program = gp.load(nn.Sequential(*layers), torch.zeros(1, 3, 24, 24))
    weights = sum(program.host.parameter(name).nbytes for name in program.graph.parameters)
    (tmp_path / "roomy.toml").write_text('base = "cortex-m7"\ngrowth = 1\n')
    taken = {}
    for name in ("c", "cortex-m7", str(tmp_path / "roomy.toml")):
        on, folder = target(f"{name}{{link=false}}"), tmp_path / Path(name).stem
        folder.mkdir()
        taken[folder.name] = on.found(on.emit(program, folder))["weights_bytes"] / weights
    assert 1 <= taken["c"] == taken["cortex-m7"] < 1.05 and taken["roomy"] > 1.5


@pytest.mark.parametrize("parts", [70, 300])
def test_a_wide_concatenation_fits_or_is_refused(parts: int) -> None:
    tensors = tuple(Buffer("arena", 64 * k, (1,), "float32") for k in range(parts + 1))
    made = Plan([], calls=[("concatenate", tensors)])
    if parts < MOST_ARGUMENTS:
        check(made, "c")
        return
    with pytest.raises(TargetError, match="`concatenate` reads and writes 301 tensors, the device's runtime takes 256"):
        check(made, "c")


def test_the_compiler_and_the_runtime_have_the_same_limits() -> None:
    header = (Path(c_writer.__file__).with_name("device") / "runtime.h").read_text()
    assert f"GP_MOST_ARGUMENTS = {MOST_ARGUMENTS} }}" in header
    many = tuple((f"k{k}", (Buffer("arena", k, (1,), "float32"),)) for k in range(MOST_BUFFERS + 1))
    with pytest.raises(TargetError, match="65537 buffers"):
        check(Plan([], calls=list(many)), "c")


def test_the_program_says_what_is_wrong_with_its_inputs(net: Program, made: Made, tmp_path: Path) -> None:
    program = made("c")[1].with_name("run")
    (tmp_path / "short.bin").write_bytes(b"1234")

    def run(*args: str) -> tuple[int, str]:
        done = subprocess.run([program, tmp_path, *args], capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stderr

    assert run() == (2, "0 inputs given, the model takes 1\n")
    assert run("short.bin") == (1, "short.bin: cannot be read, or is not 7776 bytes long\n")
    assert run("none.bin")[0] == 1
    net.host.example()[0].tofile(tmp_path / "x.bin")
    done = subprocess.run([program, tmp_path, "-n", "5", "-t", "2", tmp_path / "x.bin"], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"median ") and b"5 runs" in done.stdout


def test_other_shapes_are_refused(made: Made) -> None:
    on, path = made("c")
    with pytest.raises(TargetError, match="compiled for inputs of shape"):
        on.load(path).run([np.zeros((1, 3, 18, 18), np.float32)])


def test_the_same_model_gives_the_same_bytes(net: Program, tmp_path: Path) -> None:
    need("c")
    on = target("c{link=false}")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        on.emit(net, tmp_path / name)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_what_is_missing_is_said(net: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TargetError) as caught:
        target("armv7").emit(net, tmp_path)
    assert str(caught.value) == (
        "target `armv7`: no `arm-linux-gnueabihf-gcc` on the PATH to link with\n"
        "  hint: Debian: apt-get install gcc-arm-linux-gnueabihf; "
        "or the option link=false, and run build.sh on the device"
    )
    assert list(tmp_path.iterdir()) == []
    if platform.machine() != "riscv64":
        assert target("riscv64").unable() == "programs for `riscv64` do not run here: no `qemu-riscv64` on the PATH"


def test_compile_writes_and_verifies_code_for_a_device(tmp_path: Path) -> None:
    need("aarch64")
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(512, 4))
    model = Onnx().emit(gp.load(nn.Sequential(*layers), torch.randn(1, 3, 8, 8)), tmp_path)
    done = CliRunner().invoke(
        main, ["compile", str(model), "--macs", "0.6x", "--target", "aarch64", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (tmp_path / "out" / "aarch64" / "libmodel.so").is_file()
    checks = {check["what"]: check["max_relative_error"] for check in report["verification"]["checks"]}
    assert checks["code for aarch64 = model, float32"] <= TOLERANCE
    facts = report["targets"]["aarch64"]
    assert facts["target"] == "edge" and report["after"]["per_target"] == {}
    assert 0 < facts["live_bytes"] == facts["arena_bytes"] < report["after"]["weights_bytes"] <= facts["weights_bytes"]
    assert (
        "aarch64: not timed, an emulator's time says nothing about the device's; --rpc measures on it"
        in report["notes"]
    )


def test_code_that_was_not_run_is_never_called_checked(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    torch.manual_seed(0)
    layers = (nn.Conv1d(2, 10, 1), nn.ReLU(), nn.ConvTranspose1d(10, 6, 4, 2, 1), nn.ReLU(), nn.Conv1d(6, 1, 1))
    model = Onnx().emit(gp.load(nn.Sequential(*layers), torch.randn(1, 2, 17)), tmp_path)
    spec = "aarch64{link=false}"
    done = CliRunner().invoke(
        main, ["compile", str(model), "--channels", "0.5x", "--target", spec, "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    said = "The code for aarch64 was NOT checked: not linked here."
    assert said in " ".join(done.output.split()) and said in (tmp_path / "out" / "report.html").read_text()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "aarch64: not run, not linked here" in report["notes"]
    assert not any("aarch64" in check["what"] for check in report["verification"]["checks"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aarch64", "armv7"])
def test_a_detector_runs_on_a_device(name: str, tmp_path: Path) -> None:
    if not DETECTOR.is_file():
        pytest.skip(f"no {DETECTOR}")
    on, program = need(name), gp.load(DETECTOR)
    batch = program.host.example()
    assert error(on.load(on.emit(program, tmp_path)).run(batch), program.host.run(batch)) <= TOLERANCE


# ---- boards ------------------------------------------------------------------------------------------


def test_a_board_is_a_target() -> None:
    made = target("raspberry-pi-4")
    assert made == Edge(board="raspberry-pi-4") and made.label == "raspberry-pi-4"
    assert target(made.text()) == made and target("raspberry-pi-4{link=false}").text() == (
        "edge{board=raspberry-pi-4 link=false}"
    )
    with pytest.raises(TargetError, match="unknown target `rasberry-pi-4`\n  hint: did you mean `raspberry-pi-4`"):
        target("rasberry-pi-4")


@pytest.mark.parametrize("name", sorted(boards()))
def test_llvm_knows_every_board(name: str) -> None:
    from graphprune.backends.tvm.lower import toolchain

    pytest.importorskip("tvm")
    tvm, one = toolchain(), boards()[name]
    made = tvm.target.Target(one.llvm())
    if one.code == "object":
        known = [str(cpu) for cpu in tvm.target.codegen.llvm_get_cpu_archlist(made)]
        assert one.mcpu in known
    assert one.summary and one.cores >= 1


def test_a_board_of_ones_own_starts_from_another(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    path.write_text('base = "armv7"\nmcpu = "cortex-a15"\ncores = 2\n')
    mine, base = board(str(path)), board("armv7")
    assert (mine.name, mine.mcpu, mine.cores, mine.triple) == ("my-board", "cortex-a15", 2, base.triple)
    made = target(f"{path}{{link=false}}")
    assert made.label == "my-board" and target(made.text()) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tripel = 'x'", "a board has no `tripel`\n  hint: did you mean `triple`?"),
        ("triple = 3", "`triple` is 3\n  hint: it takes a text"),
        ("triple = 'x'\nmattr = [1]", "`mattr` is [1]\n  hint: it takes a list of texts"),
        ("base = 'arch64'", "base `arch64` is not a board\n  hint: did you mean `aarch64`?"),
        ("mcpu = 'generic'", "`code` is object, which needs a `triple`, or c"),
        ("base = 'c'\ngrowth = -1", "`growth` is a share of the weights, 0 or more, not -1.0\n  hint: growth = 1"),
        ("base = 'c'\ngrowth = 'no'", "`growth` is 'no'\n  hint: it takes a number"),
        ("triple = ", "not a board (Invalid value"),
    ],
)
def test_a_wrong_board_is_one_clear_error(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(TargetError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {says}")


def test_a_board_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GraphpruneError, match=r"none.toml: no such file"):
        target(str(tmp_path / "none.toml"))
    assert Board("x", code="c").llvm() == {"kind": "c"}
