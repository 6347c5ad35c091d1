"""Sizes of an ONNX model's inputs: as declared, as given, as the data has them, and as they are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper as oh
from onnx import numpy_helper as nh

import graphprune as gp
from graphprune.calibration.batches import batches, first, same_for_all
from graphprune.cli import main
from graphprune.errors import DataError, ModelError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.size_search import candidates, largest_stride
from graphprune.ir.graph import Value

SHARED = next((path / "shared" for path in Path(__file__).parents if (path / "shared/cases").is_dir()), None)
needs_files = pytest.mark.skipif(SHARED is None, reason="no folder shared/cases beside the checkout")
RECIPE = "group,score{by=l1},mask{channels=0.5x},propagate"


def model(text: str, inputs: str, outputs: str, **weights: np.ndarray) -> onnx.ModelProto:
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net ({inputs}) => ({outputs}) {{ {text} }}'
    )
    made.graph.initializer.extend(nh.from_array(array, name) for name, array in weights.items())
    return made


def filled(*shape: int) -> np.ndarray:
    return (np.random.default_rng(len(shape)).standard_normal(shape) * 0.5).astype(np.float32)


def images(sizes: list[str | int | None]) -> onnx.ModelProto:
    """Two convolutions on an image of such sizes."""
    made = model(
        "a = Conv(x, w) b = Relu(a) y = Conv(b, v)",
        "float[n,3,h,w] x",
        "float[n,2,h,w] y",
        w=filled(8, 3, 1, 1),
        v=filled(2, 8, 1, 1),
    )
    made.graph.input[0].CopyFrom(oh.make_tensor_value_info("x", 1, sizes))
    return made


def sound(kernel: int = 1024, stride: int = 1) -> onnx.ModelProto:
    """A convolution that takes so many samples of sound at least, between two others."""
    return model(
        f"a = Conv<strides=[{stride}]>(x, w) b = Relu(a) c = Conv(b, v) y = GlobalAveragePool(c)",
        "float[n,1,t] x",
        "float[n,2,u] y",
        w=filled(6, 1, kernel),
        v=filled(2, 6, 1),
    )


def state_model() -> onnx.ModelProto:
    """Frames, and a state of which every frame gets the same."""
    return model(
        "s = ReduceSum<keepdims=0>(h, zero) i = Concat<axis=1>(x, s) a = MatMul(i, w) b = Relu(a) y = MatMul(b, v)",
        "float[frames,4] x, float[2,batch,3] h",
        "float[frames,2] y",
        zero=np.array([0]),
        w=filled(7, 6),
        v=filled(6, 2),
    )


# ---- as declared -----------------------------------------------------------------------------------


def test_minus_one_and_question_marks_are_open_and_stay_in_the_file(tmp_path: Path) -> None:
    made = images([-1, 3, "?", "?"])
    program = gp.load(made)
    assert program.graph.inputs[0].shape == ("x_0", 3, "x_2", "x_3")
    gp.run(RECIPE, program).host.save(tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx").graph.input[0]
    assert written == made.graph.input[0]
    wide = gp.load(made, {"x": (1, 3, 5, 9)})  # two sizes, for all that both are called `?`
    assert wide.host.example()[0].shape == (1, 3, 5, 9)


def test_scalars_stay_scalars(tmp_path: Path) -> None:
    weights = {"w": filled(4, 8), "v": filled(8, 2)}
    made = model("a = Mul(x, s) b = MatMul(a, w) y = MatMul(b, v)", "float[n,4] x, float s", "float[n,2] y", **weights)
    program = gp.load(made)
    assert [array.ndim for array in program.host.example()] == [2, 0]
    artifact = gp.compile(made, channels="0.5x", targets=("onnx",), out=tmp_path / "out")
    assert artifact.report["verification"]["used"]
    (found,) = program.host.run([np.ones((3, 4), np.float32), np.asarray(2.0, np.float32)])
    np.testing.assert_allclose(found, np.full((3, 4), 2.0) @ weights["w"] @ weights["v"], rtol=1e-4)


# ---- as given --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "shape"),
    [
        (np.zeros((1, 1, 3000), np.float32), (1, 1, 3000)),
        ([np.zeros((1, 1, 3000), np.float32)], (1, 1, 3000)),
        ((2, 1, 2500), (2, 1, 2500)),
        ([(2, 1, 2500)], (2, 1, 2500)),
        ({"x": (2, 1, 2500)}, (2, 1, 2500)),
        ({"args": (), "kwargs": {"x": np.zeros((1, 1, 1100), np.float32)}}, (1, 1, 1100)),
    ],
)
def test_an_example_or_its_sizes_are_what_the_model_is_run_at(example: object, shape: tuple[int, ...]) -> None:
    program = gp.load(sound(), example)
    assert program.host.example()[0].shape == shape
    pruned = gp.run(RECIPE, program)
    assert pruned.host.example()[0].shape == shape  # and so is what is made of it
    assert isinstance((program.graph.inputs[0].shape or ())[2], str)  # open all the same


def test_numbers_are_values_of_what_is_declared_and_sizes_of_what_is_open() -> None:
    made = model(
        "a = Cast<to=1>(rate) b = Mul(x, a) y = Add(b, one)", "float[t] x, int64[1] rate", "float[t] y", one=filled(1)
    )
    first_, second = gp.load(made, {"x": 700, "rate": 16000}).host.example()
    assert first_.shape == (700,)
    assert second.tolist() == [16000]
    assert gp.load(made, {"rate": np.array([3])}).host.example()[1].tolist() == [3]  # the other's is found


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"y": (1, 1, 2000)}, "no input `y`"),
        ({"x": (1, 2, 2000)}, r"input `x` has shape \(n, 1, t\), the example \(1, 2, 2000\)"),
        ({"x": np.zeros((1, 2000), np.float32)}, r"input `x` has shape \(n, 1, t\), the example \(1, 2000\)"),
        ({"x": 4.5}, "input `x` has open sizes, 4.5 is a number"),
        ([(1, 1, 2000), (1, 1)], "2 example inputs for 1"),
        ((1, 1, 0), r"the example \(1, 1, 0\)"),
    ],
)
def test_an_example_that_does_not_fit_is_one_clear_error(example: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gp.load(sound(), example)


def test_one_size_cannot_be_two() -> None:
    made = model("y = Add(a, b)", "float[n] a, float[n] b", "float[n] y")
    with pytest.raises(DataError, match="the open size `n` is 3 in one input and 4 in `b`"):
        gp.load(made, {"a": (3,), "b": (4,)})


def test_sizes_that_the_model_does_not_run_at_are_an_error_of_the_model() -> None:
    with pytest.raises(ModelError, match="ONNX Runtime cannot run it"):
        gp.load(sound(), {"x": (1, 1, 1000)})


FACTORY = """
import torch
def net():
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    return torch.nn.Sequential(*layers).eval(), (torch.randn(2, 6),)
"""


def test_what_was_traced_on_an_example_takes_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sized_net.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gp.load("sized_net:net", {"input_1": (5, 6)}).host.example()[0].shape == (5, 6)
    gp.load("sized_net:net").host.save(tmp_path / "net.pt2")
    assert gp.load(tmp_path / "net.pt2", [np.ones((7, 6), np.float32)]).host.example()[0].tolist() == [[1.0] * 6] * 7
    with pytest.raises(DataError, match="input `input_1` has shape"):
        gp.load(tmp_path / "net.pt2", {"input_1": (5, 7)})


# ---- on the command line -----------------------------------------------------------------------------


def run(*line: object):
    return CliRunner().invoke(main, [str(word) for word in line])


def test_every_command_that_loads_a_model_takes_sizes(tmp_path: Path) -> None:
    path, out = tmp_path / "sound.onnx", tmp_path / "out"
    onnx.save(sound(), path)
    done = run("compile", path, "--channels", "0.5x", "--input", "x=1x1x3000", "-o", out, "--passes", RECIPE)
    assert done.exit_code == 2, "one budget alone"
    done = run("compile", path, "--passes", RECIPE, "--input", "x=1x1x3000", "-o", out)
    assert done.exit_code == 0, done.output
    assert gp.load(out / "model.onnx", {"x": (1, 1, 3000)}).host.example()[0].shape == (1, 1, 3000)
    np.save(tmp_path / "data.npy", np.random.default_rng(0).standard_normal((3, 1, 2000)).astype(np.float32))
    for line in (
        ("inspect", path),
        ("bench", path, out, "--repeats", 3),
        ("sweep", path, "--data", tmp_path / "data.npy"),
        ("bisect", path, "--passes", RECIPE, "--tolerance", 1e9),
        ("apply", out / "plan.json", path, "-o", tmp_path / "again.onnx"),
    ):
        done = run(*line, "--input", "x=1x1x1500")
        assert done.exit_code == 0, done.output
        refused = run(*line, "--input", "x=1x1x900")  # they are used
        assert refused.exit_code == 1, line
        assert "ONNX Runtime cannot run it" in refused.output


@pytest.mark.parametrize("said", ["1x2", "x=", "x=1xax3", "x=abc", 'x={"a": 1}', "x=[[1], [1, 2]]"])
def test_what_is_no_size_is_wrong_usage(said: str, tmp_path: Path) -> None:
    done = run("inspect", tmp_path / "no.onnx", "--input", said)
    assert done.exit_code == 2
    assert "--input" in done.output


# ---- as they are found -------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [100, 1024, 16000])
def test_sound_is_tried_at_longer_and_longer_lengths(least: int) -> None:
    length = gp.load(sound(least)).host.example()[0].shape[2]
    assert least <= length <= 48000


def test_lengths_are_multiples_of_what_convolutions_shrink_by() -> None:
    made = model(
        "a = Conv<strides=[6]>(x, w) b = MaxPool<kernel_shape=[7], strides=[7]>(a) "
        "c = ConvTranspose<strides=[42]>(b, u) y = Add(c, x)",
        "float[n,1,t] x",
        "float[n,1,t] y",
        w=filled(4, 1, 6),
        u=filled(4, 1, 42),
    )
    host = OnnxHost(made)
    assert largest_stride(host.model) == 42
    assert host.example()[0].shape[2] % 42 == 0


def test_a_state_has_the_batch_of_what_it_goes_with() -> None:
    program = gp.load(state_model())
    assert [array.shape for array in program.host.example()] == [(2, 4), (2, 2, 3)]
    x, h = program.graph.inputs
    assert (x.shape or ())[0] == (h.shape or ())[1]


def test_positions_and_features_are_not_tried_at_the_lengths_of_sound() -> None:
    holes = [Value("ids", ("n", "t"), "int64"), Value("mel", ("n", 80, "m"))]
    tried = list(candidates(holes, {}))
    assert {sizes["n"] for sizes in tried} == {1, 2}
    assert max(sizes["t"] for sizes in tried) == 512
    assert max(sizes["m"] for sizes in tried) == 2048
    assert max(sizes["t"] for sizes in candidates([Value("x", ("n", 1, "t"))], {})) == 48000
    assert list(candidates(holes, {"n": 3, "t": 5, "m": 7})) == [{"n": 3, "t": 5, "m": 7}]


def test_sizes_that_are_given_are_likely_those_of_other_inputs_too() -> None:
    holes = [Value("image", ("a", 3, "h", "w")), Value("mask", ("b", 1, "i", "j"))]
    first = next(candidates(holes, {"a": 1, "h": 24, "w": 48}))
    assert (first["b"], first["i"], first["j"]) == (1, 24, 48)
    tried = list(candidates(holes, {"a": 1, "h": 24, "w": 48}))
    assert any((sizes["i"], sizes["j"]) == (32, 32) for sizes in tried)


# ---- as the data has them ----------------------------------------------------------------------------


def test_what_is_the_same_for_every_sample_wants_samples() -> None:
    with pytest.raises(DataError, match="`h` is to be the same for every sample, and there are none"):
        gp.load(state_model(), fixed=("h",))


@pytest.mark.parametrize("lazily", [False, True])
def test_without_an_example_it_is_the_first_of_the_data(lazily: bool) -> None:
    data = np.random.default_rng(0).standard_normal((5, 1, 3001)).astype(np.float32)
    program = gp.load(sound(), data=(data[k : k + 1] for k in range(5)) if lazily else data)
    assert program.host.example()[0].shape[1:] == (1, 3001)
    np.testing.assert_array_equal(program.host.example()[0][0], data[0])
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in program.data]), data)
    given = gp.load(sound(), {"x": (1, 1, 2000)}, data=data)
    assert given.host.example()[0].shape == (1, 1, 2000)


def test_sequences_of_different_length_are_a_list(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = [rng.standard_normal((1, n)).astype(np.float32) for n in (2000, 2000, 1500, 3000)]
    for k, sample in enumerate(data):
        np.save(tmp_path / f"{k}.npy", sample)
    np.savez(tmp_path / "all.npz", *data)
    for form in (data, [sample[None] for sample in data], tmp_path / "all.npz"):
        program = gp.load(sound(), data=form)
        assert [batch[0].shape for batch in program.data] == [(2, 1, 2000), (1, 1, 1500), (1, 1, 3000)]
        np.testing.assert_array_equal(program.data[1][0][0], data[2])
    (tmp_path / "all.npz").unlink()
    program = gp.load(sound(), data=tmp_path)
    assert [batch[0].shape for batch in program.data] == [(2, 1, 2000), (1, 1, 1500), (1, 1, 3000)]
    fitted = gp.run("group,score{by=obs},mask{channels=0.5x},propagate,compensate", program)
    assert all(check.holds for check in gp.verify(fitted))


def test_a_folder_of_archives_has_a_sample_in_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(3):
        sample = {"x": rng.standard_normal(4).astype(np.float32), "h": np.full((2, 1, 3), k, np.float32)}
        np.savez(tmp_path / f"{k}.npz", **sample)
    program = gp.load(state_model(), data=tmp_path, fixed=["h"])
    assert [batch[0].shape for batch in program.data] == [(1, 4)] * 3  # each with a state of its own
    assert [float(batch[1].max()) for batch in program.data] == [0.0, 1.0, 2.0]


def test_what_is_the_same_for_every_sample_is_said_or_seen() -> None:
    x, h = filled(70, 4), filled(2, 1, 3)
    seen = gp.load(state_model(), data={"x": x, "h": h})
    assert seen.notes == ("calibration: the same for every sample: h",)
    said = gp.load(state_model(), data={"x": x, "h": h}, fixed=["h"])
    assert said.notes == ()
    for program in (seen, said):
        assert [(a.shape, b.shape) for a, b in program.data] == [((64, 4), (2, 64, 3)), ((6, 4), (2, 6, 3))]
        np.testing.assert_array_equal(program.data[1][1], h.repeat(6, 1))
        program.host.run(program.data[1])
    with pytest.raises(DataError, match="no input `k` to be fixed"):
        gp.load(state_model(), data={"x": x, "h": h}, fixed=["k"])


def test_what_differs_from_sample_to_sample_is_not_the_same_for_all() -> None:
    inputs = [Value("x", ("n", 4)), Value("s", ("n", 3))]
    data = {"x": filled(20, 4), "s": filled(20, 3)}
    for fixed in (["s"], ["x", "s"]):
        with pytest.raises(
            DataError, match=f"`{fixed[0]}` is to be the same for every sample, and its 20 samples differ"
        ):
            batches(data, inputs, fixed)
    (batch,) = batches({"x": data["x"], "s": data["s"][:1].repeat(20, 0)}, inputs, ["s"])
    np.testing.assert_array_equal(batch[1], data["s"][:1].repeat(20, 0))
    anchors = [Value("x", ("n", 4)), Value("anchors", ("m", 3))]  # no samples: an axis of their own
    (batch,) = batches({"x": data["x"], "anchors": filled(7, 3)}, anchors, ["anchors"])
    np.testing.assert_array_equal(batch[1], filled(7, 3))


@pytest.mark.parametrize(
    ("shapes", "declared", "same"),
    [
        ([(40, 4, 8), (1, 4, 8)], [("n", 4, 8), (1, 4, 8)], {1}),
        ([(40, 4, 8), (1, 4, 8)], [(1, 4, 8), (1, 4, 8)], {1}),  # of one frame at a time
        ([(40, 4, 8), (40, 4, 8)], [("n", 4, 8), (1, 4, 8)], set()),  # a state for each
        ([(10, 16), (10, 16)], [("n", 16), (10, 16)], set()),
        ([(20, 16), (10, 16)], [("n", 16), (10, 16)], {1}),
        ([(4, 5), (3, 5)], [("n", 5), ("n", 5)], set()),  # a mistake, not a state
        ([(4, 5), ()], [("n", 5), ()], set()),  # a scalar has no samples
    ],
)
def test_what_is_seen_to_be_the_same(shapes: list[Any], declared: list[Any], same: set[int]) -> None:
    inputs = [Value(f"x{k}", shape) for k, shape in enumerate(declared)]
    assert same_for_all(shapes, inputs) == same


def test_an_archive_has_what_is_the_same_once(tmp_path: Path) -> None:
    """Although it is longer than what is read of the others at a time."""
    x, table = filled(150, 4), filled(100, 4)
    np.savez(tmp_path / "data.npz", x=x, table=table)
    found = batches(tmp_path / "data.npz", [Value("x", ("n", 4)), Value("table", (100, 4))])
    assert [batch[0].shape[0] for batch in found] == [64, 64, 22]
    for batch in found:
        np.testing.assert_array_equal(batch[1], table)
    assert getattr(found, "fixed") == ("table",)  # noqa: B009


def test_the_first_item_of_what_is_read_once_is_not_lost() -> None:
    x = filled(9, 4)
    sample, rest = first((x[k : k + 3] for k in range(0, 9, 3)), [Value("x", ("n", 4))])
    np.testing.assert_array_equal(sample[0], x[:3])
    np.testing.assert_array_equal(np.concatenate(list(rest)), x)


def test_images_of_an_open_size_need_one(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((9, 7, 3), 51, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="leaves the size of its images open") as error:
        gp.load(images([-1, 3, "h", "w"]), data=tmp_path)
    assert "--input x=1x3x224x224" in str(error.value)
    ((array,),) = gp.load(images([-1, 3, "h", "w"]), {"x": (1, 3, 24, 32)}, data=tmp_path).data
    assert array.shape == (1, 3, 24, 32)
    np.testing.assert_allclose(array, 0.2, rtol=1e-6)


# ---- the files that people have ----------------------------------------------------------------------


@needs_files
@pytest.mark.parametrize(
    ("name", "example", "groups"),
    [
        ("needs_long_input", {"x": (1, 16000)}, 1),
        ("needs_long_input", np.zeros((1, 16000), np.float32), 1),
        ("needs_long_input", None, 1),
        ("minus_one_batch", None, 3),
        ("scalar_input", None, 1),
        ("state_and_frames", None, 1),
    ],
)
def test_cases(name: str, example: object, groups: int, tmp_path: Path) -> None:
    assert SHARED is not None
    path, data = SHARED / f"cases/onnx/{name}.onnx", SHARED / f"cases/onnx/{name}.npz"
    artifact = gp.compile(path, example, recipe=RECIPE, data=data if data.is_file() else None, measure=False)
    assert artifact.report["verification"]["used"]
    assert len(artifact.report["groups"]) == groups
    artifact.program.host.save(tmp_path / "out.onnx")
    before, after = onnx.load(path), onnx.load(tmp_path / "out.onnx")
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    assert before.opset_import == after.opset_import
