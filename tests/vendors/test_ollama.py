"""The simulator that our Ollama glue is tested against, asked by the vendor's own client."""

import json
import subprocess
from pathlib import Path

from tests.simulators.ollama import OllamaSimulator
from tests.support.tiny_llm import LAYERS, WIDTH, write_adapter
from tests.vendors.programs import ROOT, environment, vendors_python


def test_the_public_client_finds_the_simulator_to_be_an_ollama(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", base="meta-llama/Llama-3.2-1B")
    ollama = OllamaSimulator()
    ollama.add_base("llama3.2:1b", "llama", width=WIDTH, layers=LAYERS)
    ollama.add_base("qwen", "qwen2", width=WIDTH, layers=LAYERS)
    command = [vendors_python(), ROOT / "tests" / "support" / "ollama_client.py", ollama.url, "llama3.2:1b", adapter]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=120)
    ollama.close()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["same"] is True
    assert (seen["told"][0], seen["told"][-1]) == ("converting adapter", "success")
    assert (seen["width"], seen["parent"], seen["gone"]) == (WIDTH, "llama3.2:1b", 404)
    assert "by-client:latest" in seen["listed"]
    assert seen["refused"] == "unsupported architecture"
