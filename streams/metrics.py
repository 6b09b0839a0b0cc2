"""Every metric of headrace, declared once, on an injected registry: base units, closed label sets, no user or item."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from headrace.streams.insight.cost import traffic

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ENTRIES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_PROBABILITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 0.95, 1)


class Metrics:
    """One object a process. Names are a promise: docs/operations.md lists them with the values of their labels."""

    def __init__(self, registry: CollectorRegistry, role: str) -> None:
        self.registry = registry
        self.role = role
        ProcessCollector(registry=registry)  # process_*: memory, CPU, open files, start time

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"headrace_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"headrace_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
            return Histogram(f"headrace_{name}", text, labels, registry=registry, buckets=buckets)

        # every role
        self.info = gauge("role_info", "1 for the role of this process", "role")
        self.info.labels(role).set(1)
        self.lag = gauge("consumer_lag_messages", "Messages not yet read", "topic", "partition")
        self.high_watermark = gauge(
            "high_watermark_offset", "End of a partition, open transactions included", "topic", "partition"
        )
        self.last_stable = gauge(
            "last_stable_offset", "End of what readers of committed records may read", "topic", "partition"
        )
        self.stage = histogram("stage_duration_seconds", "Time of one stage of one batch", "stage")
        self.commits = counter("transactions_total", "Transactions", "outcome")
        self.recoveries = counter("recoveries_total", "Partitions recovered from the log")
        registry.register(traffic)
        self.kafka_bytes = traffic  # a collector of its own
        self.price = gauge("price", "Prices of the settings", "resource", "currency")
        self.recovery = histogram("recovery_duration_seconds", "Time to recover a partition")

        # ingest
        self.messages = counter("ingest_messages_total", "Messages read from the shop", "topic", "outcome")
        self.dead_letters = counter("dead_letters_total", "Messages sent to dead-letters", "topic", "reason")
        self.unknown_fields = counter("unknown_fields_total", "Fields that the contract does not know", "topic")
        self.batch_size = histogram("batch_entries", "Entries in a micro-batch", buckets=_ENTRIES)

        # catalogue and the worker's view of it
        self.items = gauge("items", "Items known", "state")
        self.item_changes = counter("item_changes_total", "Items new, changed or removed", "kind")
        self.text_cache = counter("text_cache_total", "Text vectors looked up", "outcome")
        self.item_latency = histogram(
            "item_to_eligible_seconds", "From an item's message to its eligibility in a worker"
        )

        # worker
        self.events = counter("events_total", "Events by type and outcome", "type", "outcome")
        self.outcomes = counter("outcomes_total", "Outcomes joined to decisions", "type", "outcome")
        self.decisions = counter("decisions_total", "Decisions opened", "arm", "policy")
        self.closed = counter("decisions_closed_total", "Decisions closed", "arm", "closed_as")
        self.pending_capped = counter("pending_capped_total", "Open decisions closed early because a user had too many")
        self.stale_triggers = counter("stale_triggers_total", "Triggers older than the set age: no slate")
        self.shadow_slates = counter("shadow_slates_total", "Slates for the side topic", "policy")
        self.held_out = counter("held_out_total", "Triggers of users of a holdout: no slate", "arm")
        self.busy = counter("busy_total", "What crawlers and hot users did: it teaches nothing", "kind")
        self.reward = counter("reward_total", "Reward of decisions, as it comes", "arm")
        self.reward_returned = counter("reward_returned_total", "Reward taken back or negative", "arm")
        self.revenue = counter("revenue_total", "Money that purchases brought", "arm", "kind")
        self.margin = counter("margin_total", "The shop's part of it", "arm")
        self.returned = counter("returned_value_total", "Money given back", "arm")
        self.purchases = counter("purchases_total", "Purchases that brought money", "arm")
        self.unpriced = counter("unpriced_total", "Purchases and returns of which nobody knows the price", "type")
        self.visits = counter("visits_total", "Visits begun", "arm", "kind")
        self.worth_control = gauge("worth_control", "1 for the arm that the others' worth is held against", "arm")
        self.freshness = histogram("freshness_seconds", "From the shop's send to the committed recommendation")
        self.identities = counter("identities_total", "Anonymous ids merged into users, or why not", "outcome")
        self.forwarded = counter("forwarded_total", "Entries passed on to another user's partition", "kind")
        self.expired = counter("expired_total", "What was forgotten because nothing was heard of it", "kind")
        self.erasures = counter("erasures_total", "Erasures applied")
        self.state_users = gauge("state_users", "Users with state", "partition")
        self.state_bytes = gauge("state_bytes", "Bytes of user state", "partition")
        self.open_decisions = gauge("open_decisions", "Decisions open", "partition")
        self.encoder_cache = counter("encoder_cache_total", "Users encoded", "outcome")
        self.index_recall = gauge("index_recall", "Share of the truly nearest items that searches find, by samples")
        self.policy_version = gauge("policy_version", "Policy version in use", "policy")
        self.encoder_info = gauge("encoder_info", "1 for the user encoder in use", "version")
        self.text_encoder_info = gauge("text_encoder_info", "1 for the text encoder in use", "version")
        self.encoder_serial = gauge("encoder_serial", "Number of the announcement by which the encoder serves")
        self.encoder_swaps = counter("encoder_swaps_total", "Announced encoders made ready, or refused", "outcome")
        self.rules = gauge("rules", "Rules known, by what they are now", "state")
        self.rules_offset = gauge("rules_offset", "Offset in the topic `rules` up to which it is in force")
        self.propensity = histogram("propensity", "Logged propensities", "arm", buckets=_PROBABILITIES)
        self.calibration_expected = counter(
            "propensity_expected_total", "Candidates of first positions: what the sum of 1/propensity must equal", "arm"
        )
        self.calibration_observed = counter(
            "propensity_observed_total", "Sum of 1/propensity of first positions", "arm"
        )

        # learner
        self.learner_steps = counter("learner_examples_total", "Examples learned", "kind")
        self.learner_dropped = counter("learner_unmatched_total", "Outcomes whose decision the learner no longer holds")
        self.versions = counter("policy_versions_total", "Policy versions published", "policy")
        self.outcome_to_policy = histogram(
            "outcome_to_policy_seconds", "From the shop's send of an outcome to the committed version that knows it"
        )

        # learner: the gate
        self.serving = gauge("serving_policy", "1 for the policy that an arm runs", "arm", "policy")
        self.frozen = gauge("policy_frozen", "1 where a policy is frozen", "policy")
        self.gate_decisions = gauge("gate_decisions", "Decisions shown since this evidence began", "arm")
        self.gate_value = gauge("gate_reward_per_decision", "Reward a shown decision since this evidence began", "arm")
        self.gate_lift = gauge("gate_lift", "A challenger's value over the champion's, minus one", "arm", "bound")
        self.live_mode = gauge("live_mode", "1 for the mode in force", "mode")
        self.arm_share = gauge("arm_share", "Share of the users in an arm", "arm")
        self.gate_share = gauge("gate_share", "Share of the arm `policy` that the policy decides for")
        self.promotions = counter("policy_promotions_total", "Policies promoted to the arm `policy`", "policy")
        self.rollbacks = counter("policy_rollbacks_total", "Policies put back to a staged version", "rule")

        # A counter first seen at 1 has no increase: what alerts watch is there from the start, at 0.
        for family, values in (
            (self.commits, ("committed", "retried", "failed")),
            (self.text_cache, ("hit", "miss")),
            (self.item_changes, ("new", "changed", "removed")),
            (self.encoder_cache, ("hit", "rebuilt")),
            (self.encoder_swaps, ("swapped", "refused")),
            (self.learner_steps, ("fresh", "correction", "step")),
            (self.identities, ("merged", "repeat", "self", "refused", "erased", "ring")),
            (self.forwarded, ("event", "request", "identity", "state", "erasure")),
            (self.expired, ("anonymous", "known", "alias", "erasure")),
            (self.rollbacks, ("reward", "calibration", "norm", "not_finite", "command")),
        ):
            for value in values:
                family.labels(value)
        if role == "worker":
            self.dead_letters.labels("interactions", "cannot_apply")
            self.dead_letters.labels("interactions", "identity")
