"Perceptual hashes: equal to the reference where it is installed, and what a hash must do anyway."
import numpy as np
import pytest
from PIL import Image

from subtask_kit.core import rng_for
from subtask_kit.phash import DCT, INSETS, RADIUS, distance, from_hex, pack, pdq, pdq_insets, pdq_turns, shrink_matrix, spectrum, to_hex


def picture(seed, h=256, w=256):
    "Smooth noise in colour."
    coarse = rng_for('picture', seed).integers(0, 256, (12, 12, 3), 'uint8')
    return np.asarray(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC))


@pytest.mark.parametrize('shape', [(256, 256), (64, 64), (200, 313), (512, 130), (640, 427), (129, 127)])
def test_bit_equal_to_pdqhash(shape):
    "The reference is a C++ package without wheels: it is compared with wherever somebody has built it."
    pdqhash = pytest.importorskip('pdqhash')
    for seed in range(10):
        image = picture(seed, *shape)
        code, quality = pdq(image[None])
        bits, their_quality = pdqhash.compute(image)
        assert np.array_equal(np.unpackbits(code.view('uint8'))[::-1], bits) and quality[0] == their_quality
        theirs = {tuple(b) for b in pdqhash.compute_dihedral(image)[0]}
        assert {tuple(np.unpackbits(c.view('uint8'))[::-1]) for c in pdq_turns(image[None])[0]} == theirs


# What pdqhash 0.2.8 answered to `picture(seed, h, w)`, so that the comparison also runs where it cannot be built.
REFERENCE = {
    (0, 256, 256): ('456af5b63f36f19472f5d1c83cf0fd0a8e6b04b414f006f1e10ffb4b798e0085', 100),
    (1, 64, 64): ('ada46cf14c8d7336728d6037ce3754379d0e2f9c036a8e70fc85d06362e1abd8', 100),
    (2, 200, 313): ('5c738027e31e08374cb5a89d2162831e74379d2ee873e073178c769d8b9c7c7b', 100),
    (3, 512, 130): ('bdb07e0febfa45f0acf1c823888d264b7ef1a972a872a871578c568d810ed994', 100),
    (4, 129, 127): ('15c89db4c362deb525b444c9e04bc4f1c13621d90d9c0d9cf0f1dd367ef1335b', 100)}


@pytest.mark.parametrize('key', sorted(REFERENCE))
def test_equal_to_recorded_answers(key):
    code, quality = pdq(picture(*key)[None])
    assert (to_hex(code)[0], int(quality[0])) == REFERENCE[key]


@pytest.mark.parametrize('n', [1, 2, 31, 63, 64, 65, 127, 128, 129, 200, 256, 257, 1000])
def test_shrinking_is_two_running_means(n):
    "Against a plain loop over windows."
    x = rng_for('row', n).random(n)
    window = -(-n//128)
    def mean(v): return np.array([v[max(0, i+(window+2)//2-window):i+(window+2)//2].mean() for i in range(n)])
    assert np.allclose(shrink_matrix(n)@x, mean(mean(x))[[int((i+.5)*n/64) for i in range(64)]], atol=1e-6)


def test_the_transform_is_scipys():
    from scipy.fft import dctn
    x = rng_for('dct').random((64, 64))
    assert np.allclose(DCT@x@DCT.T, dctn(x, norm='ortho')[1:17, 1:17], atol=1e-4)


def test_half_of_the_bits_are_set_and_copies_stay_near():
    image = picture(1)
    code = pdq(image[None])[0][0]
    assert np.bitwise_count(code).sum() == 128
    small = np.asarray(Image.fromarray(image).resize((128, 128)))
    assert distance(code, pdq(small[None])[0][0]) <= RADIUS
    assert distance(code, pdq((image*.7).astype('uint8')[None])[0][0]) <= RADIUS
    assert all(distance(code, pdq(picture(s)[None])[0][0]) > RADIUS for s in range(2, 30))


def test_flat_pictures_have_no_quality():
    flat = np.stack([np.full((64, 64, 3), v, 'uint8') for v in (0, 128, 255)])
    assert pdq(flat)[1].tolist() == [0, 0, 0] and pdq(picture(3)[None])[1][0] > 50


def test_batches_do_not_matter():
    images = np.stack([picture(s, 64, 64) for s in range(5)])
    whole = pdq(images)
    for i in range(5):
        one = pdq(images[i:i+1])
        assert np.array_equal(one[0][0], whole[0][i]) and one[1][0] == whole[1][i]
    assert pdq(images[:0])[0].shape == (0, 4) and pdq_turns(images[:0]).shape == (0, 8, 4)


def test_turns_find_the_turned_picture():
    image = picture(4, 64, 64)  # at 64 pixels nothing is blurred: mirrors are exact but for rounding at the median
    forms = [f for base in (image, image.transpose(1, 0, 2)) for f in (base, base[:, ::-1], base[::-1], base[::-1, ::-1])]
    own = pdq_turns(image[None])[0]
    for n, form in enumerate(forms): assert distance(own, pdq(form[None])[0][0]).argmin() == n and distance(own[n], pdq(form[None])[0][0]) <= 2


def test_distance_and_text():
    rng = rng_for('codes')
    a, b = rng.integers(0, 2**63, (2, 7, 4)).astype('uint64')
    plain = [[bin(int(x)^int(y)).count('1') for x, y in zip(r, s)] for r, s in zip(a, b)]
    assert distance(a, b).tolist() == np.sum(plain, 1).tolist()
    assert np.array_equal(from_hex(to_hex(a)), a) and all(len(t) == 64 for t in to_hex(a)) and len(from_hex([])) == 0
    assert distance(a[:, None], b[None]).shape == (7, 7)


def test_ties_at_the_median_leave_at_most_half_of_the_bits():
    assert np.bitwise_count(pack(np.zeros((16, 16), 'float32'))).sum() == 0
    f = np.arange(256, dtype='float32').reshape(16, 16)
    assert np.unpackbits(pack(f).view('uint8')).tolist() == [0]*128 + [1]*128
    assert np.array_equal(pack(np.stack([f, -f]))[0], pack(f))


def test_any_size_works():
    for h, w in ((1, 1), (1, 500), (17, 33)): assert np.isfinite(spectrum(picture(0, h, w))[0]).all()


@pytest.mark.parametrize('h, w', [(64, 64), (200, 313), (100, 100), (33, 65)])
def test_views_are_hashes_of_cut_pictures(h, w):
    images = np.stack([picture(s, h, w) for s in range(3)])
    views = pdq_insets(images)
    assert views.shape == (3, len(INSETS), 4) and views.dtype == 'uint64'
    for k, inset in enumerate(INSETS):
        y, x = round(h*inset), round(w*inset)
        assert y > 0 and x > 0 and np.array_equal(views[:, k], pdq(images[:, y:h-y, x:w-x])[0])
    for i in range(3): assert np.array_equal(pdq_insets(images[i:i+1])[0], views[i])


def test_views_come_close_to_crops():
    "What was cut off a copy is cut off a view."
    for seed in range(10):
        image = picture(seed)
        for k, inset in enumerate(INSETS):
            n = round(256*inset)
            copy = pdq(np.asarray(Image.fromarray(image[n:256-n, n:256-n]).resize((256, 256), Image.Resampling.BICUBIC))[None])[0][0]
            views = distance(pdq_insets(image[None])[0], copy)
            assert views.argmin() == k and views[k] <= RADIUS and views[k] < distance(pdq(image[None])[0][0], copy)


def test_views_of_nothing_and_of_little():
    assert pdq_insets(np.zeros((0, 64, 64, 3), 'uint8')).shape == (0, len(INSETS), 4)
    tiny = picture(0, 8, 8)  # an eighth of a pixel to cut: nothing is cut
    assert np.array_equal(pdq_insets(tiny[None])[0], pdq(tiny[None])[0].repeat(len(INSETS), 0))
