"""Billing put together: the only file that names concrete parts."""

from services.billing.handlers import Accounts
from services.billing.inbound.subscriptions import commands, subscriptions
from services.billing.projections import ledger
from services.billing.settings import Settings, catalogue
from shared.contracts.subjects import BILLING_LEDGER
from shared.projection import Projection
from shared.service import Runtime, ServiceParts


async def build(runtime: Runtime, settings: Settings) -> ServiceParts:
    """Commands, metering and the ledger's read models."""
    accounts = Accounts(
        runtime.pool,
        runtime.store,
        runtime.clock,
        catalogue(settings),
        settings.billing_default_floor_micro_usd,
    )
    return ServiceParts(
        commands=commands(accounts),
        subscriptions=subscriptions(accounts),
        projections=[
            Projection(name="ledger", tables=ledger.TABLES, durable=BILLING_LEDGER, project=ledger.project),
        ],
    )
