"""The Hugging Face Hub's API, as far as jobs and Spaces share it: whose key, which namespace, lists, prices, moments.

Its own client, `huggingface_hub`, has one HTTP client for the whole process, so neither a proxy nor a CA can differ
between two providers or two users, and it repeats some creates: docs/decisions/0025.
"""

import re
from collections.abc import AsyncIterator
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from services.provider_bridge.outbound.egress import Answer, Egress, VendorRefused
from services.provider_bridge.outbound.kinds import CredentialField, Materials
from services.provider_bridge.outbound.ports import Account, Balance, LogPage
from services.provider_bridge.outbound.vendors.server_events import data_behind
from services.provider_bridge.outbound.vendors.shapes import Object, a_number, a_text, an_object
from shared.contracts.offers import Offer
from shared.problems import Unavailable
from shared.settings import Secret

NOT_FOUND = 404
API_URL = "https://huggingface.co"
CREDENTIALS = (CredentialField(name="token", variable="HF_TOKEN"),)
_HARDWARE: tuple[tuple[str, str, int, int, float], ...] = (
    ("t4-small", "T4", 1, 16, 0.40),
    ("t4-medium", "T4", 1, 16, 0.60),
    ("l4x1", "L4", 1, 24, 0.80),
    ("l4x4", "L4", 4, 24, 3.80),
    ("a10g-small", "A10G", 1, 24, 1.00),
    ("a10g-large", "A10G", 1, 24, 1.50),
    ("a10g-largex2", "A10G", 2, 24, 3.00),
    ("a10g-largex4", "A10G", 4, 24, 5.00),
    ("l40sx1", "L40S", 1, 48, 1.80),
    ("l40sx4", "L40S", 4, 48, 8.30),
    ("l40sx8", "L40S", 8, 48, 23.50),
    ("a100-large", "A100", 1, 80, 2.50),
    ("a100x4", "A100", 4, 80, 10.00),
    ("a100x8", "A100", 8, 80, 20.00),
)
"""Flavor, GPU, count, GB of each and USD an hour, of jobs and Spaces alike, as of August 2026."""
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="next"')
_FIRST_LINE = "===== Job started"
_PER_HOUR = {"second": 3600, "minute": 60, "hour": 1}


class Hub:
    """One account of the Hub. `namespace` is where our things live; empty = the account's own."""

    def __init__(self, materials: Materials, namespace: str) -> None:
        self.token = materials.credentials["token"]
        authorization = Secret(f"Bearer {self.token.reveal()}")
        self.egress = Egress(
            materials.settings.api_url, materials.network, materials.clock, headers={"Authorization": authorization}
        )
        self._namespace = namespace

    async def namespace(self) -> str:
        """Always named: the Hub would else ask whose key it is with every call."""
        if not self._namespace:
            self._namespace = (await self.account()).username
        return self._namespace

    async def account(self) -> Account:
        """Whose key it is, and what that may do."""
        told = an_object((await self.egress.get("/api/whoami-v2")).json())
        key = an_object(an_object(told.get("auth")).get("accessToken"))
        facts = [f"{told.get('type', 'user')} account", f"token may {key.get('role', 'do what nobody says')}"]
        if told.get("canPay") is False:
            facts.append("no way to pay is set up")
        return Account(username=str(told.get("name") or ""), detail=", ".join(facts))

    def balance(self) -> Balance:
        """The Hub tells it to people only."""
        return Balance(micro_usd=None, note="Credits are shown at https://huggingface.co/settings/billing")

    async def listed(self, path: str, params: dict[str, Any]) -> AsyncIterator[tuple[Object, Answer]]:
        """Everything in a list, over all its pages; nothing where the Hub knows no such namespace."""
        try:
            answer = await self.egress.get(path, params=params)
        except VendorRefused as refused:
            if refused.status == NOT_FOUND:
                return
            raise Unavailable(f"the Hub does not list {path}: {refused}") from refused
        while True:
            page: object = answer.json() or []
            if not isinstance(page, list):
                raise Unavailable(f"the Hub answers {path} with something that is no list")
            for item in cast("list[object]", page):
                yield an_object(item), answer
            following = _NEXT.search(answer.headers.get("link", ""))
            if following is None:
                return
            parts = urlsplit(following[1])
            answer = await self.egress.get(f"{parts.path}?{parts.query}")

    async def log_page(self, path: str, after: str | None) -> LogPage:
        """New lines of a log that begins anew with each call; the cursor counts its events."""
        seen = int(after or 0)
        try:
            async with self.egress.stream(path, headers={"Accept": "text/event-stream"}) as response:
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise Unavailable("the Hub answers with something else where a log was due")
                events = await data_behind(response, seen)
        except VendorRefused:  # none is kept
            events = []
        lines = [_line(data) for data in events]
        return LogPage(
            lines=[line for line in lines if not line.startswith(_FIRST_LINE)], cursor=str(seen + len(events))
        )

    async def offers(self, path: str, provider: str) -> list[Offer]:
        """The machines in a list of hardware, with today's prices."""
        offers = [_offer(item, provider) async for item, _ in self.listed(path, {})]
        return [offer for offer in offers if offer is not None]


def known_offers(provider: str) -> tuple[Offer, ...]:
    """What the Hub is known to have before it could be asked."""
    return tuple(
        Offer(
            provider=provider,
            hardware=flavor,
            gpu=f"{gpu} {vram_gb}GB",
            gpu_count=count,
            vram_gb=vram_gb,
            price_micro_usd_per_hour=round(usd * 1_000_000),
        )
        for flavor, gpu, count, vram_gb, usd in _HARDWARE
    )


def _line(data: str) -> str:
    try:
        return a_text(an_object(msgspec.json.decode(data)).get("data"))
    except msgspec.DecodeError:
        return data


def _offer(item: Object, provider: str) -> Offer | None:
    """None for what has no name or no price by time."""
    per_hour, micro_usd = _PER_HOUR.get(str(item.get("unitLabel"))), a_number(item.get("unitCostMicroUSD"))
    name = item.get("name")
    if not name or per_hour is None or micro_usd is None:
        return None
    accelerator = an_object(item.get("accelerator"))
    is_gpu = bool(accelerator) and accelerator.get("type", "gpu") == "gpu"
    count = max(1, _number(accelerator.get("quantity"))) if is_gpu else 0
    vram_gb = _number(accelerator.get("vram")) // count if is_gpu else 0  # the Hub counts that of all GPUs
    return Offer(
        provider=provider,
        hardware=str(name),
        gpu=f"{accelerator.get('model')} {vram_gb}GB" if is_gpu else "",
        gpu_count=count,
        vram_gb=vram_gb,
        price_micro_usd_per_hour=round(micro_usd * per_hour),
    )


def _number(text: object) -> int:
    found = re.match(r"\s*([0-9]+)", str(text))
    return int(found[1]) if found else 0
