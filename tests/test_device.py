"""What a machine computes in natively is told when a run is planned, with what it costs where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hpc_isl import device
from hpc_isl.cluster.submit import planning
from hpc_isl.device import Device, cpu, cpu_of, gpus_of, remarks
from hpc_isl.errors import UserError
from hpc_isl.learning.training.precision import as_scored, device_of, resolve
from hpc_isl.recipes.load import load
from hpc_isl.site import Site

ROOT = Path(__file__).parents[1]
# Of each processor the lines that matter, as Linux writes them.
EPYC = "AMD EPYC 7742 64-Core Processor"
EPYC_ROME = f"model name\t: {EPYC}\nflags\t\t: fpu sse4_2 avx f16c fma avx2 sha_ni\n"
SKYLAKE = "model name\t: Intel(R) Xeon(R) Gold 6148 CPU\nflags\t\t: avx2 avx512f avx512dq avx512bw avx512vl\n"
SAPPHIRE = f"{SKYLAKE.strip()} avx512_bf16 amx_bf16 avx512_fp16\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd asimdhp fphp svebf16 i8mm bf16\n"
LISTED = """\
0, GPU-11aa, Tesla V100-SXM2-32GB, 7.0
1, GPU-22bb, NVIDIA A100-SXM4-80GB, 8.0
2, GPU-33cc, NVIDIA GeForce GTX 1080, 6.1
"""


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"), [(EPYC_ROME, False), (SKYLAKE, False), (SAPPHIRE, True), (GRAVITON, True)]
)
def test_a_cpus_instructions_decide_whether_it_computes_bf16(cpuinfo: str, bf16: bool) -> None:
    assert ("bf16" in (cpu_of(cpuinfo).native or ())) == bf16


def test_this_cpu_is_recognised_as_torch_recognises_it() -> None:
    if not device.CPUINFO.exists():
        pytest.skip("no Linux")
    known = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert ("bf16" in (cpu().native or ())) == known
    assert device_of(torch.device("cpu")) == cpu()


def test_gpus_are_known_by_their_compute_capability() -> None:
    """bf16 is emulated before Ampere; fp16 is slower than fp32 on a GTX 1080."""
    found = gpus_of(LISTED, ("1", "GPU-11aa", "2", "7"))
    assert [one.native for one in found] == [
        {"fp32", "bf16", "fp16"}, {"fp32", "fp16"}, {"fp32"}, None
    ]  # fmt: skip
    assert found[1].name == "Tesla V100-SXM2-32GB"


def test_auto_is_fp32_where_bf16_is_emulated() -> None:
    devices = [*gpus_of(LISTED, ("1", "0")), cpu_of(SAPPHIRE)]
    assert [device.resolved("auto", one) for one in devices] == ["bf16", "fp32", "fp32"]
    assert resolve("auto", torch.device("cpu")) == torch.float32
    assert as_scored("bf16", torch.device("cpu")) == torch.float32


def test_a_warning_about_emulation_gives_the_factor_and_its_source() -> None:
    """A user reads that bf16 is emulated, what that costs, how that is known, and what to type."""
    [rome] = remarks("train.precision", "bf16", [cpu_of(EPYC_ROME)])
    assert rome.startswith(f"warning: train.precision=bf16: {EPYC} has no instructions for bf16")
    factor = f"{device.EMULATED['AVX2']:g} times as long as in fp32"
    assert f"took {factor} (measured on a CPU held to the same instructions, docs/performance.md)" in rome
    assert rome.endswith("train.precision=auto takes fp32 there")
    [v100] = remarks("precision", "bf16", gpus_of(LISTED, ("0",)))
    assert "how slow that is was not measured" in v100
    [own] = remarks("train.precision", "bf16", [cpu_of(SAPPHIRE)])
    assert own.startswith("computes in bf16 on Intel(R) Xeon(R) Gold 6148 CPU (train.precision=bf16)")
    [auto] = remarks("train.precision", "auto", [cpu_of(EPYC_ROME)])
    assert auto == f"computes in fp32 on {EPYC} (train.precision=auto); natively it has fp32"


def test_fp16_on_a_cpu_is_refused_and_bf16_is_not_advised_instead() -> None:
    for call in (
        lambda: list(remarks("train.precision", "fp16", [cpu_of(EPYC_ROME)])),
        lambda: resolve("fp16", torch.device("cpu")),
    ):
        with pytest.raises(UserError, match="precision=fp16 needs a GPU") as caught:
            call()
        assert "bf16" not in str(caught.value)


def test_a_plan_reports_the_precision_of_its_device(
    write_stained_plate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stained_plate(tmp_path / "P01.zarr", size=64)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(EPYC_ROME)
    monkeypatch.setattr(device, "CPUINFO", cpuinfo)
    keys = ["sources=[{channel: Brightfield}]", "targets=[{channel: Hoechst}]", "net.weights=null"]

    def said(precision: str, site: Site) -> str:
        words = [f"plates=[{tmp_path}/P01.zarr]", *keys, f"train.precision={precision}"]
        return "\n".join(planning.planned("pretrain", load("pretrain", None, words), site).messages)

    assert "warning: train.precision=bf16: AMD EPYC 7742" in said("bf16", Site(gpus=0))
    assert "computes in fp32 on AMD EPYC 7742" in said("auto", Site(gpus=0))
    assert "the job tells, as it starts" in said("bf16", Site(executor="slurm"))
    for site in (Site(gpus=0), Site(executor="slurm")):
        with pytest.raises(UserError, match=r"train\.precision=fp16 needs a GPU"):
            said("fp16", site)
    assert "the job tells" in said("fp16", Site(executor="slurm", gpus=1))


def test_no_shipped_recipe_asks_for_a_precision_that_most_cpus_emulate() -> None:
    paths = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("docs/study/*.yaml")]
    asked = {path.name: (yaml.safe_load(path.read_text()) or {}).get("train", {}) for path in paths}
    assert len(asked) > 20
    assert {name for name, train in asked.items() if train.get("precision") in ("bf16", "fp16")} == set()


def test_devices_of_one_kind_are_reported_once() -> None:
    assert len(list(remarks("train.precision", "auto", [Device("a GPU", "gpu")] * 4))) == 1
