"""Run by the vendors' Python: the public `ollama` client does what our glue does. Prints what it saw as JSON."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

ollama: Any = importlib.import_module("ollama")  # not in the environment that checks the types


def main(url: str, base: str, folder: Path) -> None:
    client = ollama.Client(host=url)
    names = ("adapter_model.safetensors", "adapter_config.json")
    adapters = {name: client.create_blob(folder / name) for name in names}
    again = {name: client.create_blob(folder / name) for name in names}
    told = [line.status for line in client.create("by-client", from_=base, adapters=adapters, stream=True)]
    shown = client.show("by-client")
    listed = sorted(model.model for model in client.list().models)
    client.delete("by-client")
    try:
        client.show("by-client")
        gone = 200
    except ollama.ResponseError as error:
        gone = error.status_code
    try:
        list(client.create("wrong", from_="qwen", adapters=adapters, stream=True))
        refused = ""
    except ollama.ResponseError as error:
        refused = error.error
    seen = {
        "same": adapters == again,
        "told": told,
        "width": shown.modelinfo["llama.embedding_length"],
        "parent": shown.details.parent_model,
        "listed": listed,
        "gone": gone,
        "refused": refused,
    }
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
