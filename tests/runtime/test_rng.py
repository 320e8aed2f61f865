"""Random numbers: equal to torch's in every bit, reproducible, independent per picture."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import ParameterError
from sfumato.runtime.rng import PerImage, PhiloxGenerator, TorchGenerator

torch = pytest.importorskip("torch")

SEEDS = [0, 1, 42, 2**32 - 1, 2**32 + 5, -3, 2**63, 2**64 - 1]


def same_bits(ours, theirs) -> bool:
    theirs = theirs.numpy()
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


@pytest.fixture(scope="module", autouse=True)
def avx2():
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch's normals have other last bits on this processor")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (15,), (16,), (17,), (31,), (2, 4, 8, 8), (1, 3, 5, 7), (0,), (2, 0)]
)
def test_normals(seed, shape):
    assert same_bits(
        TorchGenerator(seed).randn(shape), torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_any_sequence_of_draws(seed):
    choose = np.random.default_rng(seed % 1000)
    ours, theirs = TorchGenerator(seed), torch.Generator().manual_seed(seed)
    for _ in range(150):
        size = int(choose.choice([0, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 100, 255, 1000, 4096, 16385]))
        kind = choose.integers(4)
        if kind < 2:
            pair = ours.randn(size), torch.randn(size, generator=theirs)
        elif kind == 2:
            pair = ours.rand(size), torch.rand(size, generator=theirs)
        else:
            high = int(choose.choice([2, 10, 1000, 2**28 - 6, 2**28, 2**31, 2**40]))
            pair = ours.randint(-5, high, (size,)), torch.randint(-5, high, (size,), generator=theirs)
        assert same_bits(*pair)


def test_odd_draws_below_sixteen_keep_the_second_normal():
    ours, theirs = TorchGenerator(9), torch.Generator().manual_seed(9)
    for size in (1, 16, 1, 3, 40, 2, 1):
        assert same_bits(ours.randn(size), torch.randn(size, generator=theirs))


def test_four_million_normals():
    assert same_bits(TorchGenerator(5).randn(1 << 22), torch.randn(1 << 22, generator=torch.Generator().manual_seed(5)))


def test_global_seed_and_own_generator_are_the_same_stream():
    state = torch.get_rng_state()
    torch.manual_seed(1234)
    expected = torch.randn(2, 4, 8, 8)
    torch.set_rng_state(state)
    assert same_bits(TorchGenerator(1234).randn((2, 4, 8, 8)), expected)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "7", None, True])
def test_seeds_that_torch_would_refuse(seed):
    with pytest.raises(ParameterError, match="seed is"):
        TorchGenerator(seed)


def test_bad_shapes_and_ranges():
    with pytest.raises(ParameterError, match="negative extent"):
        TorchGenerator(0).randn((2, -1))
    with pytest.raises(ParameterError, match="low < high"):
        TorchGenerator(0).randint(3, 3, (2,))


def test_a_list_of_generators_is_what_diffusers_draws():
    diffusers_utils = pytest.importorskip("diffusers.utils.torch_utils")
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 9)]
    expected = diffusers_utils.randn_tensor((3, 4, 8, 8), generator=generators)
    assert same_bits(PerImage.torch([7, 8, 9]).randn((3, 4, 8, 8)), expected)


def test_philox_pictures_do_not_depend_on_the_batch():
    four = PerImage.philox(3, 4)
    two = PerImage.philox(3, 2, first=2)
    for shape in ((4, 8, 8), (3,), (1, 5, 5)):
        np.testing.assert_array_equal(four.randn((4, *shape))[2:], two.randn((2, *shape)))


def test_philox_is_standard_normal_and_pinned():
    values = PhiloxGenerator(1).randn(1 << 20)
    assert values.dtype == np.float32
    assert abs(values.mean()) < 4e-3
    assert abs(values.std() - 1) < 3e-3
    assert abs(np.mean(values**4) - 3) < 0.05
    uniform = PhiloxGenerator(1).rand(100_001)
    assert uniform.shape == (100_001,)
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4e-3
    np.testing.assert_array_equal(PhiloxGenerator(1, 5).randn(3), PhiloxGenerator(1, 5).randn(3))
    assert not np.array_equal(PhiloxGenerator(1, 5).randn(3), PhiloxGenerator(1, 6).randn(3))


def test_sources_have_to_match_the_batch():
    with pytest.raises(ParameterError, match="2 sources"):
        PerImage.torch([1, 2]).randn((3, 4))
    with pytest.raises(ParameterError, match="must lie in"):
        PhiloxGenerator(-1)
