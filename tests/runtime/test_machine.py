"""Several processes that wait for the main one."""

import pytest
import torch

from t2t_vit.errors import UserError
from t2t_vit.runtime.machine import Machine


class OneOfTwo(Machine):
    """A process of two, whose exchange is a list that both hold."""

    def gather(self, value):
        SENT.append(value)
        return [SENT[0], value]


SENT: list[object] = []


@pytest.fixture
def two():
    SENT.clear()
    return [OneOfTwo(torch.device("cpu"), None, rank, 2) for rank in range(2)]


def raises(error):
    def question():
        raise error

    return question


def test_every_process_gets_the_answer(two):
    assert [machine.ask_main_process(lambda: 7) for machine in two] == [7, 7]


def test_an_error_for_the_user_is_the_same_in_every_process(two):
    for machine in two:
        with pytest.raises(UserError, match="no such folder"):
            machine.ask_main_process(raises(UserError("no such folder")))


def test_any_other_error_ends_the_other_processes_too(two):
    with pytest.raises(ZeroDivisionError):
        two[0].ask_main_process(raises(ZeroDivisionError("by zero")))
    with pytest.raises(RuntimeError, match=r"the main process failed: ZeroDivisionError\('by zero'\)"):
        two[1].ask_main_process(raises(ZeroDivisionError("by zero")))
