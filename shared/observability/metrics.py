"""The instruments of every process. Without an OTLP endpoint, recording costs next to nothing."""

from opentelemetry import metrics

from shared.observability import names

_meter = metrics.get_meter("tunewright")

relay_lag = _meter.create_gauge(names.METRIC_RELAY_LAG, description="Events committed but not yet on the bus")
projection_lag = _meter.create_gauge(names.METRIC_PROJECTION_LAG, description="Log positions a durable is behind")
events_handled = _meter.create_counter(names.METRIC_EVENTS_HANDLED, description="Events committed by a durable")
redeliveries = _meter.create_counter(names.METRIC_REDELIVERIES, description="Messages dropped because of the inbox")
retries = _meter.create_counter(names.METRIC_RETRIES, description="Events tried again in place")
log_fills = _meter.create_counter(names.METRIC_LOG_FILLS, description="Events read from the log, not from the bus")
parked = _meter.create_counter(names.METRIC_PARKED, description="Events given up after the last try")
append_conflicts = _meter.create_counter(names.METRIC_APPEND_CONFLICTS, description="Appends that met a moved stream")
commands = _meter.create_counter(names.METRIC_COMMANDS, description="Commands answered, by outcome")
command_duration = _meter.create_histogram(
    names.METRIC_COMMAND_DURATION, unit="s", description="From a command's arrival to its reply"
)
bus_disconnects = _meter.create_counter(names.METRIC_BUS_DISCONNECTS, description="Connections to NATS lost")
bus_errors = _meter.create_counter(names.METRIC_BUS_ERRORS, description="Errors that NATS reported")
