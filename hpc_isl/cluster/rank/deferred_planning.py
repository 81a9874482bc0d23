"""A run that was submitted before its inputs were there is planned when its job starts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from hpc_isl.cluster.run_folder.provenance import planned, standing_in
from hpc_isl.errors import UserError
from hpc_isl.files import read_json, write_atomic
from hpc_isl.recipes.load import load_kept
from hpc_isl.recipes.strict import to_yaml
from hpc_isl.run import Attempt, Plan, Run


def is_deferred(run: Run) -> bool:
    """Whether the run still has to be planned."""
    return not (read_json(run.record) or {}).get("planned", True)


def plan_deferred(module: ModuleType, attempt: Attempt) -> None:
    """Rank 0 plans and keeps the plan in the run folder; the other ranks wait for it.

    Raises:
        UserError: what the stage says of its inputs; in the other ranks, that rank 0 has ended.
    """
    if attempt.rank == 0 and is_deferred(attempt.run):
        _plan(module, attempt)
    while is_deferred(attempt.run):
        if (read_json(attempt.folder / "rank-0.json") or {}).get("exit"):
            raise UserError("rank 0 could not plan this run; its log says why")
        time.sleep(0.5)


def _plan(module: ModuleType, attempt: Attempt) -> None:
    run = attempt.run
    kept: dict[str, Any] = read_json(run.record) or {}
    recipe = load_kept(run.stage, run.recipe)
    with standing_in(Path(kept["cwd"])):
        plan: Plan = module.plan(recipe)
    plan.check_size(attempt.size)
    for line in plan.messages:
        attempt.log(line)
    write_atomic(run.recipe, to_yaml(plan.recipe))
    write_atomic(run.record, json.dumps(kept | planned(plan) | {"planned": True}, indent=1))
