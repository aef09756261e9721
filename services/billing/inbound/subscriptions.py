"""Which commands and events billing listens to, and who handles each."""

from collections.abc import Mapping

from services.billing.handlers import Accounts
from services.billing.projections import ledger
from shared.contracts.account import MeterUsage, ReadJobCost, ReserveFunds, SettleJob
from shared.contracts.job import Command
from shared.contracts.subjects import BILLING_LEDGER, BILLING_METERING
from shared.messaging.commands import CommandHandler
from shared.messaging.consumer import Subscription


def commands(accounts: Accounts) -> Mapping[type[Command], CommandHandler]:
    """Every command of `cmd.billing.>` but those that each service answers."""
    return {
        ReserveFunds: accounts.reserve,
        MeterUsage: accounts.meter,
        SettleJob: accounts.settle,
        ReadJobCost: accounts.read_job_cost,
    }


def subscriptions(accounts: Accounts) -> list[Subscription]:
    """The ledger's rows, and the metering of what attempts used."""
    return [
        Subscription(durable=BILLING_LEDGER, project=ledger.project),
        Subscription(durable=BILLING_METERING, react=accounts.react),
    ]
