"""The code for devices under what finds wrong memory accesses, undefined behaviour and races; and as strict C99."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends import target
from graphprune.backends.edge import c_writer
from graphprune.backends.onnxruntime.target import Onnx
from graphprune.ir.program import Program

RUNTIME = Path(c_writer.__file__).with_name("device")
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
COMPILERS = ["gcc", "clang"]
SANITIZED = "-g -O1 -fno-omit-frame-pointer"


class Wide(nn.Module):
    """A concatenation of 70 values, which are inputs, so that nothing can be fused with it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(140, 3)

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat(parts, 1))


class Image(nn.Module):
    """Strided, depthwise and transposed convolutions, a sum, and two outputs, one of them an input's view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.stem(x).relu()
        return self.head(self.up(y + self.deep(y)).relu()), x.flatten(1)


class Tokens(nn.Module):
    """Attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.out = nn.Linear(6, 18), nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.out(torch.softmax(q @ k.transpose(1, 2), -1) @ v + x)


NETWORKS: dict[str, tuple[type[nn.Module], list[tuple[int, ...]]]] = {
    "wide": (Wide, [(2, 2)] * 70),
    "image": (Image, [(2, 3, 9, 9)]),
    "tokens": (Tokens, [(2, 7, 6)]),
}


def need(program: str) -> str:
    if not (found := shutil.which(program)):
        pytest.skip(f"no {program} on the PATH")
    return found


def emitted(name: str, folder: Path) -> Program:
    """The sources of a network as C."""
    pytest.importorskip("tvm")
    make, shapes = NETWORKS[name]
    torch.manual_seed(0)
    program = gp.load(make().eval(), tuple(torch.randn(*shape) for shape in shapes))
    target("c{link=false}").emit(program, folder)
    return program


def build(folder: Path, compiler: str, flags: str) -> None:
    done = subprocess.run(
        ["sh", "build.sh"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "CC": compiler, "CFLAGS": flags},
    )
    if done.returncode and ("cannot find" in done.stderr or "unrecognized" in done.stderr):
        pytest.skip(f"{compiler} {flags}: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr


def outputs(folder: Path, program: Program, *before: str, threads: int = 1) -> list[np.ndarray]:
    """What the program computes, run by ``before``; nothing may be said on stderr."""
    batch, want = program.host.example(), Onnx().run(program, program.host.example())
    files = []
    for k, array in enumerate(batch):
        array.tofile(folder / f"input{k}.bin")
        files.append(str(folder / f"input{k}.bin"))
    line = [*before, str(folder / "run"), str(folder), "-n", "3", "-t", str(threads), *files]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"})
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[:3000]
    return [np.fromfile(folder / f"output{k}.bin", a.dtype).reshape(a.shape) for k, a in enumerate(want)]


def right(folder: Path, program: Program, *before: str, threads: int = 1) -> None:
    for got, want in zip(
        outputs(folder, program, *before, threads=threads), Onnx().run(program, program.host.example()), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
def test_seventy_concatenated_values_are_computed_right(tmp_path: Path) -> None:
    need("gcc")
    program = emitted("wide", tmp_path)
    build(tmp_path, "gcc", "-O1")
    right(tmp_path, program)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_strict_c99(compiler: str, network: str, tmp_path: Path) -> None:
    need(compiler)
    program = emitted(network, tmp_path)
    build(tmp_path, compiler, " ".join(["-O1", *STRICT]))
    right(tmp_path, program)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sanitizer", ["address", "undefined", "thread"])
def test_sanitizers_find_nothing(sanitizer: str, network: str, tmp_path: Path) -> None:
    need("gcc")
    program = emitted(network, tmp_path)
    # ThreadSanitizer does not know what orders the threads of OpenMP: threads are tried by gp_run side by side below.
    build(tmp_path, "gcc", f"{SANITIZED} -fsanitize={sanitizer} -fno-sanitize-recover=all")
    right(tmp_path, program)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_valgrind_finds_nothing(network: str, tmp_path: Path) -> None:
    need("gcc"), need("valgrind")
    program = emitted(network, tmp_path)
    build(tmp_path, "gcc", "-g -O1")
    right(tmp_path, program, "valgrind", "-q", "--error-exitcode=9")


SIDE_BY_SIDE = r"""
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"

static void *weights, *input, *first;

static void *work(void *unused) {
  const void *inputs[1];
  void *outputs[1], *arena = NULL;
  (void)unused;
  inputs[0] = input;
  outputs[0] = malloc(model.outputs[0].bytes);
  if (posix_memalign(&arena, 64, model.arena_bytes + 64)) abort();
  for (int k = 0; k < 20; ++k) {
    if (gp_run(&model, weights, inputs, outputs, arena)) abort();
    if (memcmp(outputs[0], first, model.outputs[0].bytes)) abort();
  }
  free(arena), free(outputs[0]);
  return NULL;
}

int main(void) {
  const void *inputs[1];
  void *outputs[1], *arena = NULL;
  pthread_t threads[4];
  if (posix_memalign(&weights, 64, model.weights_bytes + 64)) abort();
  if (posix_memalign(&arena, 64, model.arena_bytes + 64)) abort();
  memset(weights, 0, model.weights_bytes);
  input = calloc(1, model.inputs[0].bytes), first = malloc(model.outputs[0].bytes);
  inputs[0] = input, outputs[0] = first;
  if (gp_run(&model, weights, inputs, outputs, arena)) abort();
  for (int k = 0; k < 4; ++k) pthread_create(&threads[k], NULL, work, NULL);
  for (int k = 0; k < 4; ++k) pthread_join(threads[k], NULL);
  return 0;
}
"""


@pytest.mark.slow
def test_runs_side_by_side_do_not_race(tmp_path: Path) -> None:
    """gp_run says that it is reentrant."""
    need("gcc")
    emitted("tokens", tmp_path)
    (tmp_path / "side.c").write_text("#define _POSIX_C_SOURCE 200112L\n" + SIDE_BY_SIDE)
    files = ["side.c", "model.c", "runtime.c", "kernels.c"]
    line = ["gcc", "-std=c99", "-g", "-O1", "-fsanitize=thread", *files, "-o", "side", "-lm", "-lpthread"]
    subprocess.run(line, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "side"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


REFUSING = r"""
#include <stdio.h>
#include "runtime.h"
static int32_t called(void *self, void *args, int32_t count, void *result) {
  (void)self, (void)args, (void)count, (void)result;
  puts("called");
  return 0;
}
int main(void) {
  static float memory[16];
  static const int64_t shape[] = {1};
  static const gp_tensor tensors[] = {{GP_ARENA, 0, 4, {2, 32, 1}, 1, shape}};
  static uint16_t args[GP_MOST_ARGUMENTS + 1];
  for (int32_t count = GP_MOST_ARGUMENTS - 1; count <= GP_MOST_ARGUMENTS + 1; ++count) {
    gp_call calls[1];
    gp_model model;
    calls[0].kernel = called, calls[0].count = count, calls[0].args = args;
    model.tensors = tensors, model.calls = calls, model.call_count = 1;
    model.inputs = tensors, model.outputs = tensors, model.input_count = model.output_count = 0;
    model.weights_bytes = 0, model.arena_bytes = 64, model.weight_sum = 0;
    printf("%d\n", gp_run(&model, NULL, NULL, NULL, memory));
  }
  return 0;
}
"""


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_runtime_itself_refuses_a_kernel_with_too_many_tensors(compiler: str, tmp_path: Path) -> None:
    """Whoever wrote the tables: what would overflow its stack is not called, and gp_run says so."""
    need(compiler)
    (tmp_path / "refusing.c").write_text(REFUSING)
    line = [compiler, *STRICT, f"-I{RUNTIME}", "refusing.c", RUNTIME / "runtime.c", "-o", "refusing"]
    subprocess.run(line, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "refusing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["called", "0", "called", "0", "-2"])
