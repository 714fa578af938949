"""A sweep on a Ray cluster of two nodes on this machine: the table of one process, also when a node is lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading

import pytest

pytest.importorskip("ray")

import ray
import torch
from ray.cluster_utils import Cluster

from steerscope import SearchOptions, get_task
from steerscope.errors import InputError
from steerscope.experiments.engine import sweep as engine_sweep
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.searching import search_sites
from steerscope.experiments.site_tables import SiteTable
from tests.experiments.carrying.sharing import OPTIONS, numbers, swept, tiny

# Ray leaves sockets and files to the garbage collector, and speaks of changes to come.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.filterwarnings("ignore::ResourceWarning")]
ON_RAY = dataclasses.replace(OPTIONS, engine="ray", num_cpus=1)


@pytest.fixture(scope="module")
def loaded():
    return tiny()


@pytest.fixture(scope="module")
def alone(loaded, tmp_path_factory) -> SiteTable:
    torch.set_num_threads(1)
    return swept(tmp_path_factory.mktemp("alone") / "sweep", loaded=loaded)


@pytest.fixture(scope="module")
def cluster():
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.second = found.add_node(num_cpus=1)
    ray.init(address=found.address, log_to_driver=False)  # which a sweep then uses, and leaves
    yield found
    ray.shutdown()
    found.shutdown()


def on(cluster, **changes):
    return dataclasses.replace(ON_RAY, address=cluster.address, **changes)


def test_no_cluster_answers(loaded, tmp_path):
    """The first test, because a process that is connected to a cluster uses that one."""
    options = dataclasses.replace(ON_RAY, address="127.0.0.1:1")
    with pytest.raises(InputError, match=r"address is '127.0.0.1:1', and there is no Ray cluster that answers"):
        swept(tmp_path / "sweep", options, loaded)


def test_two_nodes_come_to_the_table_of_one_process(cluster, loaded, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_sweep, "train_pack", None)  # nothing is trained in this process
    table = swept(tmp_path / "sweep", on(cluster), loaded)
    assert len(table.runs) == 24
    assert numbers(table) == numbers(alone)
    again = swept(tmp_path / "sweep", OPTIONS, loaded)  # all is kept, by whatever is carried on with
    assert numbers(again) == numbers(alone)


@pytest.mark.slow
def test_a_search_comes_to_the_same(cluster, loaded, tmp_path):
    """Runs that stop and go on beside others carry their state to whichever node goes on with them."""
    splits = splits_of_task(get_task("listops"))
    local = SearchOptions(
        candidates=4, rank=2, steps=10, batch_size=4, references=False, num_ranking=24, num_selection=16, num_test=16
    )  # fmt: skip
    options = dataclasses.replace(local, engine="ray", num_cpus=1, address=cluster.address)
    found = [search_sites(loaded, splits, own, tmp_path / own.engine) for own in (local, options)]
    assert [dataclasses.replace(one.best, seconds=0) for one in found[:1]] == [
        dataclasses.replace(one.best, seconds=0) for one in found[1:]
    ]
    assert found[0].contenders == found[1].contenders


@pytest.mark.slow
def test_the_driver_is_stopped_and_goes_on(cluster, loaded, alone, tmp_path):
    def stop(stage, done, total):
        if done >= total // 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "sweep", on(cluster), loaded, progress=stop)
    partial = SiteTable.load(tmp_path / "sweep" / "table.json")
    assert 0 < len(partial.runs) < 24
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "runs").iterdir()}
    assert numbers(swept(tmp_path / "sweep", on(cluster), loaded)) == numbers(alone)
    assert (
        kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "sweep" / "runs").iterdir()}.items()
    ), "what was finished is not done again"


def test_what_a_cluster_cannot_do_is_said_in_a_sentence(cluster, loaded, tmp_path):
    with pytest.raises(InputError, match=r"needs 1 CPUs and 2 GPUs, and the nodes .* have 1 CPUs and 0 GPUs"):
        swept(tmp_path / "one", on(cluster, num_gpus=2), loaded)
    loaded.model.not_to_be_pickled = threading.Lock()
    with pytest.raises(InputError, match=r"cannot be sent to other machines .*lock.*\. Give the model by its name"):
        swept(tmp_path / "two", on(cluster), loaded)
    del loaded.model.not_to_be_pickled


def test_a_node_is_lost_half_way(cluster, loaded, alone, tmp_path):
    lost = []

    def lose(stage, done, total):
        if done >= total // 2 and not lost:
            lost.append(done)
            cluster.remove_node(cluster.second, allow_graceful=False)

    table = swept(tmp_path / "sweep", on(cluster), loaded, progress=lose)
    assert lost
    assert numbers(table) == numbers(alone)
