"Devices, threads, and transformations that hang on a seed alone."
import numpy as np
import pytest
import torch
import subtask_kit.augment as module
from subtask_kit.augment import SIGNED, TOP, augment, draw, normalise, strength, transform
from subtask_kit.device import accelerator, one_thread, pick_device
from torchvision.transforms import v2


@pytest.fixture
def images(): return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype='uint8'))


def one_by_one(images, seeds, ops, magnitude):
    "torchvision's own RandAugment on every image alone, after the global state was set to its seed."
    policy = v2.RandAugment(num_ops=ops, magnitude=magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill=128)
    with torch.random.fork_rng(devices=[]):
        return torch.stack([(torch.default_generator.manual_seed(seed), policy(image))[1] for image, seed in zip(images, seeds, strict=True)])


def pictures(h, w):
    "Noise, grey noise, one colour, one grey and a ramp: where a mean or a stretch of contrast could go wrong."
    rng = np.random.default_rng(h)
    shapes = (3, h, w), (1, h, w), (3, 1, 1), (1, 1, 1)
    drawn = [np.broadcast_to(rng.integers(0, 256, s, dtype='uint8'), (3, h, w)) for s in shapes]
    return torch.from_numpy(np.stack([*drawn, np.broadcast_to((np.arange(w)*255//w).astype('uint8'), (3, h, w))]))


def seed_of(operation, sign):
    "A seed at which one draw is this operation in this direction."
    return next(s for s in range(10**4) if (d := draw([s], 1, 8, 64, 64)[0][0])[0] == operation and (d[1] < 0) == (sign < 0))


WHAT = [(o, sign) for o in TOP for sign in ((1, -1) if o in SIGNED else (1,))]


@pytest.mark.parametrize('operation,sign', WHAT, ids=[f'{o}{"-" if s < 0 else ""}' for o, s in WHAT])
def test_each_operation_on_a_batch_is_torchvisions_on_each_image(operation, sign):
    seed = seed_of(operation, sign)
    for h, w in (32, 32), (33, 47), (2, 5):
        images = pictures(h, w)
        for magnitude in (0, 1, 8, 15, 30):
            expected = one_by_one(images, [seed]*len(images), 1, magnitude)
            assert torch.equal(transform(images, operation, sign*strength(operation, magnitude, h, w)), expected), (h, w, magnitude)


@pytest.mark.parametrize('ops,magnitude', [(1, 8), (2, 8), (4, 8), (3, 30), (4, 0)])
def test_a_batch_is_what_torchvision_makes_of_each_image(ops, magnitude):
    images = pictures(64, 48).repeat(10, 1, 1, 1)
    seeds = [*range(25), *(2**63 - 1 - i*12345678901234567 for i in range(25))]
    assert torch.equal(augment(images, seeds, ops, magnitude), one_by_one(images, seeds, ops, magnitude))


def test_every_operation_is_drawn_in_both_directions():
    drawn = [d for one in draw(range(2000), 2, 8, 64, 64) for d in one]
    shares = {o: np.mean([name == o for name, _ in drawn]) for o in TOP}
    assert max(abs(s - 1/14) for s in shares.values()) < .02
    assert all(abs(np.mean([v < 0 for name, v in drawn if name == o]) - .5) < .12 for o in SIGNED)


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr(module, 'transform', lambda *a: seen.append(len(a[0])) or transform(*a))
    return seen


def test_a_step_takes_one_call_for_each_thing_drawn(calls):
    images = torch.zeros(600, 3, 4, 4, dtype=torch.uint8)
    augment(images, list(range(600)), ops=2)
    assert len(calls) == 2*23 and sum(calls) == 2*600


def test_groups_in_parts_give_the_same(images, calls, monkeypatch):
    images, seeds = images.repeat(8, 1, 1, 1), list(range(40))
    whole, few = augment(images, seeds), len(calls)
    monkeypatch.setattr(module, 'CALL', 1)
    assert torch.equal(augment(images, seeds), whole) and len(calls) - few == 4*40 > few


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('operation,sign', WHAT)
def test_an_operation_on_a_gpu_is_off_by_one_level_at_most(operation, sign):
    images, value = pictures(64, 64), sign*strength(operation, 8, 64, 64)
    off = (transform(images.cuda(), operation, value).cpu().int() - transform(images, operation, value).int()).abs()
    assert off.max() <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_view_on_a_gpu_hangs_on_its_seed_alone(images):
    images = images.cuda()
    whole = augment(images, [3, 1, 4, 1, 5])
    assert whole.is_cuda and torch.equal(augment(images.flip(0), [5, 1, 4, 1, 3]), whole.flip(0))


def test_an_image_is_transformed_by_its_own_seed_alone(images):
    whole = augment(images, [3, 1, 4, 1, 5])
    for i, seed in enumerate([3, 1, 4, 1, 5]): assert torch.equal(augment(images[i:i+1], [seed])[0], whole[i])
    assert torch.equal(augment(images.flip(0), [5, 1, 4, 1, 3]), whole.flip(0))


def test_equal_images_with_unequal_seeds_differ(images):
    views = augment(images[:1].repeat(16, 1, 1, 1), list(range(16)))
    assert len({v.numpy().tobytes() for v in views}) == 16


def test_no_operations_change_nothing(images):
    assert torch.equal(augment(images, [0]*5, ops=0), images)


def test_no_images_give_no_views(images):
    assert augment(images[:0], []).shape == (0, 3, 32, 32)


def test_more_magnitude_moves_further(images):
    smooth = torch.arange(32).mul(8).to(torch.uint8).expand(40, 3, 32, 32)
    def far(magnitude): return (augment(smooth, list(range(40)), 2, magnitude).float() - smooth.float()).abs().mean()
    assert far(1) < far(8) < far(20)


def test_input_and_random_state_stay_as_they_were(images):
    kept = images.clone()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    augment(images, [1, 2, 3, 4, 5])
    assert torch.equal(torch.rand(3), expected) and torch.equal(images, kept)


def test_the_random_state_of_a_gpu_stays_as_it_was(images, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeded.append)
    augment(images, [1, 2, 3, 4, 5])
    assert not seeded, 'a training loop that reads pixels would get the same dropout mask whenever the same image comes last'


def test_a_seed_for_each_image_is_needed(images):
    with pytest.raises(ValueError): augment(images, [1, 2])


def test_normalise_agrees_with_torchvision(images):
    mean, std = (.485, .456, .406), (.229, .224, .225)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(images)
    assert torch.allclose(normalise(images, mean, std), reference, atol=1e-6)


def test_a_device_by_its_word():
    assert pick_device('cpu').type == 'cpu' and pick_device('cuda:1') == torch.device('cuda:1')
    assert pick_device().type == ('cuda' if torch.cuda.is_available() else 'cpu')
    assert accelerator(torch.device('cpu')).device.type == 'cpu'


def settings(): return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def test_one_thread_gives_back_what_it_took():
    before = settings()
    with pytest.raises(KeyError):
        with one_thread():
            assert settings() == (1, True, True)
            raise KeyError
    assert settings() == before


def test_one_thread_inside_one_thread():
    with one_thread():
        with one_thread(): pass
        assert settings() == (1, True, True), 'an operation without a deterministic kernel would now stop the run'
