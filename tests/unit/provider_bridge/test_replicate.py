"""Replicate: what the adapter makes of its answers, what it refuses, and whom it believes."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import stamina
from replicate.webhook import Webhooks, WebhookSigningSecret

from services.provider_bridge.outbound.egress import NetworkSettings
from services.provider_bridge.outbound.kinds import Materials
from services.provider_bridge.outbound.ports import StartOrder, StartRefused, Tag, WebhookRefused
from services.provider_bridge.outbound.vendors.replicate import KIND, ReplicateProvider, ReplicateSettings
from services.provider_bridge.outbound.vendors.replicate_hardware import HARDWARE, hardware_of
from shared.contracts.offers import Offer
from shared.ids import new_id
from shared.problems import Unavailable
from shared.settings import Secret
from tests.integration.provider_bridge import stand_in_trainer as stand_in
from tests.simulators.loopback import Answer, Call, Loopback
from tests.simulators.replicate import DESTINATION, KEY, TRAINER, Model, Replicate, Run, new_secret

INSTALLATION = "0a1b2c3d"


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def vendor(time: Time) -> Iterator[Replicate]:
    with Replicate(time) as simulator:
        yield simulator


@pytest.fixture
async def replicate(vendor: Replicate, time: Time) -> AsyncIterator[ReplicateProvider]:
    provider = connect(vendor, time)
    with stamina.set_testing(True, attempts=3, cap=True):
        yield provider
    await provider.close()


def connect(vendor: Replicate, time: Time, network: NetworkSettings | None = None, **more: Any) -> ReplicateProvider:
    settings: dict[str, Any] = {"model": TRAINER, "destination": DESTINATION, **more}
    built = KIND.build(
        Materials(
            credentials={"api_token": Secret(KEY)},
            settings=ReplicateSettings(api_url=vendor.api_url, **settings),
            network=network or NetworkSettings(timeout_s=10),
            installation=INSTALLATION,
            clock=time,
        )
    )
    return cast("ReplicateProvider", built)


def an_order(epoch: int = 1, **more: Any) -> StartOrder:
    tag = Tag(attempt_id=new_id(), epoch=epoch)
    return StartOrder(tag=tag, spec=stand_in.a_spec(tag.attempt_id), token="the-token", **more)


def the_run(vendor: Replicate) -> Run:
    (run,) = vendor.runs.values()
    return run


# ---- runs ------------------------------------------------------------------------------------------------------------


async def test_a_training_is_given_spec_token_label_and_limit(vendor: Replicate, replicate: ReplicateProvider) -> None:
    order = an_order(max_run_s=600)
    await replicate.submit(order)
    run = the_run(vendor)
    assert json.loads(run.input["run_spec"])["attempt_id"] == str(order.tag.attempt_id)
    assert run.input["token"] == "the-token"
    assert run.input["max_run_s"] == 600
    assert run.label == order.tag.label(INSTALLATION)
    assert run.version == vendor.models[TRAINER].versions[0]


async def test_seconds_are_those_that_replicate_charges_and_an_aborted_run_is_free(
    vendor: Replicate, replicate: ReplicateProvider, time: Time
) -> None:
    ref = await replicate.submit(an_order())
    run = the_run(vendor)
    vendor.begin(run)
    time.now += timedelta(seconds=90)
    vendor.cancelled(run)
    ended = await replicate.fetch(ref)
    assert ended is not None
    assert (ended.word, ended.billed_s, ended.exit_code) == ("canceled", 90, None)
    assert ended.ended_at == time.now
    run.without_metrics = True
    silent = await replicate.fetch(ref)
    assert silent is not None
    assert silent.billed_s is None
    waiting = await replicate.submit(an_order())
    vendor.cancelled(vendor.runs[waiting])
    never_begun = await replicate.fetch(waiting)
    assert never_begun is not None
    assert never_begun.billed_s == 0
    free = await replicate.submit(an_order())
    vendor.abort(vendor.runs[free])
    aborted = await replicate.fetch(free)
    assert aborted is not None
    assert (aborted.word, aborted.billed_s) == ("aborted", 0)
    assert [line.ref for line in vendor.bill.lines] == [ref]


async def test_moments_are_by_our_clock_whatever_replicates_clock_says(
    vendor: Replicate, replicate: ReplicateProvider, time: Time
) -> None:
    vendor.skew = timedelta(minutes=17)
    ref = await replicate.submit(an_order())
    vendor.begin(the_run(vendor))
    view = await replicate.fetch(ref)
    assert view is not None
    assert view.started_at is not None
    assert abs(view.started_at - time.now) < timedelta(seconds=2)


async def test_a_run_without_its_data_is_still_shown(vendor: Replicate, replicate: ReplicateProvider) -> None:
    ref = await replicate.submit(an_order())
    run = the_run(vendor)
    vendor.begin(run)
    vendor.finish(run)
    vendor.remove_data(run)
    view = await replicate.fetch(ref)
    assert view is not None
    assert (view.word, view.exit_code) == ("succeeded", 0)
    assert (await replicate.logs(ref, "12")).cursor == "12"


async def test_a_log_is_handed_out_by_whole_lines_until_the_run_is_over(
    vendor: Replicate, replicate: ReplicateProvider
) -> None:
    ref = await replicate.submit(an_order())
    run = the_run(vendor)
    vendor.begin(run)
    run.logs = "[phase] training\nstep 1\nste"
    first = await replicate.logs(ref, None)
    assert first.lines == ["[phase] training", "step 1"]
    run.logs += "p 2\nlast"
    assert (second := await replicate.logs(ref, first.cursor)).lines == ["step 2"]
    vendor.finish(run)
    assert (await replicate.logs(ref, second.cursor)).lines == ["last"]


async def test_an_old_run_is_found_on_a_later_page_and_nobody_looks_further_back_than_the_attempt(
    vendor: Replicate, replicate: ReplicateProvider, time: Time
) -> None:
    vendor.page_size = 2
    order = an_order()
    ref = await replicate.submit(order)
    for _ in range(6):
        await replicate.submit(an_order())
    found = await replicate.find(order.tag)
    assert found is not None
    assert found.ref == ref
    for run in vendor.runs.values():
        run.created = time.now - timedelta(hours=25)
    vendor.calls.clear()
    assert await replicate.find(Tag(attempt_id=new_id(), epoch=1)) is None
    assert len([call for call in vendor.calls if call.path == "/v1/trainings"]) == 1


async def test_what_replicate_does_not_take_is_refused_in_its_words(vendor: Replicate, time: Time) -> None:
    provider = connect(vendor, time, destination="acme/nowhere")
    with pytest.raises(StartRefused) as refused:
        await provider.submit(an_order())
    assert "destination does not exist" in refused.value.message
    await provider.close()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": ""}, "trainer model"),
        ({"destination": ""}, "put trainings in"),
        ({"model": "acme/unknown"}, "404"),
        ({"model": DESTINATION}, "no version"),
    ],
)
async def test_settings_that_are_not_whole_are_refused_with_what_to_do(
    vendor: Replicate, time: Time, settings: dict[str, Any], told: str
) -> None:
    provider = connect(vendor, time, **settings)
    with pytest.raises(StartRefused) as refused:
        await provider.submit(an_order())
    assert told in refused.value.message
    assert refused.value.advice
    assert not vendor.runs
    await provider.close()


async def test_each_hardware_has_its_own_trainer_and_one_without_is_refused(vendor: Replicate, time: Time) -> None:
    vendor.models["acme/two"] = Model("gpu-h100-2x", [new_secret().encode().hex()])
    provider = connect(vendor, time, trainers={"h100-x2": "acme/two"})
    offers = {offer.hardware: offer for offer in await provider.quote()}
    assert set(offers) == {"gpu-h100", "gpu-h100-2x"}
    assert offers["gpu-h100-2x"].price_micro_usd_per_hour == 10_980_000
    await provider.submit(an_order(offer=offers["gpu-h100-2x"]))
    assert the_run(vendor).model == "acme/two"
    other = Offer(
        provider="replicate", hardware="gpu-t4", gpu="T4", gpu_count=1, vram_gb=16, price_micro_usd_per_hour=1
    )
    with pytest.raises(StartRefused):
        await provider.submit(an_order(offer=other))
    await provider.close()


async def test_a_price_of_the_operator_goes_before_the_table(vendor: Replicate, time: Time) -> None:
    provider = connect(vendor, time, prices_usd_per_s={"gpu-h100": 0.002})
    (offer,) = await provider.quote()
    assert offer.price_micro_usd_per_hour == 7_200_000
    await provider.close()


def test_every_profile_of_the_brief_has_its_sku_and_price() -> None:
    profiles = ["h100", "h100-x2", "h100-x4", "h100-x8", "l40s", "l40s-x2", "l40s-x4", "l40s-x8"]
    for profile in profiles:
        hardware = hardware_of(profile)
        assert hardware is not None
        assert hardware_of(hardware.sku) == hardware
        assert hardware.usd_per_s == pytest.approx(hardware.gpu_count * (0.001525 if "h100" in profile else 0.000975))
    assert len({each.sku for each in HARDWARE}) == len(HARDWARE)


async def test_a_prediction_is_sent_with_its_deadline_and_never_for_longer_than_half_an_hour(
    vendor: Replicate, time: Time
) -> None:
    provider = connect(vendor, time, run_as="prediction")
    assert provider.capabilities.max_run_time_s == 1800
    with pytest.raises(StartRefused):
        await provider.submit(an_order(max_run_s=1801))
    order = an_order(max_run_s=900)
    ref = await provider.submit(order)
    run = the_run(vendor)
    assert (run.kind, run.cancel_after) == ("predictions", "900s")
    assert ref == f"predictions/{run.id}"
    again = connect(vendor, time)  # set back to trainings, the ref still leads to the prediction
    assert (await again.fetch(ref)) is not None
    assert (found := await provider.find(order.tag)) is not None
    assert found.ref == ref
    await provider.close()
    await again.close()


# ---- the vendor's client ---------------------------------------------------------------------------------------------


async def test_account_versions_and_files_come_by_the_vendors_client(
    vendor: Replicate, replicate: ReplicateProvider, tmp_path: Path
) -> None:
    account = await replicate.validate_credentials()
    assert (account.username, account.detail) == ("acme", "organization: Acme")
    assert [version.id for version in await replicate.client.versions(TRAINER)] == vendor.models[TRAINER].versions
    (tmp_path / "set.zip").write_bytes(b"PK" * 5000)
    url = await replicate.client.upload(tmp_path / "set.zip")
    (file,) = vendor.files.values()
    assert (file["name"], file["size"], url) == ("set.zip", 10_000, file["urls"]["get"])
    (posted,) = [call for call in vendor.calls if call.path == "/v1/files"]
    assert posted.headers["authorization"] == f"Bearer {KEY}"


async def test_a_file_that_is_too_large_is_refused_before_a_byte_is_sent(
    vendor: Replicate, replicate: ReplicateProvider, tmp_path: Path
) -> None:
    with (tmp_path / "set.zip").open("wb") as file:
        file.truncate(100 * 1024 * 1024 + 1)
    with pytest.raises(StartRefused) as refused:
        await replicate.client.upload(tmp_path / "set.zip")
    assert "100 MiB" in refused.value.message
    assert not vendor.calls


async def test_the_vendors_client_repeats_nothing_beside_our_egress(
    vendor: Replicate, replicate: ReplicateProvider
) -> None:
    vendor.always = "429"
    with pytest.raises(Unavailable):
        await replicate.validate_credentials()
    assert len(vendor.calls) == 3  # of the client's own ten there is no trace


async def test_an_answer_that_the_vendors_strict_models_refuse_is_an_outage(time: Time) -> None:
    answer = Answer(200, {"type": "robot", "username": "acme"})
    with Loopback(lambda _call: answer) as odd:
        settings = ReplicateSettings(api_url=f"{odd.url}/v1")
        network = NetworkSettings()
        secret = {"api_token": Secret(KEY)}
        provider = KIND.build(
            Materials(credentials=secret, settings=settings, network=network, installation=INSTALLATION, clock=time)
        )
        with pytest.raises(Unavailable):
            await provider.validate_credentials()
        await provider.close()


async def test_the_vendors_client_leaves_by_the_proxy_of_the_settings(vendor: Replicate, time: Time) -> None:
    passed: list[Call] = []

    def proxy(call: Call) -> Answer:
        passed.append(call)
        return Answer(200, {"type": "user", "username": "through-the-proxy", "name": "x"})

    with Loopback(proxy) as forward:
        provider = connect(vendor, time, NetworkSettings(proxy_url=forward.url, timeout_s=10))
        assert (await provider.validate_credentials()).username == "through-the-proxy"
        await provider.close()
    assert passed
    assert not vendor.calls


# ---- webhooks --------------------------------------------------------------------------------------------------------


def told(vendor: Replicate, run: Run) -> tuple[dict[str, str], dict[str, str], bytes]:
    body = json.dumps(vendor.shown_run(run)).encode()
    return vendor.sign(body), {}, body


async def test_the_vendors_own_check_agrees_on_what_is_genuine(vendor: Replicate, replicate: ReplicateProvider) -> None:
    await replicate.submit(an_order())
    headers, query, body = told(vendor, the_run(vendor))
    secret = WebhookSigningSecret(key=vendor.signing[0])
    Webhooks.validate(headers=headers, body=body.decode(), secret=secret, tolerance=300)  # raises if it does not
    note = replicate.verify_webhook(headers, query, body)
    assert (note.ref, note.word, note.webhook_id) == (the_run(vendor).id, "starting", headers["webhook-id"])


async def test_after_a_rotation_old_and_new_secret_are_good_and_the_new_one_is_fetched_when_one_is_missing(
    vendor: Replicate, replicate: ReplicateProvider, time: Time
) -> None:
    ref = await replicate.submit(an_order())
    run = the_run(vendor)
    before = told(vendor, run)
    vendor.rotate_secret()
    replicate.verify_webhook(*told(vendor, run))  # signed by both, of which the old one is known
    vendor.forget_old_secret()
    with pytest.raises(WebhookRefused):
        replicate.verify_webhook(*told(vendor, run))
    time.now += timedelta(seconds=11)
    await replicate.fetch(ref)
    replicate.verify_webhook(*told(vendor, run))
    replicate.verify_webhook(*before)  # on its way since before the rotation
    asked = [call for call in vendor.calls if call.path.endswith("/secret")]
    assert len(asked) == 2


async def test_garbage_does_not_make_us_fetch_the_secret_more_often_than_every_ten_seconds(
    vendor: Replicate, replicate: ReplicateProvider, time: Time
) -> None:
    ref = await replicate.submit(an_order())
    for _ in range(20):
        time.now += timedelta(seconds=1)
        with pytest.raises(WebhookRefused):
            replicate.verify_webhook(
                {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,x"}, {}, b""
            )
        await replicate.fetch(ref)
    assert len([call for call in vendor.calls if call.path.endswith("/secret")]) <= 3


async def test_an_old_webhook_is_stale_and_replicates_clock_is_what_counts(
    vendor: Replicate, replicate: ReplicateProvider
) -> None:
    vendor.skew = timedelta(minutes=20)
    ref = await replicate.submit(an_order())
    await replicate.fetch(ref)
    run = the_run(vendor)
    replicate.verify_webhook(*told(vendor, run))
    body = json.dumps(vendor.shown_run(run)).encode()
    late = vendor.sign(body, at=vendor.shown_now() - timedelta(seconds=310))
    with pytest.raises(WebhookRefused) as refused:
        replicate.verify_webhook(late, {}, body)
    assert refused.value.reason == "stale_timestamp"


async def test_a_failed_fetch_of_the_secret_costs_webhooks_alone(
    vendor: Replicate, replicate: ReplicateProvider
) -> None:
    vendor.choose = lambda call: "500 before" if call.path.endswith("/secret") else None
    ref = await replicate.submit(an_order())
    assert await replicate.fetch(ref) is not None
    with pytest.raises(WebhookRefused):
        replicate.verify_webhook(*told(vendor, the_run(vendor)))


async def test_what_the_vendor_sends_is_believed_and_a_repeat_bears_the_same_id(
    vendor: Replicate, replicate: ReplicateProvider
) -> None:
    taken: list[Call] = []
    statuses = iter([500, 200, 200, 200])

    def take(call: Call) -> Answer:
        taken.append(call)
        return Answer(next(statuses), {})

    with Loopback(take) as receiver:
        order = an_order(webhook_url=f"{receiver.url}/api/webhooks/replicate?attempt=x")
        ref = await replicate.submit(order)
        run = the_run(vendor)
        vendor.begin(run)
        vendor.settle()
        vendor.copies = 2
        vendor.finish(run)
        vendor.settle()
    notes = [replicate.verify_webhook(call.headers, call.query, call.body) for call in taken]
    assert [note.word for note in notes] == ["processing", "succeeded", "succeeded"]
    assert {note.ref for note in notes} == {ref}
    assert {note.attempt_id for note in notes} == {order.tag.attempt_id}
    assert notes[1].webhook_id == notes[2].webhook_id
    assert taken[0].query["label"] == order.tag.label(INSTALLATION)
