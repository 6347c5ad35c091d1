"""The mistakes that newcomers make: each ends with one line that says where and what, numbers where there are any, a
hint, no traceback, and an exit code that scripts see; and nothing is written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import place
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import graphprune as gp
from graphprune.backends.onnxruntime import time_ops
from graphprune.cli import main
from graphprune.errors import GraphpruneError


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, furnished once: no mistake may write into it."""
    folder, before, path = tmp_path_factory.mktemp("newcomer"), Path.cwd(), list(sys.path)
    place.furnish(folder)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.path[:] = path
    sys.modules.pop("nets", None)


def run(line: str) -> Result:
    return CliRunner().invoke(main, shlex.split(line), prog_name="graphprune")


def left(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


# Of compile, unless another command is named: the arguments, what the error says, what the hint says.
NET = "nets.py:net"
TAYLOR = "--passes 'group,score{by=taylor},mask{macs=0.5x},propagate'"
MISTAKES: list[tuple[str, str, str]] = [
    # ---- models that are none
    ("net.onxx", "net.onxx: no such file", "did you mean `net.onnx`?"),
    ("absent/model.onnx", "absent/model.onnx: no such file", "there is no folder absent"),
    ("absent.pt2", "absent.pt2: no such file", "looked in "),
    ("text.onnx", "text.onnx: not an ONNX file, or a truncated one", "half a download"),
    ("empty.onnx", "empty.onnx: not an ONNX model, or an empty one", "torch.onnx.export"),
    ("text.pt2", "text.pt2: not a .pt2 file", "torch.export.save"),
    ("readme.txt", "readme.txt: not an .onnx or .pt2 file", "path/to/file.py:factory"),
    ("state.pth", "state.pth: a checkpoint (torch.save)", "give net.py:net"),
    ("nets.py:leaves", "nets.py:leaves: ", "must return (module, example_inputs)"),
    (f"{NET} --eval nets.py:judges", "nets.py:judges: ", "it is called with the network"),
    ("nets.py:infinite", "weight `conv.weight` has 1 infinite of 216 numbers", "`group{freeze=conv}`"),
    ("empty", "empty: a folder, not a model", "give a .onnx file"),
    ("nets.py", "nets.py: a Python file", "give nets.py:factory"),
    ("net.py:net", "net.py: no such file", "did you mean `nets.py`?"),
    ("nets.py:nett", "nets.py:nett: `nett` is not there", "did you mean `net`?"),
    ("nets.py:A_NUMBER", "`A_NUMBER` is no function but of type int", "only_a_module"),
    ("no.module:net", "No module named 'no'", "path/to/module.py:net"),
    ("nets.py:only_a_module", "nets.py:only_a_module returned Net", "(module, example_inputs)"),
    ("nets.py:wants_arguments", "missing 1 required positional argument", "called without arguments"),
    ("nets.py:fails", "nets.py:87: TypeError", "(module, example_inputs)"),
    ("nets.py:wrong_example", "expected input[", "the example inputs have other sizes"),
    ("syntax.py:net", "syntax.py:1: SyntaxError", "does `python syntax.py` run?"),
    ("imports.py:net", "imports.py:1: ModuleNotFoundError: No module named 'no_such_package'", sys.executable),
    ("nets.py:with_nan", "weight `conv.weight` has 1 NaN of 216 numbers", "computes nothing"),
    ("nets.py:nothing_to_prune", "nothing can be pruned: all 2 dims are frozen", "graphprune inspect"),
    ("''", "an empty name is no model", "package.module:factory"),
    ("https://example.com/net.onnx", "https://example.com/net.onnx: an address", "download the file"),
    ("hf:absent", "absent: no such folder", "save_pretrained(FOLDER)"),
    # ---- inputs and data
    ("net.onnx --input x=1x6", "no input `x`", "its inputs: input"),
    ("net.onnx --input input=1x6x6", "has shape (N, 6), the example (1, 6, 6)", "sizes that are letters may be any"),
    (f"{NET} --data absent.npz", "absent.npz: no such file", "looked in "),
    (f"{NET} --data empty", "empty: no calibration data: an empty folder", "samples are .npy or .npz files, or images"),
    (f"{NET} --data texts", "no .npy, .npz or image, but a.txt", "samples are"),
    (
        f"{NET} --data shape.npz",
        "shape.npz: input `x` takes Nx3x8x8, the calibration array is 4x3x9x9",
        "samples are on axis 0",
    ),
    (f"{NET} --data last.npz", "takes Nx3x8x8, the calibration array is 16x8x8x3", "looks like NHWC"),
    (f"{NET} --data bytes.npz", "`x` is float32, the calibration array is uint8", "convert (and normalise)"),
    ("nets.py:two --data names.npz", "the calibration data has a, c, the model takes a, b", "no array for b"),
    ("nets.py:two --data counts.npz", "different numbers of samples: [4, 5]", "--fixed NAME"),
    ("nets.py:two --data loose", "loose: a folder of single arrays feeds one input", "write an .npz"),
    (f"{NET} --data nan.npz", "`x` has 768 NaN or infinite values", "leave these samples out"),
    (f"{NET} --data pickled.npz", "pickled.npz: not an .npz or .npy file of plain arrays", "numpy.savez"),
    (f"{NET} --data not.npz", "not.npz: not an .npz", "numpy.savez"),
    (f"{NET} --data table.csv", "table.csv: not an .npz", "numpy.savez"),
    (f"{NET} --data corrupt", "corrupt/a.png: not an image", "remove it"),
    (f"{NET} --fixed x", "no data was given", "give data too"),
    (f"{NET} --fixed y --data x.npz", "no input `y` to be fixed", "the model takes x"),
    (f"{NET} --mean 0.5", "no data was given", "--data FOLDER"),
    (f"{NET} --mean 0.5 --data x.npz", "are for a folder of images", "normalise them"),
    (f"{NET} --layout NHWC --data loose", "loose/a.png: as NHWC `x` has 8 channels", "the other layout"),
    (f"{NET} --mean 0.5,0.5 --data loose", "mean has 2 numbers", "one for each channel"),
    # ---- losses
    (f"{NET} --data x.npz {TAYLOR}", "in `score{by=taylor}` after `group`: this criterion takes a loss", "--loss"),
    (
        f"{NET} --data x.npz --loss crossentropy {TAYLOR}",
        "unknown loss `crossentropy`",
        "did you mean `cross_entropy`?",
    ),
    (f"{NET} --data x.npz --loss mse {TAYLOR}", "the calibration data has no more", "an .npz with `labels`"),
    (f"{NET} --data loose --loss mse {TAYLOR}", "loose/a.png: in no folder of its own", "a folder a class"),
    (f"{NET} --data labelled.npz --loss mse", "no pass of the recipe reads it", "score{by=taylor}"),
    (f"{NET} --data short.npz --loss cross_entropy {TAYLOR}", "of 16 samples the labels are 4", "one label for each"),
    (f"{NET} --data labelled.npz --loss cross_entropy {TAYLOR}", "Target 5 is out of bounds", "int64 from 0 to 14"),
    (f"{NET} --loss mse {TAYLOR}", "a loss needs calibration data", "give data too"),
    # ---- names
    (f"{NET} --freeze headd", "`headd` matches no group, layer or parameter", "did you mean `head`?"),
    (f"{NET} --only 'blocks.*'", "`blocks.*` matches no group", "graphprune inspect"),
    (f"{NET} --width nope=3", "`nope` matches no group that can be cut", "graphprune inspect"),
    (f"{NET} --width conv=30", "`conv` has 8 channels, not 30", "give 8 or fewer"),
    (f"{NET} --width head=3", "`head` cannot have a width: reaches the graph output", "graphprune inspect"),
    (f"{NET} --freeze ''", "freeze has an empty name", "`*` matches everything"),
    # ---- recipes
    (f"{NET} --passes auto", "unknown pass `auto`", "leave it out"),
    (f"{NET} --recipe ''", "an empty name is no recipe", "2ssp"),
    (f"{NET} --recipe texts", "texts: not a recipe (Is a directory)", "[[pass]] tables"),
    (f"{NET} --recipe x.npz", "x.npz: not a recipe (no text)", "[[pass]] tables"),
    ("bisect nets.py:net --recipe 2spp", "`2spp` is no published recipe", "did you mean `2ssp`?"),
    (f"{NET} --passes groop", "unknown pass `groop`", "did you mean `group`?"),
    (f"{NET} --passes 'group,score{{bye=l2}}'", "`score` has no option `bye`", "did you mean `by`?"),
    (f"{NET} --passes 'group,score{{by=l3}}'", "`by` cannot be `l3`", "known: aap"),
    (f"{NET} --passes 'group{{'", "cannot read the recipe at `group{`", "write it as"),
    (f"{NET} --passes 'group,score{{by=obs}}'", "step 2 `score{by=obs}` needs calibration data", "--data FILE"),
    (f"{NET} --passes 'mask{{macs=0.5x}},propagate'", "step 1 `mask` needs Groups", "put `group` before it"),
    (f"{NET} --passes 'group,score,mask{{macs=0.5x}}'", "nothing after it cuts the rest", "put `propagate` after it"),
    (f"{NET} --passes group,score,mask,propagate", "`mask` takes one budget, not 0", "macs=0.5x"),
    (
        f"{NET} --passes 'group,score,mask{{channels=0.5x of=given}},propagate'",
        "channels are a share of every group as it is now",
        "leave out `of`",
    ),
    (f"{NET} --passes 'group,score,mask{{macs=0.5x allocate=globl}},propagate'", "`globl`", "did you mean `global`?"),
    (
        f"{NET} --data x.npz --passes 'group,score,mask{{macs=0.5x}},compensate,propagate'",
        "step 5 `propagate` needs Groups, and `compensate` before it rewrites",
        "put `group` before it again, or `propagate` before `compensate`",
    ),
    (f"{NET} --recipe ald --params 0.6x", "`ald` is no published recipe", "did you mean `alds`?"),
    (f"{NET} --recipe absent.toml", "absent.toml: no such file", "looked in "),
    (f"{NET} --recipe broken.toml", "broken.toml: the recipe is not TOML", "[[pass]]"),
    (f"{NET} --recipe unknown.toml", "unknown.toml: unknown pass `groop`", "did you mean `group`?"),
    (f"{NET} --print-after maks", "unknown pass `maks`", "did you mean `mask`?"),
    # ---- budgets
    (f"{NET} --macs 1.5x", "macs=1.5x is not a budget", "between 0 and 1: macs=0.5x, 50%"),
    (f"{NET} --macs 1x", "macs=1x is not a budget", "between 0 and 1"),
    (f"{NET} --macs half", "macs=half is not a budget", "1.5G"),
    (f"{NET} --macs 0", "macs=0 is not a budget", "macs=0.5x"),
    (f"{NET} --channels 200k", "channels=200k is not a budget", "channels=0.5x"),
    (f"{NET} --params 3MB", "params=3MB is not a budget", "200k"),
    (f"{NET} --macs 0.001x", "0.001x MACs cannot be met: with every group at its floor 0.0455x", "lower `floor`"),
    (f"{NET} --macs 10G", "macs=10G is no less than the network has: 50,728 for one sample", "ask for less"),
    (f"{NET} --memory 400kB", "memory=400kB is no less than the network has: 4.096 kB for one sample", "ask for less"),
    (f"{NET} --memory 100B", "x remain (1.024 kB of 4.096 kB for one sample; 100 B was asked for)", "lower `floor`"),
    (f"{NET} --size 10B", "x remain (192 B of 3.412 kB; 10 B was asked for)", "lower `floor`"),
    (f"{NET} --latency fast", "latency=fast is not a budget", "12ms"),
    (f"{NET} --tune soon", "`soon` is not a tuning budget", "10min"),
    # ---- targets, tables, figures
    (f"{NET} --target toaster", "unknown target `toaster`", "known: "),
    (f"{NET} --target tvmm", "unknown target `tvmm`", "did you mean `tvm`?"),
    (
        f"{NET} --target 'tvm{{growth=-1}}'",
        "option `growth` is a share of the weights, 0 or more, not -1.0",
        "growth=1",
    ),
    (f"{NET} --target 'tvm{{layot=NCHW}}'", "target `tvm` has no option `layot`", "did you mean `layout`?"),
    (f"{NET} --target onnx --target onnx", "two targets are called `onnx`", "give it once"),
    (f"{NET} --target board.toml", "board.toml: base `aarch65` is not a board", "did you mean `aarch64`?"),
    (f"{NET} --target absent.toml", "absent.toml: no such file", "looked in "),
    (f"{NET} --rpc pi:9090 --target torch", "rpc=pi:9090 names a device, and no target is of one", "--target rasp"),
    (f"{NET} --latency 0.5x --table absent.jsonl", "absent.jsonl: cannot be read", "graphprune record"),
    (f"{NET} --latency 0.5x --table table.jsonl", "table.jsonl: not a latency table", "graphprune record"),
    (f"{NET} --eval figure", "`figure` names no function", "package.module:function"),
    (f"{NET} --eval nets.py:figur", "`figur` is not there", "did you mean `figure`?"),
    (f"{NET} --eval nets.py:figure", "nets.py:figure returned 'good'", "return a number"),
    (f"{NET} --eval nets.py:broken_figure", "RuntimeError: no test set", "an nn.Module"),
    # ---- outputs
    (f"{NET} -o theirs --force", "theirs exists and was not written by graphprune", "remove it yourself"),
    (f"{NET} -o empty", "empty exists", "--force"),
    (f"{NET} -o readme.txt/out", "readme.txt/out cannot be written", "readme.txt is a file"),
    (f"{NET} -o /proc/graphprune/out", "/proc/graphprune/out cannot be written", "choose another path"),
    (f"{NET} --dump out/d", "are both written, and one holds the other", "choose another path"),
    # ---- other commands
    ("apply absent nets.py:net -o p.pt2", "absent: no such file", "the folder that `graphprune compile` wrote"),
    ("apply plan.json nets.py:net -o p.pt2", "plan.json: not a plan of version 1 or 2", "graphprune compile"),
    ("apply readme.txt nets.py:net -o p.pt2", "readme.txt: not a plan", "plan.json"),
    ("bench ned.onnx net.onnx", "ned.onnx: no such file", "did you mean `net.onnx`?"),
    ("bench empty net.onnx", "empty: no model.so, model.onnx or model.pt2", "graphprune compile"),
    ("sweep nets.py:net --data x.npz --by obss", "`by` cannot be `obss`", "did you mean `obs`?"),
    ("bisect nets.py:net --passes group --tolerance -1", "tolerance -1 is not a relative error", "1e-3"),
    ("record nets.py:net --target torch -o t.jsonl", "`torch` does not time single ops", "--target ort"),
    ("passes scor", "unknown pass `scor`", "did you mean `score`?"),
]


MISTAKES += [  # of other commands
    (f"{NET} -o small.onnx", "small.onnx: a folder is written", "give small"),
    ("curve nets.py:net --data x.npz --budgets half -o c", "macs=half is not a budget", "macs=0.5x"),
    ("curve nets.py:net --data x.npz --budgets 0.9..0.3 -o c", "7 points from 0.9 to 0.3", "2 to 99 points"),
    ("curve nets.py:net --data x.npz --budgets 0.001,0.002 -o c", "no budget can be met: ", "lower `floor`"),
    ("curve nets.py:net -o c", "nothing says that", "give data"),
    ("curve nets.py:net --data x.npz -o theirs", "theirs exists and holds no curve", "another path"),
    ("curve net.onxx --data x.npz --json -o c", "net.onxx: no such file", "did you mean `net.onnx`?"),
    ("sweep nets.py:net --data absent.npz --json", "absent.npz: no such file", "looked in "),
    ("inspect nets.py:net --graph absent/x.svg", "absent/x.svg cannot be written", "make the folder"),
    ("inspect theirs", "theirs: a folder, not a model", "give a .onnx file"),
    ("new pass group -o package", "there is a pass `group` already", "take another name"),
    ("new pass 3x -o package", "`3x` is no name for a pass", "small letters"),
    ("new target mine -o theirs --force", "theirs exists and was not written by graphprune", "remove it yourself"),
    ("apply theirs nets.py:net -o a", "theirs/plan.json: no such file", "graphprune compile"),
    ("apply nets.py:net net.onnx -o a", "nets.py:net: no such file", "plan.json"),
    ("bench net.onnx nets.py:net", "nets.py:net: a function, and files are measured", "torch.export.save"),
    ("bench net.onnx x.npz", "nothing known runs `.npz`", ".onnx, .pt2"),
    ("bench net.onnx net.onnx --input x=1x6 --json", "no input `x`", "its inputs: input"),
    ("record nets.py:net --target aarch64 -o t.jsonl", "no device to time ops on", "--rpc HOST:PORT"),
    ("record nets.py:net --target onnx -o x.npz", "x.npz: not a latency table", "graphprune record"),
    ("bisect nets.py:net --passes group --tolerance -1", "tolerance -1 is not a relative error", "1e-3"),
    ("passes groop", "unknown pass `groop`", "did you mean `group`?"),
]


@pytest.mark.parametrize(("line", "says", "hint"), MISTAKES, ids=[line[:60] for line, *_ in MISTAKES])
def test_a_mistake_is_explained(line: str, says: str, hint: str, here: Path) -> None:
    if line.split(" ")[0] not in main.commands:
        line = f"compile {line}{'' if ' -o ' in line else ' -o out'}"
    before = left(here)
    found = run(line)
    assert found.exit_code == 1 and not found.stdout, found.output
    error, _, after = found.stderr.partition("  hint: ")
    cause = [one for one in error.splitlines() if one.startswith("error: ")]
    assert len(cause) == 1 and says in cause[0], found.stderr
    assert hint in after and len(after.strip().splitlines()) <= 2, found.stderr  # a recipe file is shown in two
    assert "Traceback" not in found.output and "Errno" not in found.output and "site-packages" not in error
    assert left(here) == before


WRONG_USAGE = [
    (f"compile {NET} --mac 0.5x -o out", "No such option '--mac'"),
    (f"compile {NET} --macs 0.5x --params 0.5x -o out", "one budget at a time, not --macs and --params"),
    (f"compile {NET} --passes group --macs 0.5x -o out", "a recipe has its budget in `mask{...}`"),
    (f"compile {NET} --passes group --recipe unknown.toml -o out", "take one"),
    (f"compile {NET} --floor 2 -o out", "'2' is not a share"),
    (f"compile {NET} --width conv -o out", "--width takes NAME=24 or NAME=0.5x, not 'conv'"),
    (f"compile {NET} --grain 0 -o out", "0 is not in the range x>=1"),
    (f"compile {NET} --seed x -o out", "--seed"),
    (f"compile {NET} --seed -1 -o out", "--seed"),
    ("compile -o out", "Missing argument 'MODEL'"),
    ("apply plan.json", "Missing argument 'MODEL'"),
    ("bench net.onnx net.onnx --threads 0", "--threads"),
    (f"compile {NET} --input x -o out", "`x` is not NAME=SIZES"),
    (f"compile {NET} --input x=wide -o out", "neither sizes such as 1x3x320x320 nor a value"),
    (f"compile {NET} --mean grey -o out", "'grey' is not numbers with commas between"),
    (f"compile {NET} --layout NWHC -o out", "'NCHW', 'NHWC'"),
    (f"compile {NET}", "'-o'"),
    (f"compile {NET} --dry-run --dump d", "--dry-run writes nothing"),
    (f"compile {NET} -q -v -o out", "one of --quiet and --verbose"),
    (f"compile {NET} --width conv=4 --width conv=6 -o out", "--width gives `conv` twice: 4 and 6"),
    ("inspect nets.py:net --graph nets.py", "'nets.py' does not end in .svg"),
    ("inspect nets.py:net --json --text", "one of --json and --text"),
    ("sweep nets.py:net --data x.npz --plot a.png", "'a.png' does not end in .svg"),
    ("curve nets.py:net --data x.npz --of flops -o c", "'flops' is not one of 'channels'"),
    ("new passs foo", "'passs' is not one of 'pass', 'criterion', 'target'"),
    ("bench net.onnx", "Missing argument 'B'"),
    ("compiel net.onnx", "Did you mean 'compile'?"),
    ("inspect", "Missing argument 'MODEL'"),
    ("sweep nets.py:net", "--data"),
    ("bisect nets.py:net", "one of --passes and --recipe"),
]


@pytest.mark.parametrize(("line", "says"), WRONG_USAGE)
def test_wrong_usage_says_which(line: str, says: str, here: Path) -> None:
    before = left(here)
    found = run(line)
    assert found.exit_code == 2 and says in found.stderr and not found.stdout, found.output
    assert found.stderr.startswith("Usage: graphprune") and "--help" in found.stderr
    assert left(here) == before


# ---- Python ------------------------------------------------------------------------------------------

X = torch.zeros(2, 6)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def program() -> gp.Program:
    return gp.load(net(), X)


IN_PYTHON: dict[str, tuple[Any, str, str]] = {
    "no example inputs": (lambda: gp.compile(net()), "a module needs example inputs", "torch.randn"),
    "not a model": (lambda: gp.compile(5), "int is not a model", "nn.Module"),
    "a state dict": (lambda: gp.compile(net().state_dict(), X), "OrderedDict is not a model", "nn.Module"),
    "an example that does not fit": (lambda: gp.load(net(), torch.zeros(2, 7)), "could not trace it", "other sizes"),
    "two budgets": (lambda: gp.compile(net(), X, macs=0.5, params=0.5), "one budget or a recipe, not 2", "mask{...}"),
    "a share above 1": (lambda: gp.compile(net(), X, macs=1.5), "macs=1.5 is not a budget", "macs=0.5x"),
    "no share": (lambda: gp.compile(net(), X, macs=0), "macs=0 is not a budget", "macs=0.5x"),
    "a negative share": (lambda: gp.compile(net(), X, channels=-0.5), "channels=-0.5 is not", "channels=0.5x"),
    "a word": (lambda: gp.compile(net(), X, macs="half"), "macs=half is not a budget", "1.5G"),
    "a foreign module": (lambda: gp.compile(net(), X, ignore=[nn.Linear(2, 2)]), "no module within", "[model.head]"),
    "freeze beside a recipe": (
        lambda: gp.compile(net(), X, recipe="group", freeze="0"),
        "`group` says itself what is frozen",
        "group{freeze=",
    ),
    "a width of nothing": (lambda: gp.compile(net(), X, width={"0": 0}), "`width` cannot be `0=0`", "conv1=24"),
    "a name that is none": (
        lambda: gp.compile(net(), X, freeze="head"),
        "`head` matches no group",
        "graphprune inspect",
    ),
    "an empty recipe": (lambda: gp.run("", program()), "cannot read the recipe", "write it as"),
    "a recipe misspelt": (lambda: gp.run("group,skore", program()), "unknown pass `skore`", "did you mean `score`?"),
    "a fact that is not known": (lambda: gp.run("propagate", program()), "needs Groups", "put `group` before it"),
    "data of another shape": (lambda: gp.load(net(), X, data=np.zeros((4, 7), "f")), "is 4x7", "axis 0"),
    "data of no kind": (lambda: gp.load(net(), X, data=5), "the calibration data is empty", "a few hundred"),
    "a loss without labels": (lambda: gp.load(net(), X, data=X, loss="mse"), "has no more", "labels"),
    "a plan that is none": (lambda: gp.apply({"hello": 1}, net(), X), "the plan: unknown name 'hello'", "known: "),
    "in place of ONNX": (lambda: gp.apply({}, "net.onnx", in_place=True), "in_place cuts an nn.Module", "in_place"),
    "a target misspelt": (lambda: gp.compile(net(), X, targets=["onx"]), "unknown target `onx`", "`onnx`"),
    "a floor of 2": (lambda: gp.compile(net(), X, floor=2), "floor=2.0 is not a share", "from 0 to 1"),
    "no name": (lambda: gp.load(""), "an empty name is no model", ".onnx"),
    "arrays for tensors": (lambda: gp.load(net(), X.numpy()), "could not trace it", "torch.from_numpy"),
    "a recipe that is a list": (lambda: gp.compile(net(), X, recipe=["group"]), "`group` is no recipe", "'group,score"),
    "modules for names": (lambda: gp.compile(net(), X, freeze=[*net()]), "names, not Linear", "ignore=[model.head]"),
    "text for a list": (lambda: gp.compile(net(), X, targets="onnx"), "targets is a list", "['onnx']"),
    "a seed below 0": (lambda: gp.load(net(), X, seed=-1), "seed=-1 is no whole number", ""),
    "a module for a program": (lambda: gp.run("group", net()), "takes a Program, not Sequential", "gp.load("),
    "an artifact for a program": (lambda: gp.verify(net()), "verify takes a Program", "artifact.program"),
    "one mean": (lambda: gp.Images(mean=0.5), "mean=0.5 is not numbers", "mean=(0.5,)"),
    "budgets of another unit": (
        lambda: gp.curve(net(), X, data=X, budgets=[12, 0.5], unit="channels", out="c"),
        "channels=12 is not a budget",
        "channels=0.5x",
    ),
    "rebuilt from nowhere": (lambda: gp.rebuild("nowhere", net()), "widths.json: no such file", "out="),
    "a figure that is text": (
        lambda: gp.compile(net(), X, evaluate=lambda model: "good", measure=False),
        "returned 'good'",
        "a number",
    ),
}


@pytest.mark.parametrize("what", IN_PYTHON)
def test_a_mistake_in_python(what: str, here: Path) -> None:
    wrong, says, hint = IN_PYTHON[what]
    before = left(here)
    with pytest.raises(GraphpruneError) as caught:
        wrong()
    assert says in caught.value.message.splitlines()[0] and hint in (caught.value.hint or ""), str(caught.value)
    assert left(here) == before


def test_a_table_that_no_budget_reads_is_refused(tmp_path: Path) -> None:
    gp.record(net(), "onnx", X, out=tmp_path / "times.jsonl")
    with pytest.raises(GraphpruneError, match=r"times.jsonl: a latency table, and no budget of latency"):
        gp.compile(net(), X, table=tmp_path / "times.jsonl", macs=0.5)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setitem(sys.modules, "tvm", None)
    found = run(f"compile {NET} --target tvm -o out")
    assert found.exit_code == 1 and "graphprune[tvm]" in found.stderr, found.output


# ---- what was silent -----------------------------------------------------------------------------------


def well(line: str) -> str:
    found = run(line)
    assert found.exit_code == 0, found.output
    return " ".join(found.output.split())


def test_nothing_is_silent(here: Path, tmp_path: Path) -> None:
    """Each of these once went by without a word."""
    said = well(f"compile {NET} -o {tmp_path / 'a'}")
    assert "Asked for 0.5x of the multiply-accumulates (the default: no budget was given), got 0.4" in said
    assert "without one, half of the multiply-accumulates remain" in " ".join(run("compile --help").stdout.split())
    assert "NOT known: no data was given" in said  # how close it is
    assert "NOTHING was pruned: every group has all its channels after `group`" in well(
        f"compile {NET} --passes group -o {tmp_path / 'b'}"
    )
    np.savez(tmp_path / "more.npz", x=np.zeros((16, 3, 8, 8), np.float32), mask=np.zeros(16))
    assert "no input reads `mask` of the data" in well(f"compile {NET} --data {tmp_path / 'more.npz'} --dry-run")
    assert "the network never reads `mask`" in well("inspect nets.py:unused")
    assert run(f"compile {NET} --freeze headd -o out").exit_code == 1
    assert "The code for aarch64 was NOT checked" in well(
        f"compile {NET} --target aarch64{{link=false}} -o {tmp_path / 'c'}"
    )
    np.savez(tmp_path / "one.npz", x=np.ones((16, 3, 8, 8), np.float32))
    assert "the 16 samples of `x` are all the same" in well(f"compile {NET} --data {tmp_path / 'one.npz'} --dry-run")
    named = {"first": np.zeros((4, 3, 8, 8), np.float32), "second": np.ones((4, 3, 8, 8), np.float32)}
    np.savez(tmp_path / "named.npz", **named)
    said = well(f"compile {NET} --data {tmp_path / 'named.npz'} --dry-run")
    assert "2 arrays by other names are all taken as samples of `x`" in said
    raw = np.random.default_rng(0).integers(0, 256, (16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "raw.npz", x=raw)
    assert "whole numbers from 0 to 255" in well(f"compile {NET} --data {tmp_path / 'raw.npz'} --dry-run")


def test_groups_of_an_onnx_file_have_names_that_people_know(here: Path, tmp_path: Path) -> None:
    """Exporters number the weights that they transpose; the layer is known by its bias, or its node."""
    import onnx

    model = onnx.load("net.onnx")
    numbered = {"w1": "val_0", "w2": "onnx::MatMul_12"}
    for weight in model.graph.initializer:
        weight.name = numbered[weight.name]
    for node in model.graph.node:
        node.input[:] = [numbered.get(name, name) for name in node.input]
    model.graph.node[0].name = "/up/MatMul"
    onnx.save(model, tmp_path / "numbered.onnx")
    said = run(f"inspect {tmp_path / 'numbered.onnx'}").stdout
    assert re.search(r"^/up/MatMul +16 ", said, re.M) and "node_172: reaches the graph output" in said
    assert "val_0" not in said and "onnx::" not in said
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(16, np.float32), "up.bias"))
    add = onnx.helper.make_node("Add", ["val_170", "up.bias"], ["sum"], name="add")
    model.graph.node.insert(1, add)
    model.graph.node[2].input[0] = "sum"
    onnx.save(model, tmp_path / "biased.onnx")
    assert re.search(r"^up +16 ", run(f"inspect {tmp_path / 'biased.onnx'}").stdout, re.M)


def test_a_name_is_one_line_whatever_is_in_it(here: Path, tmp_path: Path) -> None:
    model = onnx.load("net.onnx")
    old, new = model.graph.initializer[0].name, "w\nerror: a line of somebody else's"
    model.graph.initializer[0].name = new
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    onnx.save(model, tmp_path / "lines.onnx")
    assert not any(line.startswith("error") for line in well(f"inspect --all {tmp_path / 'lines.onnx'}").splitlines())


def test_a_path_that_is_no_text_is_refused(here: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["compile", NET, "-o", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")])
    assert done.exit_code == 1 and "its name is not UTF-8" in done.stderr


def test_choices_between_two_numbers_are_proven(here: Path, tmp_path: Path) -> None:
    assert "The cut is exact" in well(f"compile nets.py:chooses --channels 0.5x -o {tmp_path / 'out'}")


def test_times_of_ops_that_were_not_written_whole_are_one_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_ops, "json", SimpleNamespace(loads=lambda text: json.loads("[")))
    done = run("compile net.onnx --channels 0.5x -o full")
    assert done.exit_code == 1 and "not written whole" in done.stderr and "TMPDIR" in done.stderr
    assert not (here / "full").exists()


def test_what_cannot_be_printed_is_one_error(here: Path) -> None:
    line = [sys.executable, "-m", "graphprune", "inspect", "net.onnx"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr
