"Devices, threads, and transformations that hang on a seed alone."
import numpy as np
import pytest
import torch
from subtask_kit.augment import augment, normalise
from subtask_kit.device import accelerator, one_thread, pick_device
from torchvision.transforms import v2


@pytest.fixture
def images(): return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype='uint8'))


def test_an_image_is_transformed_by_its_own_seed_alone(images):
    whole = augment(images, [3, 1, 4, 1, 5])
    for i, seed in enumerate([3, 1, 4, 1, 5]): assert torch.equal(augment(images[i:i+1], [seed])[0], whole[i])
    assert torch.equal(augment(images.flip(0), [5, 1, 4, 1, 3]), whole.flip(0))


def test_equal_images_with_unequal_seeds_differ(images):
    views = augment(images[:1].repeat(8, 1, 1, 1), list(range(8)))
    assert len({v.numpy().tobytes() for v in views}) >= 7


def test_no_operations_change_nothing(images):
    assert torch.equal(augment(images, [0]*5, ops=0), images)


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
