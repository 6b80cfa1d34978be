"Eq. 8 and its kin against torch, timm and the formulas written out."
import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from subtask_kit.losses import LOSSES, eq8, fit_mix, flat_warning, gradient_cosine, hard_target, largest_margin, mixed, soft_target, verdict_loss
from torch.nn import functional as F


def logits(seed, n=9): return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


VERDICT, MARGIN = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1]), torch.linspace(-4, 4, 9)


@pytest.mark.parametrize('smoothing', [0., .05])
def test_eq8_is_two_cross_entropies(smoothing):
    cls, dist = logits(0), logits(1)
    reference = F.cross_entropy(cls, VERDICT, label_smoothing=smoothing) + F.cross_entropy(dist, (MARGIN > 0).long())
    assert torch.allclose(eq8(cls, dist, VERDICT, MARGIN, smoothing, loss='hard'), reference)
    assert torch.allclose(eq8(cls, None, VERDICT, None, smoothing), F.cross_entropy(cls, VERDICT, label_smoothing=smoothing))


def test_soft_targets_are_the_teachers_softmax():
    two = torch.stack([torch.zeros(9), MARGIN], 1)
    assert torch.allclose(soft_target(MARGIN), two.softmax(1), atol=1e-6)
    assert torch.equal(hard_target(MARGIN).argmax(1), (MARGIN > 0).long()) and hard_target(MARGIN).sum(1).eq(1).all()
    dist, none = logits(1), torch.full((9,), -1)
    ours = eq8(logits(0), dist, none, MARGIN)
    p = two.softmax(1)
    kl = F.kl_div(dist.log_softmax(1), p, reduction='batchmean')
    assert torch.allclose(ours, kl - (p*p.log()).sum(1).mean(), atol=1e-6), 'without verdicts [CLS] adds nothing'


def test_an_ad_without_verdict_moves_cls_not_at_all_and_the_others_as_before():
    cls = logits(0).requires_grad_()
    missing = VERDICT.clone()
    missing[2:5] = -1
    g, = torch.autograd.grad(eq8(cls, logits(1), missing, MARGIN), cls)
    whole, = torch.autograd.grad(eq8(cls, logits(1), VERDICT, MARGIN), cls)
    assert not g[2:5].any() and torch.allclose(g[[0, 1, 5, 6, 7, 8]], whole[[0, 1, 5, 6, 7, 8]])


@pytest.mark.parametrize('smoothing', [0., .05])
def test_a_weight_multiplies_an_ads_whole_loss(smoothing):
    "Against the two cross-entropies of each ad, written out."
    cls, dist, target, weight = logits(0), logits(1), soft_target(MARGIN), torch.linspace(0, 2, 9)
    verdict = VERDICT.clone()
    verdict[4] = -1
    def one(i):
        y = F.one_hot(verdict[i].clamp(min=0), 2)*(1-smoothing) + smoothing/2
        return (-(y*cls[i].log_softmax(0)).sum() if verdict[i] >= 0 else 0.) - (target[i]*dist[i].log_softmax(0)).sum()
    assert torch.allclose(eq8(cls, dist, verdict, MARGIN, smoothing, weight), sum(weight[i]*one(i) for i in range(9))/9)
    assert torch.allclose(eq8(cls, dist, verdict, MARGIN, smoothing, torch.ones(9)), eq8(cls, dist, verdict, MARGIN, smoothing))
    alone = [eq8(cls, None, verdict, None, smoothing, w) for w in (torch.full((9,), .5), None)]
    assert torch.allclose(2*alone[0], alone[1])


def test_an_ad_of_weight_zero_teaches_nothing():
    cls, dist, weight = logits(0).requires_grad_(), logits(1).requires_grad_(), torch.ones(9)
    weight[3] = 0
    eq8(cls, dist, VERDICT, MARGIN, .05, weight).backward()
    assert not cls.grad[3].any() and not dist.grad[3].any() and cls.grad[2].any() and dist.grad[2].any()


def teacher(margin): return torch.stack([-margin/2, margin/2], 1) # any pair of logits with these differences


class Student(torch.nn.Module):
    "A distilled model that answers with given logits."
    pretrained_cfg, num_classes, in_chans = dict(mean=(.5,)*3, std=(.5,)*3), 2, 3
    def __init__(self, *heads):
        super().__init__()
        self.heads = heads
    def set_distilled_training(self, enable=True): pass
    def forward(self, x): return self.heads


class Teacher(torch.nn.Module):
    pretrained_cfg, num_classes, in_chans = Student.pretrained_cfg, 2, 3
    def forward(self, x): return teacher(MARGIN)


# timm divides the soft loss by images, DeiT by logits, of which there are two an image.
@pytest.mark.parametrize('name, temperature, weights', [('soft', 1., (1., 1.)), ('hard', 1., (1., 1.)), ('deit', 1., (.5, .25)), ('deit', 3., (.5, .25)), ('deit_hard', 3., (.5, .5))])
def test_losses_have_the_gradients_of_timms_task(name, temperature, weights):
    from timm.task import TokenDistillationTask
    cls, dist = logits(0).requires_grad_(), logits(1).requires_grad_()
    task = TokenDistillationTask(Student(cls, dist), Teacher(), torch.nn.CrossEntropyLoss(), distill_type='hard' if 'hard' in name else 'soft', temperature=temperature,
                                 task_loss_weight=weights[0], distill_loss_weight=weights[1], device=torch.device('cpu'), verbose=False)
    theirs, ours = task(torch.zeros(9, 3, 8, 8), VERDICT)['loss'], eq8(cls, dist, VERDICT, MARGIN, 0., loss=name, temperature=temperature)
    for a, b in zip(torch.autograd.grad(theirs, (cls, dist)), torch.autograd.grad(ours, (cls, dist))): assert torch.allclose(a, b, atol=1e-7)
    if name != 'soft': assert torch.isclose(theirs, ours, atol=1e-6) # the soft one is a KL divergence there, a cross-entropy here


@pytest.mark.parametrize('temperature', [1., 3.])
def test_deits_soft_loss_is_the_published_formula(temperature):
    "DistillationLoss of the authors' code, written out: KL of log-probabilities, summed, times T^2 over the number of logits."
    cls, dist, two, T, alpha = logits(0), logits(1), teacher(MARGIN), temperature, .5
    published = F.kl_div(F.log_softmax(dist/T, 1), F.log_softmax(two/T, 1), reduction='sum', log_target=True)*T*T/dist.numel()
    ours = eq8(cls, dist, VERDICT, MARGIN, 0., loss='deit', temperature=T)
    assert torch.allclose(ours, F.cross_entropy(cls, VERDICT)*(1-alpha) + published*alpha)


@pytest.mark.parametrize('temperature', [1., 2.])
def test_js_is_scipys(temperature):
    dist, p = logits(1), teacher(MARGIN/temperature).softmax(1).numpy()
    q = (dist/temperature).softmax(1).numpy()
    assert np.allclose(LOSSES['js'].f(dist, MARGIN, temperature).numpy(), jensenshannon(p, q, axis=1)**2, atol=1e-6)
    wild = torch.tensor([[80., -80.], [-80., 80.]], requires_grad=True)
    LOSSES['js'].f(wild, torch.tensor([80., 80.])).sum().backward()
    assert np.allclose(LOSSES['js'].f(wild, torch.tensor([80., 80.])).detach(), [np.log(2), 0], atol=1e-6) and wild.grad.isfinite().all()


def test_bernoulli_is_a_binary_cross_entropy_with_every_teacher():
    g = torch.Generator().manual_seed(0)
    dist, margin = torch.randn(9, 4, generator=g), torch.randn(9, 3, generator=g)
    ours = LOSSES['bernoulli'].f(dist, margin, 1.)
    for i in range(9):
        pairs = [F.cross_entropy(dist[i, [c, 3]][None], soft_target(margin[i, c])[None]) for c in range(3)]
        assert torch.isclose(ours[i], sum(pairs)/3)


@pytest.mark.parametrize('name', LOSSES)
def test_a_student_that_says_what_its_teacher_says_is_not_moved(name):
    margin = MARGIN if LOSSES[name].axis == 'classes' else torch.stack([MARGIN, MARGIN.flip(0)], 1)
    own = teacher(MARGIN) if LOSSES[name].axis == 'classes' else torch.cat([-margin, torch.zeros(9, 1)], 1)
    if name in ('hard', 'deit_hard'): own = own*1000 # an arg max is only reached far out
    own.requires_grad_()
    LOSSES[name].f(own, margin).sum().backward()
    moved = own.grad[MARGIN.abs() > 1e-6] # at a margin of nought there is no arg max
    assert moved.abs().max() < 1e-5
    far = (-own.detach()).requires_grad_()
    LOSSES[name].f(far, margin).sum().backward()
    assert far.grad[[0, -1]].abs().amax(1).min() > 1e-2


@pytest.mark.parametrize('name', [n for n in LOSSES if LOSSES[n].axis == 'classes'])
@pytest.mark.parametrize('weight', [None, torch.linspace(0, 2, 9)])
def test_every_loss_is_a_mean_over_weighted_ads(name, weight):
    cls, dist, verdict = logits(0), logits(1), VERDICT.clone()
    verdict[2] = -1
    one = [eq8(cls[i:i+1], dist[i:i+1], verdict[i:i+1], MARGIN[i:i+1], loss=name) for i in range(9)]
    w = torch.ones(9) if weight is None else weight
    assert torch.isclose(eq8(cls, dist, verdict, MARGIN, weight=weight, loss=name), sum(a*b for a, b in zip(w, one))/9)


def test_more_classes_than_two():
    cls, verdict = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 1, 2, 3, 4, -1, -1, 0])
    assert torch.isclose(verdict_loss(cls, verdict, .1), F.cross_entropy(cls, verdict, ignore_index=-1, label_smoothing=.1, reduction='sum')/9)


def test_temperature_is_warned_of_where_teachers_are_smoothed():
    assert flat_warning(1., .05) is None and flat_warning(4., 0.) is None and 'smoothing 0.05' in flat_warning(4., .05)
    for smoothing in (.01, .05, .3):
        m = torch.tensor(largest_margin(smoothing), requires_grad=True)
        F.cross_entropy(torch.stack([-m/2, m/2])[None], torch.tensor([1]), label_smoothing=smoothing).backward()
        assert abs(m.grad) < 1e-6


def test_gradient_cosine_is_that_of_flat_gradients():
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)), torch.randn(9, 4)
    def losses(): return F.cross_entropy(net(x), VERDICT), LOSSES['soft'].f(net(x), MARGIN, 1.).mean()
    flat = []
    for loss in losses():
        net.zero_grad()
        loss.backward()
        flat.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    net.zero_grad()
    assert gradient_cosine(*losses(), list(net.parameters())) == pytest.approx(F.cosine_similarity(*flat, dim=0).item(), abs=1e-5)
    assert all(p.grad is None or not p.grad.any() for p in net.parameters()), 'nothing is left behind for the optimiser'


@pytest.mark.parametrize('seed', range(3))
def test_fitted_weights_are_those_of_a_logistic_regression(seed):
    from sklearn.linear_model import LogisticRegression
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 500)
    heads = [torch.tensor(np.stack([rng.normal(size=500), (2*label-1)*s + rng.normal(size=500)], 1)) for s in (.9, .4)]
    x = np.stack([(h[:, 1] - h[:, 0]).numpy() for h in heads], 1)
    fitted = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-8).fit(x, label).coef_[0]
    assert np.allclose(fit_mix(*heads, label), fitted, atol=1e-3) and (fitted > 0).all()
    assert torch.allclose(mixed(*heads, fit_mix(*heads, label)).diff(dim=1)[:, 0], torch.tensor(x @ fitted), atol=1e-2)


def test_a_head_that_misleads_gets_no_weight():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 500)
    good, bad = (torch.tensor(np.stack([np.zeros(500), (2*label-1)*s + rng.normal(size=500)], 1)) for s in (1., -1.))
    weights = fit_mix(good, bad, label)
    assert weights[1] == 0 and weights[0] > 0 and torch.allclose(mixed(good, bad), (good + bad)/2)
