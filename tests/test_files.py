"""Folders that a group may share."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_isl.errors import UserError
from hpc_isl.files import make_folder


def test_a_folder_that_cannot_have_its_group_leaves_no_parents_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no-such-group"):
        make_folder(tmp_path / "runs" / "pretrain" / "first", "no-such-group")
    assert list(tmp_path.iterdir()) == []
