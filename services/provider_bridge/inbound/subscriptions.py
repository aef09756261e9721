"""What the bridge listens to: the commands on attempts, and its own events for the read model."""

from collections.abc import Callable, Mapping
from uuid import UUID

from services.provider_bridge import metrics
from services.provider_bridge.handlers import AttemptHandlers
from services.provider_bridge.projections import attempts
from services.provider_bridge.provider_handlers import ProviderHandlers
from services.provider_bridge.webhook_handlers import WebhookHandlers
from services.provider_bridge.worker_handlers import WorkerHandlers
from shared.contracts import catalogue
from shared.contracts.attempt import (
    AskTrainer,
    AttemptCancelRequested,
    AttemptRequested,
    AttemptWebhookReceived,
    CancelAttempt,
    ReportMilestone,
    RequestAttempt,
)
from shared.contracts.envelope import RecordedEvent
from shared.contracts.job import Command
from shared.contracts.provider import (
    ConfigureProvider,
    ReadProviderAccount,
    ReadProviderBalance,
    ReadProviderCredentials,
    ReadProviders,
    ReadProviderVersions,
    ReceiveWebhook,
    RemoveProviderCredential,
    RotateProviderCredentials,
    StoreProviderCredential,
)
from shared.contracts.subjects import BRIDGE_ATTEMPTS
from shared.contracts.worker import (
    BeatWorker,
    CreateWorker,
    DrainWorker,
    ReadWorkerOrders,
    ReadWorkers,
    RegisterWorker,
    RemoveWorker,
    ReportWorkerJob,
    ResumeWorker,
    RotateWorkerToken,
)
from shared.messaging.commands import CommandHandler
from shared.messaging.consumer import Subscription

_WAKING = {catalogue.event_type(each) for each in (AttemptRequested, AttemptCancelRequested, AttemptWebhookReceived)}
_OUTCOMES = {f"attempt.{outcome}.v1": outcome for outcome in ("succeeded", "failed", "cancelled", "lost")}


def commands(handlers: AttemptHandlers) -> Mapping[type[Command], CommandHandler]:
    """Command struct -> who answers it."""
    return {
        RequestAttempt: handlers.request,
        CancelAttempt: handlers.cancel,
        AskTrainer: handlers.ask,
        ReportMilestone: handlers.report,
    }


def worker_commands(handlers: WorkerHandlers) -> Mapping[type[Command], CommandHandler]:
    """The same for what people and workers ask about workers."""
    return {
        CreateWorker: handlers.create,
        RotateWorkerToken: handlers.rotate,
        DrainWorker: handlers.drain,
        ResumeWorker: handlers.resume,
        RemoveWorker: handlers.remove,
        ReadWorkers: handlers.read,
        RegisterWorker: handlers.register,
        BeatWorker: handlers.beat,
        ReportWorkerJob: handlers.report,
        ReadWorkerOrders: handlers.orders,
    }


def provider_commands(providers: ProviderHandlers, webhooks: WebhookHandlers) -> Mapping[type[Command], CommandHandler]:
    """The same for commands about providers."""
    return {
        ReadProviders: providers.read,
        ConfigureProvider: providers.configure,
        StoreProviderCredential: providers.store,
        RemoveProviderCredential: providers.remove,
        ReadProviderCredentials: providers.credentials,
        RotateProviderCredentials: providers.rotate,
        ReadProviderAccount: providers.account,
        ReadProviderBalance: providers.balance,
        ReadProviderVersions: providers.versions,
        ReceiveWebhook: webhooks.receive,
    }


def subscription(nudge: Callable[[UUID], None]) -> Subscription:
    """Keeps the read model, and wakes the reconciler for what another replica has accepted."""

    async def react(recorded: RecordedEvent) -> None:
        if recorded.type in _WAKING:
            nudge(UUID(recorded.stream.partition("-")[2]))
        elif outcome := _OUTCOMES.get(recorded.type):
            metrics.attempts_ended.add(1, {"outcome": outcome})

    return Subscription(durable=BRIDGE_ATTEMPTS, react=react, project=attempts.project)
