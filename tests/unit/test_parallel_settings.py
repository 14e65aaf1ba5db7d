"""The config group `strategy`: sizes, and what does not go together."""

import pytest
import torch

from minillm.common.errors import ConfigError
from minillm.common.ranks import in_a_worker, local_rank, rank
from minillm.parallel import Parallel, environment


def test_sizes():
    settings = Parallel("fsdp_tp", devices=8, num_nodes=4, tensor_parallel_size=2)
    assert (settings.world_size, settings.data_parallel_size, settings.sharded) == (32, 16, True)
    assert Parallel("ddp", devices="auto").devices_here == max(1, torch.cuda.device_count())
    assert Parallel().world_size == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(kind="single", devices=2), "strategy=single is for one device"),
        (dict(kind="ddp", devices=0), "devices=0: wanted a positive number, or auto"),
        (dict(kind="ddp", devices=1, num_nodes=0), "num_nodes=0"),
        (dict(kind="fsdp", devices=4, tensor_parallel_size=2), "only strategy=fsdp_tp splits layers"),
        (dict(kind="fsdp_tp", devices=4, tensor_parallel_size=3), "does not divide the 4 devices"),
        (dict(kind="ddp", devices=2, cpu_offload=True), "cpu_offload=true: only parts of weights"),
        (dict(kind="ddp", devices=2, reduce="step"), "reduce=step with kind=ddp"),
        (dict(kind="fsdp", devices=2, reduce="step", cpu_offload=True), "reduce=step with kind=fsdp, cpu_offload=true"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Parallel(**settings)


@pytest.fixture
def started(monkeypatch):
    for name in (
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)

    def by(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return by


def test_processes_that_are_there_must_be_as_many_as_devices(started):
    assert Parallel("ddp", devices=2).problems() == []
    started(WORLD_SIZE="4", RANK="1")
    assert in_a_worker() and rank() == 1
    assert "4 processes were started" in Parallel("ddp", devices=2).problems()[0]
    assert Parallel("ddp", devices=2, num_nodes=2).problems() == []
    assert type(environment()).__name__ == "TorchElasticEnvironment"


def test_one_process_cannot_start_other_nodes(started):
    assert "use torchrun or srun on each" in Parallel("ddp", devices=2, num_nodes=2).problems()[0]


def test_a_job_of_slurm_is_srun_s_only_where_srun_started_it(started):
    started(SLURM_NTASKS="8", SLURM_PROCID="0")  # a batch script without srun
    assert not in_a_worker() and type(environment()).__name__ == "LightningEnvironment"
    started(SLURM_STEP_NUM_TASKS="8", SLURM_PROCID="3", SLURM_NTASKS_PER_NODE="8")
    assert in_a_worker() and rank() == 3 and environment().auto_requeue is False


def test_the_device_of_a_process_is_numbered_on_its_node(started):
    started(LOCAL_RANK="5")  # left of another command
    assert local_rank() == 0
    started(WORLD_SIZE="16", RANK="9", LOCAL_RANK="1")
    assert local_rank() == 1


def test_srun_numbers_it_too(started):
    started(SLURM_STEP_NUM_TASKS="16", SLURM_PROCID="9", SLURM_LOCALID="1")
    assert rank() == 9 and local_rank() == 1
