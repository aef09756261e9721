"""`python -m trainer serve`: put a finished LLM LoRA into a running vLLM or Ollama, or take it away. Needs no torch."""

import argparse
import time
from pathlib import Path, PurePosixPath

from trainer.entry.lines import say
from trainer.failures import AttemptFailed
from trainer.serve import ollama, vllm
from trainer.serve.adapter import Adapter, placed, read_adapter, remove_placed
from trainer.serve.modelfile import write_modelfile

WATCH_S = 10.0
"""How often `--watch` looks whether a server has lost the adapter."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    servers = parser.add_mutually_exclusive_group(required=True)
    servers.add_argument("--vllm", metavar="URL", action="append", default=[], help="a vLLM; once for each replica")
    servers.add_argument("--ollama", metavar="URL")
    parser.add_argument("--name", required=True, help="what to ask the server for")
    parser.add_argument("--adapter", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--adapter-dir", type=Path, required=True, help="where servers read adapters from")
    parser.add_argument("--path-on-server", help="what --adapter-dir is called on vLLM's machine")
    parser.add_argument("--max-lora-rank", type=int, help="what vLLM was started with; unknown: vLLM says so itself")
    parser.add_argument("--any-base", action="store_true", help="the base has another name on the server")
    parser.add_argument("--from", dest="base", help="the base's name in Ollama")
    parser.add_argument("--gguf", type=Path, help="the adapter as converted to GGUF, for Ollama")
    parser.add_argument("--key-file", type=Path, help="the server's API key; or set SERVE_API_KEY")
    parser.add_argument("--remove", action="store_true", help="take the model away instead")
    parser.add_argument("--watch", action="store_true", help="stay, and load it again when vLLM has lost it")


def serve(options: argparse.Namespace, key: str) -> None:
    """Does what the options say and says a `served` or `removed` line for each server.

    Raises:
        AttemptFailed: with what to change.
    """
    if options.ollama:
        server = ollama.Ollama(options.ollama, key)
        try:
            _at_ollama(options, server)
        finally:
            server.close()
        return
    servers = [vllm.Vllm(url, key) for url in options.vllm]
    try:
        _at_vllm(options, servers)
    finally:
        for server in servers:
            server.close()


def _at_vllm(options: argparse.Namespace, servers: list[vllm.Vllm]) -> None:
    vllm.check_name(options.name)
    if options.remove:
        for server in servers:
            say("removed", model=options.name, url=server.url, was_there=server.unload(options.name))
        remove_placed(options.adapter_dir, options.name)
        return
    adapter = _adapter(options)
    vllm.check_adapter(adapter, options.max_lora_rank or vllm.HIGHEST_RANK)
    say("stage", text="placing the adapter")
    with placed(adapter, options.adapter_dir.resolve(), options.name) as folder:
        path = str(folder)
        if options.path_on_server:
            path = str(PurePosixPath(options.path_on_server) / folder.name)
        _load(servers[0], adapter, options, path)
    for server in servers[1:]:  # outside: what one of them serves stays where it is
        _load(server, adapter, options, path)
    while options.watch:
        time.sleep(WATCH_S)
        for server in servers:
            _again_if_lost(server, adapter, options, path)


def _load(server: vllm.Vllm, adapter: Adapter, options: argparse.Namespace, path: str) -> None:
    say("stage", text=f"loading it into {server.url}")
    say("served", **vllm.register(server, adapter, options.name, path, any_base=options.any_base))


def _again_if_lost(server: vllm.Vllm, adapter: Adapter, options: argparse.Namespace, path: str) -> None:
    """A server that is away or still starts is asked again next time; any other refusal ends the watch."""
    try:
        told = vllm.register(server, adapter, options.name, path, any_base=options.any_base)
    except AttemptFailed as failure:
        if failure.kind != "unreachable":
            raise
        say("stage", text=failure.message)
        return
    if told["state"] != "already loaded":
        say("served", **told)


def _at_ollama(options: argparse.Namespace, server: ollama.Ollama) -> None:
    ollama.check_name(options.name)
    if options.remove:
        say("removed", model=options.name, url=server.url, was_there=server.delete(options.name))
        remove_placed(options.adapter_dir, options.name)
        return
    if not options.base:
        known = ", ".join(server.names()[:20]) or "none"
        advice = f"Add --from MODEL, the base as Ollama calls it. It has: {known}."
        raise AttemptFailed("bad_config", "Ollama needs to know which of its models is the base", advice)
    adapter = _adapter(options)
    with placed(adapter, options.adapter_dir.resolve(), options.name) as folder:
        modelfile = write_modelfile(folder, options.base, options.name, options.gguf)
        told = ollama.register(
            server, adapter, options.name, options.base, lambda text: say("stage", text=text), options.gguf
        )
    say("served", modelfile=str(modelfile), **told)


def _adapter(options: argparse.Namespace) -> Adapter:
    if options.adapter is None:
        raise AttemptFailed("bad_config", "there is no adapter", "Name its folder with --adapter.")
    return read_adapter(options.adapter)
