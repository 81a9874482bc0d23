"""How ranks find each other, and what happens when one does not come."""

import json
import socket
import threading

import pytest
import torch

from hpc_isl.errors import UserError
from hpc_isl.learning.training import world
from hpc_isl.learning.training.world import World, open_world
from hpc_isl.run import Attempt, Run


def attempt(folder, rank=0, size=1, nodes=1):
    local = size // nodes
    return Attempt(Run(folder), rank=rank, size=size, local_rank=rank % local, local_size=local, cpus=1)


def test_one_process_needs_no_group(tmp_path):
    with open_world(attempt(tmp_path)) as alone:
        assert alone == World()
        assert torch.equal(alone.all_reduce(torch.ones(2)), torch.ones(2))
        assert alone.gather("x") == ["x"]
        assert alone.broadcast("x") == "x"
        alone.barrier()
    assert not torch.distributed.is_initialized()
    assert not list(tmp_path.iterdir())


def test_threads_are_capped_to_the_cpus_of_the_job(tmp_path):
    before = torch.get_num_threads()
    try:
        world.cap_threads(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def meet(of, timeout_s=20.0):
    """The store of one rank, in this process: threads stand for ranks, the sockets are real."""
    return world._rendezvous(of, timeout_s)


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_share_a_store_found_through_the_run_folder(tmp_path, nodes, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "kept")
    stores = {}
    threads = [
        threading.Thread(target=lambda r=r: stores.update({r: meet(attempt(tmp_path, r, 2, nodes))}))
        for r in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stores[0].set("word", "from 0")
    assert stores[1].get("word") == b"from 0"
    published = json.loads((tmp_path / "attempts" / "0" / "rendezvous.json").read_text())
    assert (published["hosts"] == ["127.0.0.1"]) == (nodes == 1)


def test_a_missing_rank_is_named(tmp_path):
    with pytest.raises(UserError, match=r"only 1 of 3 processes have come; missing ranks: \[1, 2\]"):
        meet(attempt(tmp_path, 0, 3), timeout_s=0.3)


def test_a_missing_rank_0_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"rank 0 was not found.*no address was published"):
        meet(attempt(tmp_path, 1, 2), timeout_s=0.3)


def test_a_file_left_by_an_earlier_process_is_not_followed(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    place = tmp_path / "attempts" / "0" / "rendezvous.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"hosts": ["127.0.0.1"], "port": port, "nonce": "old", "node": "n1"}))
    with pytest.raises(UserError, match=rf"port {port} of node n1 did not answer"):
        meet(attempt(tmp_path, 1, 2), timeout_s=0.5)


def test_another_runs_store_on_that_port_is_not_joined(tmp_path):
    store, _ = world._listen(tmp_path / "other.json", True, 2, 5)
    published = json.loads((tmp_path / "other.json").read_text()) | {"nonce": "ours"}
    place = tmp_path / "attempts" / "0" / "rendezvous.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(published))
    with pytest.raises(UserError, match="did not answer"):
        meet(attempt(tmp_path, 1, 2), timeout_s=0.5)
    del store


def test_more_processes_than_gpus_on_a_node_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 processes on a node that shows 2 GPUs"):
        world._device(0, 4)
