"""Exact sizes and optimal cost, against POT and scipy."""
import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import linear_sum_assignment

from subtask_kit.core import UserError
from subtask_kit.transport import assign, equal_sizes, sinkhorn


def _logits(n, k, seed, scale=1., kind='normal'):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, k, generator=g)*scale
    if kind == 'ties': z = z.round()
    if kind == 'duplicates': z = z[torch.randint(max(1, n//3), (n,), generator=g)]
    if kind == 'constant': z = torch.zeros(n, k)
    if kind == 'one_hot': z = 30.*torch.eye(k)[torch.randint(k, (n,), generator=g)]
    return z


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(1, 60), k=st.integers(1, 12), seed=st.integers(0, 99), scale=st.sampled_from([.1, 1., 8.]),
       kind=st.sampled_from(['normal', 'ties', 'duplicates', 'constant', 'one_hot']), lam=st.sampled_from([1., 25., 1000.]))
def test_exact_sizes_at_the_optimal_cost(n, k, seed, scale, kind, lam):
    z = _logits(n, k, seed, scale, kind)
    sizes = equal_sizes(n, k)
    a = assign(z, lam, passes=50)
    assert (np.bincount(a.labels, minlength=k) == sizes).all()
    P = -z.double().log_softmax(1).numpy()
    rows, cols = linear_sum_assignment(np.repeat(P, sizes, axis=1))
    assert a.cost*n == pytest.approx(np.repeat(P, sizes, axis=1)[rows, cols].sum(), abs=1e-6)


def test_given_sizes_against_network_simplex():
    z, sizes = _logits(200, 5, 1), np.array([10, 100, 0, 60, 30])
    a = assign(z, sizes=sizes)
    P = -z.double().log_softmax(1).numpy()
    assert (np.bincount(a.labels, minlength=5) == sizes).all()
    keep = sizes > 0
    assert a.cost*200 == pytest.approx((ot.emd(np.ones(200), sizes[keep].astype(float), np.ascontiguousarray(P[:, keep]))*P[:, keep]).sum(), abs=1e-6)


@pytest.mark.parametrize('lam', [10, 250])
def test_sinkhorn_marginals_agree_with_pot(lam):
    z, sizes = _logits(300, 6, 2), equal_sizes(300, 6)
    duals, error, passes = sinkhorn(z.double(), sizes, lam, tol=1e-7, passes=20000)
    q = (lam*(z.double() + duals)).softmax(1)
    assert error <= 1e-7 and passes < 20000
    assert torch.allclose(q.sum(0), torch.full((6,), 50., dtype=torch.float64), atol=1e-4)
    P = -z.double().log_softmax(1).numpy()
    pot = ot.bregman.sinkhorn_log(np.ones(300), np.full(6, 50.), P, 1/lam, numItermax=20000, stopThr=1e-9)
    assert np.abs(pot - q.numpy()).max() < 1e-4


def test_no_underflow_at_large_lambda():
    z = _logits(100, 20, 3, scale=.01)
    duals, error, _ = sinkhorn(z, equal_sizes(100, 20), 1000.)
    assert torch.isfinite(duals).all() and np.isfinite(error)


def test_what_cannot_be_transported_is_refused():
    with pytest.raises(UserError, match='NaN or infinity'): assign(torch.tensor([[0., float('inf')]]))
    with pytest.raises(UserError, match='add up to 3'): assign(torch.zeros(2, 2), sizes=np.array([1, 2]))
