"""One thread for what is small, and all of them afterwards."""

import pytest
import torch
from ferrule.compiler.threads import SMALL, TorchThreads, threads_for
from torch import nn


@pytest.fixture
def two():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two")
def test_small_arguments_have_one_thread_and_large_ones_all():
    with TorchThreads() as threads:
        threads.take([torch.ones(3), "no tensor"])
        assert torch.get_num_threads() == 1
        threads.take([torch.ones(3), torch.ones(SMALL)])
        assert torch.get_num_threads() == 2
        threads.take([])
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two")
def test_all_threads_are_back_after_an_error():
    with pytest.raises(ValueError, match="wrong"), TorchThreads() as threads:
        threads.take([torch.ones(3)])
        raise ValueError("wrong")
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(("wide", "threads"), [(8, 1), (SMALL, 2)])
def test_a_model_s_largest_parameter_decides(wide: int, threads: int):
    with threads_for(nn.Linear(1, wide)):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2
