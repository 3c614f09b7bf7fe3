import pytest
import torch

from ppgen.programs.threads import limited, threads_for


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_small_operators_get_one_thread_and_large_ones_what_torch_may_use():
    assert [threads_for(width) for width in (0.0, 640.0, 1 << 17, 1 << 18, 1 << 30)] == [1, 1, 1, 2, 2]


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_threads_comes_back_also_after_an_error():
    with limited(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), limited(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    with limited(None):
        assert torch.get_num_threads() == 2
