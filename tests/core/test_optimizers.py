"""Muon: the orthogonalisation, the step, and which parameters it gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rddm_core.networks.model import RDDM
from rddm_core.training.optimizers import Muon, make_optimizers, muon_parameters, orthogonalised
from rddm_core.training.recipe import Recipe
from rddm_core.training.train import select_trainable


@pytest.mark.parametrize("shape", [(24, 24), (48, 20), (20, 48)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_singular_values_are_brought_near_one(shape, scale):
    generator = torch.Generator().manual_seed(sum(shape))
    matrix = torch.randn(shape, generator=generator) * scale
    u, before, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalised(matrix)
    assert result.shape == matrix.shape
    # In the basis of the matrix the result is diagonal: its singular vectors stay as they are.
    inside = u.T @ result @ v.T
    assert float((inside - torch.diag(inside.diag())).abs().max()) < 1e-3
    large = before > 0.01 * before.norm()
    assert bool(((inside.diag()[large] > 0.6) & (inside.diag()[large] < 1.25)).all())


def test_a_gradient_of_zero_moves_nothing():
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_step_is_as_large_as_one_of_adamw_whatever_the_gradient(memory_format):
    weight = nn.Parameter(torch.zeros(32, 16, 2, 2).to(memory_format=memory_format))
    optimizer = Muon([weight], lr=0.01, weight_decay=0.0)
    direction = torch.randn(32, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    weight.grad = direction * 1e-4
    optimizer.step()
    # AdamW's updates measure 0.2 to 0.4 of the learning rate in the root mean square (Liu et al. 2025).
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.25)
    assert float((weight.detach() * direction).sum()) < 0, "downhill"


def test_weights_decay_by_the_learning_rate():
    weight = nn.Parameter(torch.ones(4, 4, 1, 1))
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4, 1, 1), 0.95))


def test_momentum_outlives_a_gradient():
    weight = nn.Parameter(torch.zeros(4, 4, 1, 1))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.eye(4)[:, :, None, None]
    optimizer.step()
    first = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert float((weight.detach() - first)[0, 0]) < 0, "goes on in the same direction"
    weight.grad = None
    stopped = weight.detach().clone()
    optimizer.step()
    assert torch.equal(weight, stopped)


def test_a_quadratic_is_solved():
    target = torch.randn(8, 6, 1, 1, generator=torch.Generator().manual_seed(2))
    weight = nn.Parameter(torch.zeros_like(target))
    optimizer = Muon([weight], lr=0.2, weight_decay=0.0)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 300)
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    assert float((weight - target).detach().abs().max()) < 0.02


STEPS = """
import os
import sys
import torch
from torch import nn
from rddm_core.training import optimizers

rank, processes, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
calls, orthogonalised = [], optimizers.orthogonalised
optimizers.orthogonalised = lambda matrix: calls.append(matrix.shape) or orthogonalised(matrix)
if processes > 1:
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
generator = torch.Generator().manual_seed(3)
shapes = ((16, 8, 1, 1), (8, 8, 2, 2), (4, 32, 1, 1), (8, 8, 1, 1))
weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
optimizer = optimizers.Muon(weights, lr=0.1, weight_decay=0.1)
for _ in range(3):
    for weight in weights[:-1]:  # the last one has no gradient
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()
torch.save({"weights": [weight.detach() for weight in weights], "calls": len(calls)}, f"{folder}/{processes}-{rank}.pt")
os._exit(0)  # on a busy machine torch aborts now and then in taking gloo's threads down, when all is done
"""


def test_processes_share_the_work_and_step_alike(tmp_path):
    def run(rank: int, processes: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", STEPS, str(rank), str(processes), str(tmp_path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(command, env=environment)

    assert [process.wait(120) for process in (run(0, 1), run(0, 2), run(1, 2))] == [0, 0, 0]
    alone, *shared = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")]
    for one in shared:
        for weight, wanted in zip(one["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(weight, wanted, rtol=0, atol=1e-6)
    assert alone["calls"] == 9 and sorted(one["calls"] for one in shared) == [3, 6], "every matrix once"


def test_every_trained_parameter_has_one_optimizer(tiny_config):
    model = RDDM(tiny_config)
    recipe = Recipe("x", "joint", optimizer="muon")
    parameters = select_trainable(model, recipe)
    adamw, muon = make_optimizers(model, parameters, recipe)
    owned = [id(p) for optimizer in (adamw, muon) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in parameters)
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert {"denoiser.encoders.0.0.expand.weight", "denoiser.downs.0.conv.weight"} <= chosen
    others = ("intro", "outro", "mixer.weight", "beta", "gamma")
    assert not any(other in name for name in chosen for other in others)
    assert [p for p in muon_parameters(model, parameters[:3]) if id(p) not in {id(q) for q in parameters[:3]}] == []


def test_the_last_layer_of_the_estimator_is_left_to_adamw(tiny_config):
    model, recipe = RDDM(tiny_config), Recipe("x", "estimator", optimizer="muon")
    chosen = {id(p) for p in muon_parameters(model, select_trainable(model, recipe))}
    assert chosen and id(model.estimator.segformer.decode_head.classifier.weight) not in chosen


@pytest.mark.parametrize("stage", ["joint", "regression"])
def test_weights_decay_and_biases_do_not(tiny_config, stage):
    model, recipe = RDDM(tiny_config), Recipe("x", stage, optimizer="muon", weight_decay=0.02)
    adamw, muon = make_optimizers(model, select_trainable(model, recipe), recipe)
    for group in adamw.param_groups:
        # One number per channel, as the blocks' beta and gamma [1, C, 1, 1] have it, is a vector in any shape.
        assert {p.numel() > max(p.shape) for p in group["params"]} == {group["weight_decay"] == 0.02}
        assert group["weight_decay"] in (0.0, 0.02)
    assert [group["weight_decay"] for group in muon.param_groups] == [0.02]


def test_without_muon_there_is_adamw_alone(tiny_config):
    model, recipe = RDDM(tiny_config), Recipe("x", "joint")
    (only,) = make_optimizers(model, select_trainable(model, recipe), recipe)
    assert isinstance(only, torch.optim.AdamW)
