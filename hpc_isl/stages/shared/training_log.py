"""How training goes, written down: the bar, lines of metrics, words for the log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hpc_isl.run import Attempt
from hpc_isl.stages.shared.held_out import CONSTANT, constant_text, mean
from hpc_isl.stages.shared.workloads import STEPS

METRIC_LINES = 1000
TITLES = {"pcc": "PCC", "mae": "MAE", "loss": "loss"}


@dataclass
class TrainingLog:
    """Keeps the bar moving, and a line of metrics for about every thousandth of the way.

    Attributes:
        steps: of the whole run; `batch`: crops in a step, over all ranks.
        share: micro-batches of this rank in a step.
    """

    attempt: Attempt
    steps: int
    batch: int
    share: int = 1
    _window: list[Mapping[str, float]] = field(default_factory=list)
    _shown: dict[str, float] = field(default_factory=dict)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """After a step: `values` as the loop reports them; the metrics are means since the last line."""
        self.attempt.clock.tick(STEPS, self.share)
        self._window.append(values)
        self._shown["loss"] = values["loss"]
        self.attempt.progress(step, self.steps, "steps", **self._shown)
        if step % max(1, self.steps // METRIC_LINES) and step != self.steps:
            return
        means = {name: mean(line[name] for line in self._window) for name in values}
        self._window.clear()
        means["crops_per_s"] = self.batch / max(means["step_s"], 1e-9)
        # fp16 passes over steps whose gradient is infinite: JSON has no such number
        finite = {f"train/{name}": value for name, value in means.items() if math.isfinite(value)}
        self.attempt.metric(step, **finite)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """After scoring the validation wells."""
        finite = {name: value for name, value in scores.items() if not math.isnan(value)}
        self._shown |= {"pcc": finite["pcc"]} if "pcc" in finite else {}
        self.attempt.metric(step, **{f"validation/{name}": value for name, value in finite.items()})
        said = ", ".join(f"{title} {scores[name]:.4f}" for name, title in TITLES.items() if name in scores)
        blind = f"; {constant_text(scores[CONSTANT])}" if CONSTANT in scores else ""
        self.attempt.log(f"step {step}: validation {said}{blind}")
