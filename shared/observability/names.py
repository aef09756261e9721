"""Every span, attribute, metric and log-key name, so that dashboards and tests have one place to look."""

# Spans: operation and template; ids are attributes.


def send_command(tag: str, owner: str) -> str:
    """`send cmd.scheduler.submit_job`."""
    return f"send cmd.{owner}.{tag}"


def process_command(tag: str, owner: str) -> str:
    """`process cmd.scheduler.submit_job`."""
    return f"process cmd.{owner}.{tag}"


def process_event(type_: str) -> str:
    """`process evt.job.submitted` for `job.submitted.v1`."""
    return f"process evt.{type_.rpartition('.')[0]}"


def decide(command: type) -> str:
    """`decide SubmitJob`."""
    return f"decide {command.__name__}"


def append(category: str) -> str:
    """`append job`."""
    return f"append {category}"


# Attributes and log keys: the same word in a span and in a log line.
ATTEMPTS = "attempts"
CAUSATION_ID = "causation_id"
COMMAND = "command"
COMMAND_ID = "command_id"
CORRELATION_ID = "correlation_id"
DURABLE = "durable"
EVENT_ID = "event_id"
EVENT_TYPE = "event_type"
OUTCOME = "outcome"
POSITION = "position"
REASON = "reason"
SERVICE = "service"
STREAM = "stream"
TRACE_ID = "trace_id"

# Metrics.
METRIC_RELAY_LAG = "tunewright_relay_lag_events"
METRIC_PROJECTION_LAG = "tunewright_projection_lag_events"
METRIC_EVENTS_HANDLED = "tunewright_events_handled_total"
METRIC_REDELIVERIES = "tunewright_event_redeliveries_total"
METRIC_RETRIES = "tunewright_event_retries_total"
METRIC_LOG_FILLS = "tunewright_events_filled_from_log_total"
METRIC_PARKED = "tunewright_events_parked_total"
METRIC_APPEND_CONFLICTS = "tunewright_append_conflicts_total"
METRIC_COMMANDS = "tunewright_commands_total"
METRIC_COMMAND_DURATION = "tunewright_command_duration_seconds"
METRIC_BUS_DISCONNECTS = "tunewright_bus_disconnects_total"
METRIC_BUS_ERRORS = "tunewright_bus_errors_total"
