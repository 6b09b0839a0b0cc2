"""Every metric of headrace, declared once, on an injected registry: base units, closed label sets, no user or item."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """One object a process. Names are a promise (docs/operations.md lists them)."""

    def __init__(self, registry: CollectorRegistry, role: str) -> None:
        self.registry = registry
        self.role = role
        ProcessCollector(registry=registry)  # process_*: memory, CPU, open files, start time

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"headrace_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"headrace_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"headrace_{name}_seconds", text, labels, registry=registry, buckets=_SECONDS)

        self.info = gauge("role_info", "1 for the role of this process", "role")
        self.info.labels(role).set(1)
        # every role
        self.lag = gauge("consumer_lag_messages", "Messages not yet read", "topic", "partition")
        self.high_watermark = gauge("high_watermark_offset", "End of a partition, open transactions included", "topic", "partition")
        self.last_stable = gauge("last_stable_offset", "End of what read_committed consumers may read", "topic", "partition")
        self.stage = seconds("stage_duration", "Time of one stage of one batch", "stage")
        self.commits = counter("transactions_total", "Transactions", "outcome")  # committed, retried, failed
        self.recoveries = counter("recoveries_total", "Partitions recovered from the log")
        self.recovery = seconds("recovery_duration", "Time to recover a partition")
        # ingest
        self.messages = counter("ingest_messages_total", "Messages read from the shop", "topic", "outcome")  # accepted, dead, ignored
        self.dead_letters = counter("dead_letters_total", "Messages sent to dead-letters", "topic", "reason")
        self.unknown_fields = counter("unknown_fields_total", "Fields that the contract does not know", "topic")
        self.batch_size = Histogram(
            "headrace_batch_entries", "Entries in a micro-batch", registry=registry, buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
        )
        # catalogue and the worker's view of it
        self.items = gauge("items", "Items known", "state")  # available, unavailable
        self.item_changes = counter("item_changes_total", "Items new, changed or removed", "kind")
        self.text_cache = counter("text_cache_total", "Text vectors looked up", "outcome")  # hit, miss
        self.item_latency = seconds("item_to_eligible", "From an item's message to its eligibility in a worker")
        # worker
        self.events = counter("events_total", "Events by type and outcome", "type", "outcome")  # applied, duplicate, late, erased, unmatched
        self.outcomes = counter("outcomes_total", "Outcomes joined to decisions", "type", "outcome")  # id, item, late, unmatched, duplicate
        self.decisions = counter("decisions_total", "Decisions opened", "arm", "policy")
        self.closed = counter("decisions_closed_total", "Decisions closed", "arm", "closed_as")
        self.pending_capped = counter("pending_capped_total", "Open decisions closed early because a user had too many")
        self.stale_triggers = counter("stale_triggers_total", "Triggers older than the set age: no slate")
        self.reward = counter("reward_total", "Reward of shown decisions, as it comes (returns are counted apart)", "arm")
        self.reward_returned = counter("reward_returned_total", "Reward taken back", "arm")
        self.freshness = seconds("freshness", "From the shop's send to the committed recommendation")
        self.state_users = gauge("state_users", "Users with state", "partition")
        self.state_bytes = gauge("state_bytes", "Bytes of user state", "partition")
        self.open_decisions = gauge("open_decisions", "Decisions open", "partition")
        self.encoder_cache = counter("encoder_cache_total", "Users encoded", "outcome")  # hit, rebuilt
        self.policy_version = gauge("policy_version", "Policy version in use", "policy")
        self.encoder_info = gauge("encoder_info", "1 for the encoder in use", "version")
        self.propensity = Histogram(
            "headrace_propensity", "Logged propensities", ["arm"], registry=registry, buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 0.95, 1)
        )
        self.calibration_expected = counter("propensity_expected_total", "Sum of the propensity of the first choice (calibration)", "arm")
        self.calibration_observed = counter("propensity_observed_total", "Times the first choice was shown (calibration)", "arm")
        # learner
        self.learner_steps = counter("learner_examples_total", "Examples learned", "kind")  # fresh, correction
        self.learner_dropped = counter("learner_unmatched_total", "Outcomes whose decision the learner no longer holds")
        self.versions = counter("policy_versions_total", "Policy versions published", "policy")
        self.outcome_to_policy = seconds("outcome_to_policy", "From the shop's send of an outcome to the committed version that knows it")

        # A counter first seen at 1 has no increase: what alerts watch is there from the start, at 0.
        for family, values in (
            (self.commits, ("committed", "retried", "failed")),
            (self.text_cache, ("hit", "miss")),
            (self.item_changes, ("new", "changed", "removed")),
            (self.encoder_cache, ("hit", "rebuilt")),
            (self.learner_steps, ("fresh", "correction")),
        ):
            for value in values:
                family.labels(value)
