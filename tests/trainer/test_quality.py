# pyright: basic
import json
from pathlib import Path

from attempts import FIXTURE, AttemptStarter

from shared.contracts.run import ExitCode
from trainer.demo_data import write_demo_data
from trainer.quality import measure

TRAINER = Path(__file__).parents[2] / "trainer"


def test_the_demo_job_learns_the_colours_of_its_pictures(start: AttemptStarter, tmp_path: Path) -> None:
    """The end-to-end fact: loss falls, and renders come much closer to the training pictures than without the LoRA."""
    data = tmp_path / "hundred"
    write_demo_data(data, 100)
    config = json.loads((TRAINER / "demo_config.json").read_text())
    dataloader = json.loads((TRAINER / "demo_dataloader.json").read_text())
    dataloader[0]["instance_data_dir"] = str(data)
    settings = {key.removeprefix("--"): value for key, value in config.items()}
    attempt = start("demo", dataloader=dataloader, **{**settings, "pretrained_model_name_or_path": str(FIXTURE)})
    assert attempt.run() == ExitCode.DONE
    losses = [line["loss"] for line in attempt.data("metrics")]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    found = measure(FIXTURE, attempt.lora, data, steps=8)
    assert found["colour_distance_without"] > 0.5
    assert found["colour_distance_with"] < 0.25 * found["colour_distance_without"]
    assert found["digit_accuracy_without"] >= 0.9
    assert found["digit_accuracy_with"] >= 0.5
