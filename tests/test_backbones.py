"Networks by name against timm itself."
import pytest
import timm
import torch
from subtask_kit.backbones import BLOCKS, PACKAGED, SmallNet, SmallStudent, TimmNet, TimmStudent, create, p_acceptable, packaged_weights, trunk, two_logits
from subtask_kit.core import UserError

CPU = torch.device('cpu')


@pytest.fixture
def offline(monkeypatch): monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)


def pixels(n, px=64, seed=0): return torch.randint(0, 256, (n, 3, px, px), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_packaged_weights_fit_timms_model_strictly():
    timm.create_model(PACKAGED).load_state_dict(packaged_weights(), strict=True)


def test_packaged_weights_see():
    "Trained weights tell images apart far better than random ones: an untrained network gives nearly the same answer to all."
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    _, (a, b) = trunk(PACKAGED, True, CPU)(torch.cat([grey, pixels(1)]))
    assert torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=0) < .9


def test_another_number_of_classes_keeps_the_trunk():
    a, b = create(PACKAGED).state_dict(), create(PACKAGED, num_classes=5).state_dict()
    assert b['classifier.weight'].shape[0] == 5
    assert all(v.equal(a[k]) for k, v in b.items() if not k.startswith('classifier'))


def test_without_pretrained_weights_are_drawn_by_the_seed():
    def drawn(seed): return (torch.manual_seed(seed), next(p for p in create('test_resnet', False).parameters() if p.ndim == 4))[1]
    assert drawn(0).equal(drawn(0)) and not drawn(0).equal(drawn(1))


def test_pooled_features_are_timms_own():
    x = pixels(4)
    model = create(PACKAGED, num_classes=0).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[k]).view(3, 1, 1) for k in ('mean', 'std'))
    with torch.no_grad(): reference = model((x.float()/255 - mean)/std)
    tokens, pooled = trunk(PACKAGED, True, CPU)(x)
    assert tokens.shape == (4, 16, 112) and pooled.dtype == torch.float16
    assert torch.allclose(pooled.float(), reference, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_efficientnet'])
def test_other_convolutional_trunks_give_tokens_of_stride_16(name):
    tokens, pooled = trunk(name, False, CPU)(pixels(2))
    assert tokens.shape[:2] == (2, 16) and pooled.ndim == 2


def test_a_trunk_that_cannot_serve_is_refused():
    with pytest.raises(UserError): trunk('test_vit', False, CPU)(pixels(2))


def test_unknown_models_are_the_users_mistake():
    for pretrained in (True, False):
        with pytest.raises(UserError, match='nosuchnet'): create('nosuchnet', pretrained)


def test_a_missing_hub_is_one_clear_line(offline):
    with pytest.raises(UserError, match='test_byobnet') as e: create('test_byobnet')
    assert '\n' not in str(e.value) and 'pretrained' in str(e.value)


def test_a_wrong_option_is_not_called_a_missing_hub(offline):
    with pytest.raises(UserError) as e: create('test_resnet', True, img_size=32)
    assert 'weights' not in str(e.value)


@pytest.mark.parametrize('distilled', [True, False])
def test_a_deit_student_equals_timms_own_average(distilled):
    torch.manual_seed(0)
    net = timm.create_model('deit_tiny_distilled_patch16_224', num_classes=2, img_size=64).eval()
    student = TimmStudent('deit_tiny_distilled_patch16_224', 2*distilled, False, img_size=64).eval()
    state = {k: v for k, v in net.state_dict().items() if not k.startswith('head')}
    student.net.load_state_dict(state, strict=True)
    student.cls_head.load_state_dict(net.head.state_dict())
    if distilled: student.dist_head.load_state_dict(net.head_dist.state_dict())
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        cls, dist = student(x)
        if distilled: assert torch.allclose((cls + dist)/2, net(x), atol=1e-6)
        else: assert dist is None and torch.allclose(cls, net.head(net.forward_features(x)[:, 0]), atol=1e-6)
        assert torch.allclose(p_acceptable(cls, dist), (cls if dist is None else net(x)).softmax(1)[:, 1], atol=1e-6)


@pytest.mark.parametrize('name', ['test_vit', ('swin_tiny_patch4_window7_224')])
def test_a_student_without_a_distillation_token_is_refused(name):
    with pytest.raises(UserError, match='distillation token'): TimmStudent(name, 2, False)


def test_a_student_without_a_class_token_is_refused():
    with pytest.raises(UserError): TimmStudent('swin_tiny_patch4_window7_224', 0, False)


def test_heads_are_named_for_the_optimiser():
    student = SmallStudent(16, 112)
    assert {id(p) for p in student.head_parameters()} == {id(p) for h in (student.cls_head, student.dist_head) for p in h.parameters()}
    assert len(SmallStudent(16, 112, dist_classes=0).head_parameters()) == 2


def test_the_small_student_judges_each_ad_alone_and_reads_positions():
    torch.manual_seed(0)
    student, x = SmallStudent(4, 6, dim=8, layers=2).eval(), torch.randn(5, 4, 6)
    with torch.no_grad():
        whole, one = student(x)[0], student(x[2:3])[0]
        assert torch.allclose(whole[2:3], one, atol=1e-6)
        assert not torch.allclose(student(x.flip(1))[0], whole, atol=1e-4)
        assert not torch.allclose(*student(x), atol=1e-4)


def test_prediction_averages_logits_not_probabilities():
    cls, dist = torch.tensor([[0., 4.]]), torch.tensor([[0., -1.]])
    assert p_acceptable(cls, dist).item() == pytest.approx(1/(1 + torch.tensor(-1.5).exp().item()))
    assert p_acceptable(cls, None).item() == pytest.approx(1/(1 + torch.tensor(-4.).exp().item()))


@pytest.mark.parametrize('kind', BLOCKS)
@pytest.mark.parametrize('side', [1, 2, 3, 4, 7])
def test_stand_ins_are_networks_of_their_kind(kind, side):
    torch.manual_seed(0)
    net, x = SmallNet(kind, side*side, 6, dim=16, layers=2, cls_classes=3).eval(), torch.randn(5, side*side, 6)
    with torch.no_grad():
        whole, none = net(x)
        assert whole.shape == (5, 3) and none is None and torch.allclose(net(x[2:3])[0], whole[2:3], atol=1e-5), 'each ad alone'
        if side > 1: assert not torch.allclose(net(x[:, torch.randperm(side*side)])[0], whole, atol=1e-4), 'it sees where things are'
    net.train()(x)[0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    own = dict(resnext='Bottleneck', coatnet='MbConvBlock', swin='SwinTransformerBlock')[kind]
    assert sum(type(m).__name__ == own for m in net.modules()) == 2 and len(net.head_parameters()) == 2


def test_the_second_swin_block_is_shifted():
    first, second = (next(m for m in block.modules() if type(m).__name__ == 'SwinTransformerBlock') for block in SmallNet('swin', 16, 6, dim=16).blocks)
    assert tuple(first.shift_size) == (0, 0) and tuple(second.shift_size) == (1, 1)


def test_tokens_that_are_no_square_are_refused():
    with pytest.raises(UserError, match='square'): SmallNet('swin', 12, 6)


def test_all_defects_together_leave_the_acceptable_probability_alone():
    logits = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(two_logits(logits).softmax(1)[:, 1], logits.softmax(1)[:, -1], atol=1e-6)
    two = logits[:, :2]
    assert two_logits(two) is two
    wild = torch.tensor([[500., 500., -500.]])
    assert torch.isfinite(two_logits(wild)).all()


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit'])
def test_any_timm_model_may_be_a_network(name):
    net = TimmNet(name, 64, pretrained=False, cls_classes=4)
    cls, none = net(torch.randn(2, 3, 64, 64))
    assert cls.shape == (2, 4) and none is None and net.represent(torch.randn(2, 3, 64, 64))[0].shape[1] == net.cls_head.in_features
