import pytest
import torch

from powerclip.devices import find_device
from powerclip.errors import PowerclipError


def test_a_gpu_is_the_process_s_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 3)
    assert find_device("cpu") == torch.device("cpu")


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_what_does_not_exist_here_is_refused(name):
    with pytest.raises(PowerclipError, match=f"^device '{name}' cannot be used here; use auto, cpu or a GPU"):
        find_device(name)
