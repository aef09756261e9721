"""vLLM: load an adapter into a running server, see that it is there, replace it, take it away.

The routes exist when the server was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora. Adapters are
lost when it restarts and belong to one process: whoever runs several registers with each. What the engine refuses
comes as status 500 though the caller is at fault, so nothing of it is tried again.
"""

import http
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, cast

import httpx

from trainer.failures import AttemptFailed
from trainer.serve.adapter import Adapter
from trainer.serve.http_server import ModelServer, told_by

TITLE = "vLLM"
HIGHEST_RANK = 512
"""The largest value that --max-lora-rank takes."""
_START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_CLASSIFIER_HEADS = frozenset({"classifier", "score"})
State = Literal["loaded", "replaced", "already loaded"]


@dataclass(frozen=True)
class Card:
    """One entry of `/v1/models`: a base has no parent; an adapter's root is its path on the server."""

    id: str
    root: str
    parent: str | None


class Vllm(ModelServer):
    """vLLM's model list and LoRA routes."""

    def __init__(self, url: str, key: str = "") -> None:
        super().__init__(TITLE, url, key)

    def cards(self) -> list[Card]:
        """Every model that can be asked for."""
        response = self.ask("GET", "/v1/models")
        try:
            listed: list[dict[str, Any]] = response.json()["data"]
            return [Card(str(item["id"]), str(item.get("root") or ""), item.get("parent")) for item in listed]
        except (ValueError, KeyError, TypeError) as error:
            raise self.odd(response) from error

    def load(self, name: str, path: str, *, replace: bool) -> None:
        """Loads the adapter at `path` of the server's machine; `replace` puts it in the place of a loaded one.

        Raises:
            AttemptFailed: bad_config, in vLLM's words and with the way out.
        """
        body = {"lora_name": name, "lora_path": path, **({"load_inplace": True} if replace else {})}
        response = self.ask("POST", "/v1/load_lora_adapter", json=body)
        if not response.is_success:
            raise _refused(self, response, path)

    def unload(self, name: str) -> bool:
        """Takes the adapter away; False if it was not there."""
        response = self.ask("POST", "/v1/unload_lora_adapter", json={"lora_name": name})
        if response.is_success:
            return True
        if response.status_code == http.HTTPStatus.NOT_FOUND and not _is_missing_route(response):
            return False
        raise _refused(self, response, "")


def register(server: Vllm, adapter: Adapter, name: str, path: str, *, any_base: bool) -> dict[str, Any]:
    """Loads the adapter under `name` unless it is there already, and confirms it. `path` is as the server sees it.

    Repeating it is harmless, and is what brings an adapter back after the server was restarted.

    Raises:
        AttemptFailed: bad_config for another base, another model of that name, or what the engine refuses.
    """
    cards = server.cards()
    if not any_base:
        _check_base(adapter, cards)
    before = next((card for card in cards if card.id == name), None)
    if before is not None and before.parent is None:
        raise AttemptFailed("bad_config", f"{name} is the base that vLLM serves", "Choose another --name.")
    if before is not None and before.root == path:
        return _told(server, before, "already loaded")
    server.load(name, path, replace=before is not None)
    after = next((card for card in server.cards() if card.id == name), None)
    if after is None or after.root != path:
        message = (
            f"vLLM took {name}, but does not list it" if after is None else f"vLLM serves {name} from {after.root}"
        )
        advice = "Several servers may share this address; register with each of them."
        raise AttemptFailed("unreachable", message, advice)
    return _told(server, after, "loaded" if before is None else "replaced")


def check_adapter(adapter: Adapter, max_rank: int) -> None:
    """Raises AttemptFailed for everything in adapter_config.json that vLLM refuses, all at once."""
    config = adapter.config
    whole = [module for module in config.modules_to_save or [] if module not in _CLASSIFIER_HEADS]
    ranks = f"--max-lora-rank {adapter.rank}" if adapter.rank <= HIGHEST_RANK else f"at most {HIGHEST_RANK}"
    refusals = {
        f"its type is {config.peft_type}, not LORA": config.peft_type != "LORA",
        f"it trains whole modules (modules_to_save: {', '.join(whole)})": bool(whole),
        "it uses DoRA (use_dora)": config.use_dora,
        "it trains biases (bias)": config.bias != "none",
        "it trains single tokens (trainable_token_indices)": bool(config.trainable_token_indices),
        f"its rank {adapter.rank} is above the server's limit of {max_rank} ({ranks})": adapter.rank > max_rank,
    }
    found = [reason for reason, holds in refusals.items() if holds]
    if found:
        advice = (
            f"Start vLLM with a higher --max-lora-rank and say so here with the same option (its own default is 16, "
            f"its highest {HIGHEST_RANK})."
            if adapter.rank > max_rank and len(found) == 1 and adapter.rank <= HIGHEST_RANK
            else "Merge the adapter into the base (PEFT's merge_and_unload) and serve the merged model, or train again "
            "without these settings."
        )
        raise AttemptFailed("bad_config", f"vLLM does not take this adapter: {'; '.join(found)}", advice)


def check_name(name: str) -> None:
    """Raises AttemptFailed for a name that would not do in requests, URLs and paths."""
    if _NAME.fullmatch(name) is None:
        advice = "Use letters, digits, '.', '_', ':', '/' and '-', beginning with a letter or digit."
        raise AttemptFailed("bad_config", f"{name!r} is no name for a served model", advice)


def _check_base(adapter: Adapter, cards: list[Card]) -> None:
    """The base that is served must be the one that was trained on; of paths on two machines the last part counts."""
    trained_on = adapter.config.base_model_name_or_path
    bases = [card for card in cards if card.parent is None]
    if not trained_on:
        return
    wanted = _last_part(trained_on)
    if any(wanted in {_last_part(card.root), _last_part(card.id)} for card in bases):
        return
    served = ", ".join(f"{card.id} ({card.root})" for card in bases) or "nothing"
    message = f"the adapter was trained on {trained_on}, but vLLM serves {served}"
    raise AttemptFailed(
        "bad_config", message, "Serve that base; or, if it is the same under another name, say so with --any-base."
    )


def _last_part(name: str) -> str:
    return PurePath(name).name.lower()


def _told(server: Vllm, card: Card, state: State) -> dict[str, Any]:
    return {"model": card.id, "state": state, "path": card.root, "base": card.parent, "url": server.url}


def _is_missing_route(response: httpx.Response) -> bool:
    """Without the variable vLLM has no such route, and answers as it does to any unknown path."""
    try:
        body: object = response.json()
    except ValueError:
        return True
    return not (isinstance(body, dict) and "error" in cast("dict[str, Any]", body))


def _refused(server: Vllm, response: httpx.Response, path: str) -> AttemptFailed:
    reason = told_by(response)
    match response.status_code:
        case http.HTTPStatus.NOT_FOUND if _is_missing_route(response):
            message = f"vLLM at {server.url} does not load adapters while it runs"
            return AttemptFailed("bad_config", message, f"Start it as: {_START}")
        case http.HTTPStatus.NOT_FOUND:
            advice = (
                f"The server must be able to read {path}: name a folder that both see with --adapter-dir, and with "
                "--path-on-server what it is called over there."
            )
            return AttemptFailed("bad_config", f"vLLM does not find the adapter: {reason}", advice)
        case http.HTTPStatus.BAD_REQUEST:
            return AttemptFailed("bad_config", f"vLLM refused: {reason}", "Choose another --name, or --remove first.")
        case http.HTTPStatus.INTERNAL_SERVER_ERROR:
            if not server.ask("GET", "/health").is_success:
                return AttemptFailed("unreachable", f"vLLM's engine has stopped: {reason}", "Restart vLLM.")
            advice = f"Is its base the one that was trained on, and was it started for this adapter? {_START}"
            return AttemptFailed("bad_config", f"vLLM's engine refused the adapter: {reason}", advice)
        case _:
            return server.odd(response)
