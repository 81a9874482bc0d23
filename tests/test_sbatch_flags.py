"""Flags of sbatch in a site: one key, however spelled, is one flag, and the site's stands."""

from __future__ import annotations

import pytest

from hpc_isl.errors import UserError
from hpc_isl.recipes.strict import override, parse, to_yaml, value_of
from hpc_isl.sbatch_flags import full_name, merged
from hpc_isl.site import Site


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ("cpus-per-task", "cpus-per-task"), ("cpus_per_task", "cpus-per-task"), ("c", "cpus-per-task"),
        ("--cpus-per-task", "cpus-per-task"), ("-c", "cpus-per-task"), ("cpus-per-t", "cpus-per-task"),
        ("N", "nodes"), ("n", "ntasks"), ("mem", "mem"), ("gpus", "gpus"), ("partit", "partition"),
        ("cpus-per", "cpus-per"), ("of-a-later-slurm", "of-a-later-slurm"),
    ],
)  # fmt: skip
def test_a_flag_has_one_spelling(given: str, flag: str) -> None:
    assert full_name(given) == flag


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        ({"cpus-per-task": 2}, "cpus", 2),
        ({"c": "2"}, "cpus", 2),
        ({"ntasks_per_node": 3}, "processes", 3),
        ({"N": 2}, "nodes", 2),
        ({"gpus-per-node": 4}, "gpus", 4),
        ({"mem": "8G"}, "memory", "8G"),
        ({"mem": 4000}, "memory", "4000M"),
        ({"p": "gpu,cpu"}, "partition", "gpu,cpu"),
        ({"time": 90}, "time", "90min"),
        ({"t": "90:30"}, "time", "91min"),
        ({"t": "2:00:00"}, "time", "120min"),
        ({"t": "1-12"}, "time", "2160min"),
        ({"t": "1-00:30"}, "time", "1470min"),
    ],
)
def test_a_flag_that_has_a_key_becomes_that_key(flags: dict[str, object], key: str, value: object) -> None:
    """So ranks, limits and --dry-run know of it; of the two, the flag counts."""
    content = {
        "executor": "slurm",
        "cpus": 1,
        "nodes": 1,
        "memory": "1G",
        "time": "1h",
        "gpus": 0,
        "sbatch": flags,
    }
    site = parse(Site, content, "site")
    assert (getattr(site, key), site.sbatch) == (value, {})


def test_a_flag_that_only_sbatch_can_read_stays_a_flag() -> None:
    flags = {"N": "2-4", "gpus_per_node": "a100:2", "t": "UNLIMITED", "exclusive": True}
    site = Site.model_validate({"nodes": 1, "sbatch": flags})
    assert site.sbatch == {
        "nodes": "2-4", "gpus-per-node": "a100:2", "time": "UNLIMITED", "exclusive": True
    }  # fmt: skip
    assert merged({"nodes": 1, "gpus-per-node": 2}, site.sbatch) == site.sbatch


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        ({"cpus-per-task": 2, "c": 4}, "c is the flag cpus-per-task, which is given already"),
        ({"a": "0-9"}, "site.array says how many of its elements run at once"),
        ({"parsable": True}, "the number of the job is read from what sbatch says without it"),
        ({"clusters": "a,b"}, "a run is followed on one cluster"),
    ],
)
def test_flags_with_which_no_job_could_be_followed_are_refused(
    flags: dict[str, object], messages: str
) -> None:
    with pytest.raises(UserError, match=messages):
        parse(Site, {"executor": "slurm", "sbatch": flags}, "site")


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"requeue": False}, {"mem": "1G"}),
        ({"no-requeue": True}, {"mem": "1G", "no-requeue": True}),
        ({"mem-per-cpu": "2G"}, {"requeue": True, "mem-per-cpu": "2G"}),
    ],
)
def test_a_given_flag_replaces_a_default_one_that_it_excludes(
    theirs: dict[str, object], expected: object
) -> None:
    assert merged({"requeue": True, "mem": "1G", "qos": None}, theirs) == expected


def test_a_flag_is_meant_as_it_is_written() -> None:
    """To YAML 16:00 is the number 960, and 0012 is 10."""
    flags = ["sbatch={begin: 16:00, exclude: 0012, nice: 100, exclusive: true}"]
    site = parse(Site, override({}, flags), "site")
    assert site.sbatch == {"begin": "16:00", "exclude": "0012", "nice": 100, "exclusive": True}
    assert parse(Site, value_of(to_yaml(site)), "the run folder") == site
