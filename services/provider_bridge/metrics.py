"""The bridge's own instruments."""

from opentelemetry import metrics

_meter = metrics.get_meter("tunewright.provider_bridge")

orphans_ended = _meter.create_counter(
    "tunewright_orphan_runs_ended_total", description="Runs at a provider that no live attempt stood for"
)
overdue_runs = _meter.create_counter(
    "tunewright_overdue_runs_total", description="Looks at runs that went on past their limit and were told to end"
)
unknown_words = _meter.create_counter(
    "tunewright_unknown_provider_words_total",
    description="Looks at runs that a provider called by a word we do not know",
)
attempts_ended = _meter.create_counter(
    "tunewright_attempts_ended_total", description="Attempts that ended, by provider and outcome"
)
steps_failed = _meter.create_counter(
    "tunewright_attempt_steps_failed_total", description="Steps of attempts that were put off, by reason"
)
