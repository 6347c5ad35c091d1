"""Boards without an operating system: a static library, run here on a machine that qemu makes up; and a caller's own
parallel-for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends import target
from graphprune.errors import TargetError

START = r"""
#include <stdint.h>
extern uint32_t top;
void _start(void);
static void reset(void) {
  *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* the FPU is off at first */
  _start();
}
static void fault(void) { for (;;) {} }
__attribute__((section(".vectors"), used)) void *const vectors[16] = {
  &top, reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault};
"""
PLACES = r"""
ENTRY(vectors)
MEMORY { code (rx) : ORIGIN = 0, LENGTH = 4M  data (rwx) : ORIGIN = 0x20000000, LENGTH = 4M }
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) . = ALIGN(8); } > code
  .ARM.exidx : { __exidx_start = .; *(.ARM.exidx*) __exidx_end = .; } > code
  .data : { *(.data*) . = ALIGN(8); } > data
  .bss : { __bss_start__ = .; *(.bss*) *(COMMON) . = ALIGN(8); __bss_end__ = .; end = .; __end__ = .; } > data
  top = ORIGIN(data) + LENGTH(data);
}
"""
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "model.h"
static const float x[] = {%s};
static float y[%d];
static unsigned char room[%d + 64];
int main(void) {
  const void *inputs[] = {x};
  void *outputs[] = {y}, *arena = (void *)(((uintptr_t)room + 63) & ~(uintptr_t)63);
  if (gp_checksum(gp_weights, model.weights_bytes) != model.weight_sum) return 1;
  if (gp_run(&model, gp_weights, inputs, outputs, arena)) return 2;
  for (unsigned k = 0; k < sizeof y / sizeof *y; ++k) printf("%%08lx\n", (unsigned long)((uint32_t *)y)[k]);
  exit(0);
}
"""


@pytest.fixture(scope="module")
def net() -> gp.Program:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()]
    return gp.load(nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10)).eval(), torch.randn(1, 1, 8, 8))


def need(*programs: str) -> None:
    pytest.importorskip("tvm")
    for one in programs:
        if not shutil.which(one):
            pytest.skip(f"no {one}")


@pytest.mark.slow
def test_a_cortex_m_computes_what_the_model_does(net: gp.Program, tmp_path: Path) -> None:
    need("arm-none-eabi-gcc", "qemu-system-arm")
    on = target("cortex-m7")
    library = on.emit(net, tmp_path)
    assert library.name == "libmodel.a" and not (tmp_path / "run.c").exists()
    facts = on.found(library)
    (x,) = net.host.example()
    (want,) = net.host.run([x])
    numbers = ", ".join(f"{float(number).hex()}f" for number in x.ravel())
    (tmp_path / "main.c").write_text(PROGRAM % (numbers, want.size, facts["arena_bytes"]))
    (tmp_path / "start.c").write_text(START)
    (tmp_path / "places.ld").write_text(PLACES)
    cpu = ["-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-d16"]
    linked = ["-O1", "--specs=rdimon.specs", "-T", "places.ld", "start.c", "main.c", "-L.", "-lmodel", "-lm"]
    subprocess.run(["arm-none-eabi-gcc", *cpu, *linked, "-o", "whole.elf"], cwd=tmp_path, check=True)
    machine = ["qemu-system-arm", "-M", "mps2-an500", "-nographic", "-semihosting", "-kernel", "whole.elf"]
    done = subprocess.run(machine, cwd=tmp_path, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    got = np.array([int(line, 16) for line in done.stdout.split()], np.uint32).view(np.float32).reshape(want.shape)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_without_an_operating_system_nothing_is_run_here() -> None:
    assert "no operating system" in str(target("cortex-m4").unable())
    with pytest.raises(TargetError, match="no operating system"):
        target("cortex-m4").require()


OWN = r"""
#include <stdio.h>
#include <stdlib.h>
#include "model.h"
static int launched;
static int backwards(int count, gp_task task, void *data, void *pool) {
  int failed = 0;
  if (pool != &launched) abort();
  ++launched;
  for (int k = count - 1; k >= 0; --k) failed |= task(k, data);
  return failed;
}
static void *room(size_t bytes) { return aligned_alloc(64, (bytes + 127) / 64 * 64); }
int main(void) {
  FILE *file = fopen("weights.bin", "rb");
  void *weights = room(model.weights_bytes), *arena = room(model.arena_bytes);
  float *x = room(model.inputs[0].bytes), *y[2];
  const void *inputs[] = {x};
  if (fread(weights, 1, model.weights_bytes, file) != model.weights_bytes) abort();
  for (unsigned k = 0; k < model.inputs[0].bytes / sizeof *x; ++k) x[k] = (float)(k % 7) - 3;
  for (int own = 0; own < 2; ++own) {
    y[own] = room(model.outputs[0].bytes);
    void *outputs[] = {y[own]};
    if (own) gp_parallel(backwards, &launched, 4);
    if (gp_run(&model, weights, inputs, outputs, arena)) abort();
  }
  for (unsigned k = 0; k < model.outputs[0].bytes / sizeof *x; ++k)
    if (y[0][k] != y[1][k] || y[0][k] == 0) return 3;
  printf("%d\n", launched);
  return 0;
}
"""


def launches(on: str, net: gp.Program, folder: Path) -> int:
    """Of a caller's own parallel-for, without OpenMP: tasks one after the other, from the last to the first, must give
    what one thread gives, to the last bit."""
    need("gcc")
    target(f"{on}{{link=false}}").emit(net, folder)
    (folder / "own.c").write_text(OWN)
    files = ["own.c", "model.c", "runtime.c", "kernels.o"]
    subprocess.run(["gcc", "-std=c11", "-O1", *files, "-o", "own", "-lm"], cwd=folder, check=True)
    done = subprocess.run([folder / "own"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    return int(done.stdout)


def test_threads_are_the_callers_where_it_gives_a_parallel_for(net: gp.Program, tmp_path: Path) -> None:
    assert launches("x86_64", net, tmp_path) > 0


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 203)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.layer(x)[0]
        return states


def test_the_cores_of_a_board_share_the_steps_of_an_lstm(tmp_path: Path) -> None:
    """None waits for another within a step: one that calls them in turns would hang."""
    own, steps = tmp_path / "three.toml", 20
    own.write_text('base = "x86_64"\ncores = 3\n')
    assert launches(str(own), gp.load(Recurrent().eval(), torch.randn(steps, 1, 6)), tmp_path) >= steps


COUNTED = r"""
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
static size_t now, most;
void *counted_malloc(size_t bytes) {
  size_t *found = malloc(bytes + sizeof(max_align_t));
  *found = bytes, now += bytes;
  if (now > most) most = now;
  return (char *)found + sizeof(max_align_t);
}
void counted_free(void *memory) {
  size_t *found = (void *)((char *)memory - sizeof(max_align_t));
  now -= *found;
  free(found);
}
void counted(void) { printf("%zu %zu\n", most, now); }
"""


@pytest.mark.parametrize("kind", ["c", "x86_64"])
@pytest.mark.parametrize("layers", ["rows", "bands", "none"])
def test_what_kernels_take_beside_the_arena_is_known_before(layers: str, kind: str, tmp_path: Path) -> None:
    need("gcc")
    torch.manual_seed(0)
    nets = {
        "rows": ([nn.Conv1d(2, 32, 9, stride=4), nn.ReLU(), nn.Conv1d(32, 4, 5, padding=2)], (3, 2, 200)),
        "bands": ([nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32),
                   nn.Conv2d(32, 20, 1)], (1, 3, 16, 16)),
        "none": ([nn.Linear(6, 4), nn.ReLU()], (1, 6)),
    }  # fmt: skip
    made, shape = nets[layers]
    on = target(f"{kind}{{link=false}}")
    facts = on.found(on.emit(gp.load(nn.Sequential(*made), torch.randn(*shape)), tmp_path))
    (tmp_path / "counted.c").write_text(COUNTED)
    (tmp_path / "own.c").write_text(
        OWN.replace(" || y[0][k] == 0", "").replace('printf("%d\\n", launched)', "counted()")
    )
    ours = ["gcc", "-std=c11", "-O1", "-Dmalloc=counted_malloc", "-Dfree=counted_free", "-c", "runtime.c"]
    subprocess.run(ours, cwd=tmp_path, check=True)
    kernels = "kernels.c" if kind == "c" else "kernels.o"
    files = ["own.c", "counted.c", "model.c", "runtime.o", kernels]
    subprocess.run(["gcc", "-std=c11", "-O1", "-w", *files, "-o", "own", "-lm"], cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "own"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(facts["workspace_bytes"]), "0"]
    assert (facts["workspace_bytes"] > 0) == (layers != "none")
