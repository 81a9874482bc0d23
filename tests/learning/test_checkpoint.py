"""Checkpoints: complete or not there, newest complete first, never another run's."""

import pickle

import pytest
import torch

from hpc_isl.errors import UserError
from hpc_isl.learning.training.checkpoint import Checkpoints


def state(value=1.0):
    return {"network": {"w": torch.full((100, 100), value)}, "progress": {"best": None}}


@pytest.fixture
def said():
    return []


@pytest.fixture
def checkpoints(tmp_path, said):
    return Checkpoints(tmp_path / "checkpoints", "abc", keep=2, log=said.append)


def test_nothing_saved_is_nothing_to_resume(checkpoints):
    assert checkpoints.newest() is None
    assert checkpoints.best() is None


def test_a_state_is_read_as_it_was_saved(checkpoints):
    checkpoints.save(7, state(3.5))
    found = checkpoints.newest()
    assert found["step"] == 7
    assert torch.equal(found["network"]["w"], state(3.5)["network"]["w"])


def test_only_the_newest_are_kept(checkpoints):
    for step in (1, 2, 10):
        checkpoints.save(step, state())
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-00000002.pt", "step-00000010.pt"]


@pytest.mark.parametrize("kept", [0, 1, 1000, 20000, -1])
def test_a_truncated_checkpoint_is_skipped_for_the_one_before(checkpoints, said, kept):
    checkpoints.save(1, state(1.0))
    path = checkpoints.save(2, state(2.0))
    path.write_bytes(path.read_bytes()[:kept])
    assert checkpoints.newest()["step"] == 1
    assert "step-00000002.pt" in said[0]


def test_a_flipped_bit_in_the_middle_is_noticed(checkpoints):
    checkpoints.save(1, state(1.0))
    path = checkpoints.save(2, state(2.0))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoints.newest()["step"] == 1


def test_another_recipes_checkpoint_is_refused(checkpoints, tmp_path):
    checkpoints.save(1, state())
    with pytest.raises(UserError, match=r"digest abc, this run has xyz.*another name"):
        Checkpoints(tmp_path / "checkpoints", "xyz").newest()


def test_weights_that_are_not_finite_are_not_written(checkpoints):
    checkpoints.save(1, state())
    with pytest.raises(UserError, match=r"no longer finite \(w\)"):
        checkpoints.save(2, state(float("nan")))
    assert checkpoints.newest()["step"] == 1


def test_a_checkpoint_that_holds_code_is_not_run(checkpoints, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save(
        {"network": {}, "bad": Evil()}, checkpoints.folder / "step-00000009.pt", pickle_module=pickle
    ) if (checkpoints.folder.mkdir() is None) else None
    assert checkpoints.newest() is None
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_is_reported_and_leaves_earlier_checkpoints(checkpoints, monkeypatch):
    import errno

    checkpoints.save(1, state())

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hpc_isl.learning.training.checkpoint.write_atomic", full)
    with pytest.raises(UserError, match="disk is full"):
        checkpoints.save(2, state())
    assert checkpoints.newest()["step"] == 1


def test_the_best_state_is_kept_beside_the_newest(checkpoints):
    checkpoints.save_best({**state(1.0), "step": 4})
    checkpoints.save_best({**state(2.0), "step": 8})
    assert checkpoints.best()["step"] == 8
    assert checkpoints.newest() is None
