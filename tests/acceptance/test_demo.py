"""The README's first command."""

import re
import subprocess
import sys

import pytest

from tests.support.system import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_demo_ends_with_a_lora_a_picture_the_cost_and_the_timeline() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = "".join(done.stdout.split())
    lora = re.search(r"LoRA:(\.demo/outputs/[\w-]+/pytorch_lora_weights\.safetensors)", told)
    picture = re.search(r"Picture:(\.demo/outputs/[\w-]+/[\w.-]+\.png)", told)
    assert lora is not None
    assert picture is not None
    assert (ROOT / lora[1]).stat().st_size > 0
    assert (ROOT / picture[1]).read_bytes().startswith(b"\x89PNG")
    assert re.search(r"Cost:\$0\.\d+", told)
    assert "job.completed.v1" in told
    assert re.search(r"Donein\d+s", told)
