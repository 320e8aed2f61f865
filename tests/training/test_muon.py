"""Muon's orthogonalisation and the optimizer around it."""

from __future__ import annotations

import pytest
import torch

from sfumato.training.muon import MuonAdamW, orthogonalized


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_orthogonalized_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # The quintic trades exactness for speed: it ends in about [0.7, 1.2], here with bfloat16's rounding.
    values = torch.linalg.svdvals(orthogonalized(matrix))
    assert values.max() < 1.3
    assert values.median() > 0.6
    assert values.min() > (0.3 if shape[0] == shape[1] else 0.6)  # a square Gaussian's smallest may be near 0


def test_orthogonalized_keeps_the_singular_vectors():
    u, _, v = torch.linalg.svd(torch.randn(24, 40, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    middle = u.T @ orthogonalized(u @ torch.diag(torch.linspace(0.5, 2, 24)) @ v) @ v.T
    off = middle - torch.diag(middle.diagonal())
    assert off.abs().max() < 0.05


@pytest.mark.parametrize("kept", [False, True], ids=["muon", "adam"])
def test_a_quadratic_is_minimised(kept):
    generator = torch.Generator().manual_seed(0)
    target, offset = torch.randn(12, 20, generator=generator), torch.randn(20, generator=generator)
    weight, bias = (torch.nn.Parameter(torch.zeros_like(t)) for t in (target, offset))
    optimizer = MuonAdamW([weight, bias], 0.1, adam=[weight] if kept else [], weight_decay=0.0)
    start = None
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 200)
        loss = ((weight - target) ** 2).mean() + ((bias - offset) ** 2).mean()
        start = start or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3 * start


def test_matrices_go_to_muon_and_the_rest_to_adamw():
    weight, table, bias = (torch.nn.Parameter(torch.ones(s)) for s in ((4, 4), (5, 4), (4,)))
    optimizer = MuonAdamW([weight, table, bias], 0.1, adam=[table])
    muon, adam = optimizer.param_groups
    assert (muon["muon"], [p.shape for p in muon["params"]]) == (True, [weight.shape])
    assert (adam["muon"], [p.shape for p in adam["params"]]) == (False, [table.shape, bias.shape])


def test_both_rules_make_steps_of_one_size():
    size = 64
    weight, kept = (torch.nn.Parameter(torch.zeros(size, size)) for _ in range(2))
    optimizer = MuonAdamW([weight, kept], 1.0, adam=[kept], weight_decay=0.0)
    for parameter in (weight, kept):
        parameter.grad = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    # AdamW's settled updates have an RMS of 0.2 to 0.4 (its very first one 1); Muon's is scaled to 0.2.
    assert 0.1 < float(weight.detach().square().mean().sqrt()) < 0.3
    assert 0.9 < float(kept.detach().square().mean().sqrt()) < 1.1
