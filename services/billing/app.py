"""Billing put together: the only file that names concrete parts."""

from services.billing.handlers import Accounts
from services.billing.inbound.subscriptions import commands, subscriptions
from services.billing.projections import ledger
from services.billing.settings import Settings, catalogue
from services.billing.statements import Statements
from shared.contracts.account import ReadAccount
from shared.contracts.subjects import BILLING_LEDGER
from shared.contracts.whatif import PriceUsage
from shared.projection import Projection
from shared.service import Runtime, ServiceParts


async def build(runtime: Runtime, settings: Settings) -> ServiceParts:
    """Commands, metering and the ledger's read models."""
    prices = catalogue(settings)
    accounts = Accounts(
        runtime.pool,
        runtime.store,
        runtime.clock,
        prices,
        settings.billing_default_floor_micro_usd,
    )
    statements = Statements(runtime.store, runtime.clock, prices)
    return ServiceParts(
        commands={
            **commands(accounts),
            ReadAccount: statements.read_account,
            PriceUsage: statements.price_usage,
        },
        subscriptions=subscriptions(accounts),
        projections=[
            Projection(name="ledger", tables=ledger.TABLES, durable=BILLING_LEDGER, project=ledger.project),
        ],
    )
