"""What a finished LoRA does for the person who asks: pictures by `tunewright try`."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Road
from tests.support.system import TRAINER_PYTHON, System

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_LOOK = """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image

def border(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)[:3].mean(axis=(0, 1)) / 255

target = np.mean([border(path) for path in Path(sys.argv[1]).glob("*.png")], axis=0)
distances = [float(np.linalg.norm(border(path) - target)) for path in sys.argv[2:]]
told = [json.loads(Image.open(path).text["tunewright"]) for path in sys.argv[2:]]
print(json.dumps({"distances": distances, "told": told}))
"""
"""How far each picture's border is in colour from that of the training pictures (RGB), and what its PNG says."""


def look_at(pictures: Path, *drawn: str) -> dict[str, Any]:
    command = [str(TRAINER_PYTHON), "-c", _LOOK, str(pictures), *drawn]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def test_try_draws_nearer_to_the_pictures_than_the_base_does(
    system: System, road: Road, pictures: Path, tmp_path: Path
) -> None:
    wanted = ("--compare", "--count", "2", "-o", str(tmp_path / "seven.png"), "--json")
    done = system.tunewright("try", road.job_id[:20], "a handwritten digit seven", *wanted)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    drawn = {(each["with_lora"], each["seed"]): each for each in told["pictures"]}
    assert set(drawn) == {(side, seed) for side in (False, True) for seed in (7, 8)}, "seeds are the validation's"
    for seed in (7, 8):
        seen = look_at(pictures, drawn[False, seed]["path"], drawn[True, seed]["path"])
        without, with_lora = seen["distances"]
        assert with_lora < 0.5 * without, seen
        of_base, of_tuned = seen["told"]
        assert (of_base["lora_sha256"], of_tuned["seed"], of_tuned["steps"]) == (None, seed, 8)
        assert of_tuned["job_id"] == road.job_id
        listed = system.http.get(f"/api/v1/jobs/{road.job_id}/artifacts").json()["artifacts"]
        assert of_tuned["lora_sha256"] in {file["sha256"] for file in listed}


def test_a_picture_model_is_not_for_servers_of_language_models(system: System, road: Road) -> None:
    done = system.tunewright("serve", road.job_id, "--vllm", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "trained a model of pictures" in done.stderr
