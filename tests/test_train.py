"The training loop: resuming, the best epoch, groups, clipping, several processes."
import copy
import subprocess
import sys

import pytest
import torch
from subtask_kit.core import UserError
from subtask_kit.specialists import Heads
from subtask_kit.train import SCHEDULES, clip_each, fit, keep_best, parameter_groups, share
from torch import nn

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1]**2 > .8).long()


class Killed(Exception): pass


def network(dropout=.3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def batches(epoch): return list(torch.randperm(120, generator=torch.Generator().manual_seed(epoch)).split(30))
def loss(model, i): return nn.functional.cross_entropy(model(X[i]), Y[i]), {}
def validate(model): return nn.functional.cross_entropy(model(X), Y)


def train(model, *, loss=loss, validate=validate, epochs=4, lr=.05, **options):
    history = fit(model, batches, loss, validate, epochs, lr, **options)
    return model.state_dict(), history


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('optimiser', ['adamw', 'sgd'])
@pytest.mark.parametrize('last', [0, 1, 2, 3])
def test_killed_after_any_epoch_it_ends_with_the_same_bits(tmp_path, last, optimiser):
    "With dropout, batch norm, a schedule and clipping; the process that resumes has other weights and another random state."
    options = dict(optimiser=optimiser, schedule='one_cycle', clip=.5, seed=('x', 1))
    whole, history = train(network(), **options)
    def die(row):
        if row["epoch"] == last: raise Killed
    with pytest.raises(Killed): train(network(), checkpoint=tmp_path/'state.pt', after_epoch=die, **options)
    other = network()
    for p in other.parameters(): nn.init.ones_(p)
    torch.manual_seed(99)
    resumed, history2 = train(other, checkpoint=tmp_path/'state.pt', **options)
    assert same(resumed, whole) and history2 == history


def test_killed_inside_an_epoch_that_epoch_is_repeated(tmp_path):
    whole, history = train(network())
    calls = []
    def dying(model, i):
        calls.append(1)
        if len(calls) == 10: raise Killed
        return loss(model, i)
    with pytest.raises(Killed): train(network(), loss=dying, checkpoint=tmp_path/'state.pt')
    resumed, history2 = train(network(), checkpoint=tmp_path/'state.pt')
    assert same(resumed, whole) and history2 == history


def test_a_finished_training_is_not_repeated(tmp_path):
    whole, history = train(network(), checkpoint=tmp_path/'state.pt')
    def never(model, i): raise Killed
    resumed, history2 = train(network(), loss=never, checkpoint=tmp_path/'state.pt')
    assert same(resumed, whole) and history2 == history


def test_the_random_state_outside_does_not_matter():
    def run(seed):
        model = network()
        torch.manual_seed(seed)
        return train(model)[0]
    assert same(run(1), run(2))


def test_the_seeds_names_matter():
    assert not same(train(network(), seed=('a',))[0], train(network(), seed=('b',))[0])


def states_by_epoch(values, **options):
    "Train with given validation losses; the weights that are left, and those after each epoch."
    model, seen, left = network(0.), [], iter(values)
    def given(m):
        seen.append(copy.deepcopy(m.state_dict()))
        return torch.as_tensor(next(left))
    return train(model, validate=given, epochs=len(values), **options)[0], seen


@pytest.mark.parametrize('values, best', [([3., 1., 2.], 1), ([2., 1., 1.], 1), ([1., 1., 1.], 0), ([3., 2., 1.], 2)])
def test_the_lowest_loss_wins_and_ties_go_to_the_earlier_epoch(values, best):
    left, seen = states_by_epoch(values)
    assert same(left, seen[best])


def test_without_validation_the_last_epoch_wins():
    seen = []
    model = network()
    left, history = train(model, validate=None, after_epoch=lambda e: seen.append(copy.deepcopy(model.state_dict())))
    assert same(left, seen[-1]) and [h['epoch'] for h in history] == [0, 1, 2, 3]


def test_each_of_several_models_keeps_its_own_best_epoch():
    better = [torch.tensor(b) for b in ([True, True, True], [False, True, False], [True, False, False])]
    now = [{'w': torch.full((3, 2, 2), float(e)), 'b': torch.full((3,), float(e))} for e in range(3)]
    best = now[0]
    for b, n in zip(better, now): best = keep_best(best, n, b)
    assert best['w'][:, 0, 0].tolist() == best['b'].tolist() == [2, 1, 0]


def heads_of(k, d=4, h=6):
    torch.manual_seed(1)
    return Heads(range(k), d, h, 0.)


@pytest.mark.parametrize('optimiser', ['adamw', 'sgd'])
def test_heads_side_by_side_are_as_heads_alone(optimiser):
    "K networks in one pass, unclipped, against each one by itself: same weights, same best epochs, same losses."
    targets = torch.stack([(X[:, 0] > 0), (X[:, 1] > .5), (X[:, 2]*X[:, 3] > 0)], 1).float()
    def bce(model, columns, i): return nn.functional.binary_cross_entropy_with_logits(model(X[i]), targets[i][:, columns], reduction='none').mean(0)
    def fit_columns(model, columns):
        return fit(model, batches, lambda m, i: (bce(m, columns, i).sum(), {}), lambda m: bce(m, columns, torch.arange(0, 120, 7)), 8, .2, clip=0, weight_decay=.1, optimiser=optimiser)
    wide = heads_of(3)
    start = copy.deepcopy(wide.state_dict())
    history, best = fit_columns(wide, [0, 1, 2]), set()
    for c in range(3):
        alone = heads_of(1)
        alone.load_state_dict({k: v[c:c+1] for k, v in start.items()})
        own = fit_columns(alone, [c])
        for k, v in alone.state_dict().items(): assert torch.allclose(v[0], wide.state_dict()[k][c], atol=1e-4), (c, k)
        losses = [h['val_losses'][c] for h in history]
        assert [h['val_loss'] for h in own] == pytest.approx(losses, abs=1e-4)
        best.add(losses.index(min(losses)))
    assert len(best) > 1, 'the case is too easy: all heads are best in the same epoch'


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    def head_parameters(self): return self.head.parameters()


def rates(model, **options):
    "name -> (learning rate, weight decay)"
    found = {id(p): (g['lr'], g['weight_decay']) for g in parameter_groups(model, **options) for p in g['params']}
    return {n: found.get(id(p)) for n, p in model.named_parameters()}


def test_heads_learn_at_their_rate_and_biases_do_not_decay():
    assert rates(Named(), lr=1., lr_encoder=.1, weight_decay=.5) == {
        'body.weight': (.1, .5), 'body.bias': (.1, 0.), 'norm.weight': (.1, .5), 'norm.bias': (.1, 0.), 'head.weight': (1., .5), 'head.bias': (1., 0.), 'frozen': None}


def test_a_model_that_names_no_heads_learns_at_one_rate():
    assert {r for r, _ in rates(nn.Linear(3, 2), lr=1., lr_encoder=.1).values()} == {1.}


def test_the_biases_of_wide_heads_do_not_decay():
    heads = Heads([0, 1], 3, 4, 0.)
    found = rates(heads, lr=1., weight_decay=.5)
    assert sorted(decay for _, decay in found.values()) == [0., 0., .5, .5]


def test_a_decayed_bias_would_shrink():
    "No gradient, only decay: weights shrink, biases stay."
    model = nn.Linear(2, 2)
    nn.init.ones_(model.bias), nn.init.ones_(model.weight)
    fit(model, batches, lambda m, i: (0*m(X[i, :2]).sum(), {}), None, 2, .1, weight_decay=.5)
    assert model.bias.tolist() == [1, 1] and model.weight.max() < 1


@pytest.mark.parametrize('clip', [0, .01])
def test_gradients_are_clipped_before_the_step(clip):
    model = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(model.weight)
    def steep(m, i): return 100*m(X[i]).mean(), {}
    fit(model, lambda epoch: [torch.arange(120)], steep, None, 1, 1., weight_decay=0, clip=clip, optimiser='sgd')
    gradient = 100*X.mean(0)
    expected = -gradient if not clip else -gradient*clip/gradient.norm()
    assert torch.allclose(model.weight[0], expected, rtol=1e-4)


@pytest.mark.parametrize('clip', [.5, 3., 1e6])
def test_each_network_side_by_side_is_clipped_by_itself(clip):
    g = torch.Generator().manual_seed(0)
    steep = torch.tensor([.01, 1., 100., 0.])
    wide = [nn.Parameter(torch.zeros(shape)) for shape in ((4, 3, 2), (4, 5), (4,))]
    for p in wide: p.grad = torch.randn(p.shape, generator=g)*steep.view(-1, *[1]*(p.ndim-1))
    alone = [[nn.Parameter(torch.zeros(p.shape[1:])) for p in wide] for _ in range(4)]
    for k, ps in enumerate(alone):
        for q, p in zip(ps, wide): q.grad = p.grad[k].clone()
        nn.utils.clip_grad_norm_(ps, clip)
    clip_each(wide, clip)
    for k, ps in enumerate(alone):
        for q, p in zip(ps, wide): assert torch.allclose(p.grad[k], q.grad, rtol=1e-5)


def test_a_steep_neighbour_changes_nothing():
    "Of two networks side by side one learns a task a thousand times as steep, or none: the other ends the same."
    def train_beside(factor):
        model = Heads([3, 4], 4, 6, 0.)
        def loss(m, i): return (m(X[i]).square().mean(0)*torch.tensor([1., factor])).sum(), {}
        fit(model, batches, loss, None, 2, .05, clip=.1, side_by_side=True)
        return model
    calm, steep = train_beside(0.), train_beside(1000.)
    for (n, a), b in zip(calm.state_dict().items(), steep.state_dict().values()): assert torch.equal(a[0], b[0]) and (n.endswith('bias') or not torch.equal(a[1], b[1]))


@pytest.mark.parametrize('n, world', [(7, 2), (6, 2), (7, 3), (9, 4), (2, 3), (1, 2), (5, 1)])
def test_shares_of_a_batch_average_to_its_gradient(n, world):
    w, y = torch.ones(4, requires_grad=True), torch.rand(n, generator=torch.Generator().manual_seed(0))
    def gradient(part):
        x, target, nothing = part
        assert nothing is None
        return torch.autograd.grad(((x @ w - target)**2).mean(), w)[0]
    batch = (X[:n], y, None)
    parts = [share(batch, rank, world) for rank in range(world)]
    assert torch.allclose(sum(weight*gradient(part) for part, weight in parts)/world, gradient(batch), atol=1e-5)
    if n >= world: assert torch.equal(torch.cat([p[1] for p, _ in parts]).sort().values, y.sort().values), 'every example once'


PROGRAM = """
import sys, torch
from torch import nn
from subtask_kit.train import fit, ranks
torch.set_num_threads(1)
X, Y = torch.load(sys.argv[2])
class Net(nn.Sequential):
    def head_parameters(self): return self[2].parameters()
torch.manual_seed(ranks()[0]) # other weights in each process: the first one's count
model, seen = Net(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), []
def batches(epoch): return [(X[i], Y[i], None) for i in torch.randperm(119, generator=torch.Generator().manual_seed(epoch)).split(25)] + [(X[:1], Y[:1], None)]
def loss(m, batch):
    seen.append(len(batch[0]))
    value = nn.functional.cross_entropy(m(batch[0]), batch[1])
    return value, dict(twice=2*value)
history = fit(model, batches, loss, lambda m: nn.functional.cross_entropy(m(X), Y), 4, .03, .01, clip=.3, schedule='one_cycle', checkpoint=sys.argv[1] + '.state')
torch.save(dict(weights=model.state_dict(), history=history, seen=seen), f'{sys.argv[1]}.{ranks()[0]}')
"""


def test_two_processes_train_as_one(tmp_path):
    (tmp_path/'program.py').write_text(PROGRAM)
    torch.save((X, Y), tmp_path/'data')
    many = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    for name, start in (('one', [sys.executable]), ('two', many)):
        done = subprocess.run([*start, tmp_path/'program.py', tmp_path/name, tmp_path/'data'], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    one, *two = [torch.load(tmp_path/name) for name in ('one.0', 'two.0', 'two.1')]
    assert one['seen'] == [25, 25, 25, 25, 19, 1]*4 and two[0]['seen'] == [13, 13, 13, 13, 10, 1]*4 and two[1]['seen'] == [12, 12, 12, 12, 9, 1]*4
    assert same(two[0]['weights'], two[1]['weights'])
    for k, v in one['weights'].items(): assert torch.allclose(v, two[0]['weights'][k], atol=1e-5)
    for a, b, c in zip(one['history'], two[0]['history'], two[1]['history']):
        for k in ('loss', 'twice', 'val_loss'): assert a[k] == pytest.approx(b[k], abs=1e-5) and a[k] == pytest.approx(c[k], abs=1e-5)
    assert (tmp_path/'two.state').exists()


def test_schedules():
    share = torch.linspace(0, .999, 100).tolist()
    assert {SCHEDULES['constant'](t) for t in share} == {1.}
    assert [SCHEDULES['quarters'](t) for t in (0, .24, .25, .5, .75, .999)] == pytest.approx([1, 1, .1, .01, .001, .001])
    cycle = [SCHEDULES['one_cycle'](t) for t in share]
    top = cycle.index(max(cycle))
    assert cycle == pytest.approx(sorted(cycle[:top]) + sorted(cycle[top:], reverse=True)) and max(cycle) <= 1 and cycle[-1] < .01


def test_the_schedule_reaches_the_optimiser():
    "A constant gradient of one under plain steps: the weight is minus the sum of the rates."
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    seen = []
    def unit_slope(m, i):
        seen.append(m.weight.item())
        return m.weight.sum(), {}
    SCHEDULES['steps'] = lambda t: 1 + t
    try: fit(model, lambda epoch: [0, 1], unit_slope, None, 2, .1, weight_decay=0, clip=0, optimiser='adamw', schedule='steps')
    finally: del SCHEDULES['steps']
    assert [b-a for a, b in zip(seen, seen[1:] + [model.weight.item()])] == pytest.approx([-.1, -.125, -.15, -.175], rel=1e-3)


def test_numbers_that_the_loss_tells_are_averaged():
    history = train(network(), loss=lambda m, i: (loss(m, i)[0], {'least': i.min().float()}))[1]
    assert [h['least'] for h in history] == pytest.approx([sum(b.min().item() for b in batches(e))/4 for e in range(4)])


@pytest.mark.parametrize('broken', [lambda m, i: (m(X[i]).sum()*float('nan'), {}), lambda m, i: (m(X[i]).sum()*float('inf'), {})])
def test_a_training_that_diverges_says_so(broken):
    with pytest.raises(UserError, match='diverged in epoch 0'): train(network(), loss=broken)


def test_unknown_words_are_the_users_mistake():
    with pytest.raises(UserError, match='sometimes'): train(network(), schedule='sometimes')
