# pyright: basic
"""What SD 1.x, SDXL and PixArt share: a network trained on a schedule of discrete noise steps."""

import json
from typing import Any

from trainer.families.over_diffusers import DiffusersFamily
from trainer.families.protocol import BaseModel, Objective


class ScheduleFamily(DiffusersFamily):
    """A family that predicts noise, or velocity where the base's scheduler says so."""

    def objective(self, base: BaseModel) -> Objective:
        """As the base's scheduler has it."""
        return noise_schedule(base).get("prediction_type", "epsilon")

    def pipeline_of(self, base: BaseModel, given: dict[str, Any], loaded: list[str], **options: Any) -> Any:
        """With the scheduler that the training follows."""
        pipeline = super().pipeline_of(base, given, loaded, **options)
        if base.schedule and "scheduler" in loaded:
            pipeline.scheduler = pipeline.scheduler.from_config({**pipeline.scheduler.config, **base.schedule})
        return pipeline


def noise_schedule(base: BaseModel) -> dict[str, Any]:
    """The settings of the base's scheduler, with what replaces them."""
    stored = json.loads((base.folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    return {**stored, **base.schedule}
