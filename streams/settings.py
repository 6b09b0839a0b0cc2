"""Settings: one `headrace.toml`, every value overridable from the environment, validated before anything starts.

`HEADRACE_SECTION__NAME` overrides `[section] name`, `HEADRACE_NAME` a value outside the sections; under `[kafka]` an
underscore in NAME stands for a dot. `configuration.load` reads the file and the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from headrace.policy.names import BASELINES, POLICIES, TRAINED
from headrace.streams.sections import (
    ContextField,
    Cost,
    Duration,
    Explanations,
    Identities,
    Live,
    Placement,
    RuleSettings,
    Section,
    Worth,
    duration_ms,
)

_SECRET = re.compile(r"password|secret|sasl\.jaas|oauthbearer\.config|ssl\.key\.pem|token", re.IGNORECASE)


class Topics(Section):
    """How many partitions each topic gets when headrace creates it, and how long it is kept."""

    prefix: str = Field("headrace.", pattern=r"^[a-zA-Z0-9._-]{0,200}$")
    events_partitions: int = Field(4, ge=1)
    requests_partitions: int = Field(2, ge=1)
    interactions_partitions: int = Field(4, ge=1)  # fixed at creation: the user's partition is murmur2(user) mod this
    replication_factor: int = Field(1, ge=1)
    retention: Duration = duration_ms("7d")
    dead_letters_retention: Duration = duration_ms("7d")
    segment: Duration = Field(duration_ms("6h"), ge=1)  # by so much a record may outlive its retention
    compaction_lag: Duration = Field(duration_ms("1h"), ge=1)  # what was overwritten is cleaned away after so long
    tombstones: Duration = duration_ms("10m")  # how long the cleaner keeps a deletion that it has carried out
    max_message_bytes: int = Field(1_048_588, ge=65_536)
    large_message_bytes: int = Field(16_777_216, ge=1_048_576)  # dead-letters and policy-versions


class Ingest(Section):
    batch_bytes: int = Field(524_288, ge=4_096)  # a micro-batch is split at this size
    buffer_bytes: int = Field(33_554_432, ge=1_048_576)  # at most this much is read ahead
    tick: Duration = 250
    linger: Duration = 10  # from one transaction to the next: larger micro-batches, for so much freshness
    idle_after: Duration = duration_ms("2s")  # a source partition silent for so long holds no watermark back
    max_ahead: Duration = duration_ms("5m")


class EventType(Section):
    """What an event of this type needs, does and earns."""

    item: Literal["required", "optional", "none"] = "required"
    text: Literal["required", "optional", "none"] = "optional"
    due: bool = True  # makes its user due for a slate
    history: bool = True  # enters the user's history
    consumes: bool = False  # the item counts as consumed
    cart: Literal["", "add", "remove"] = ""  # what it does to the cart
    reward: float = 0.0
    times: Literal["one", "value", "quantity", "value_quantity"] = "one"  # reward is weight × this
    window: Duration = duration_ms("30m")  # attribution window, 30 minutes to 30 days


def builtin_event_types() -> dict[str, EventType]:
    """The types of the contract, with the rewards and windows a shop would start from."""
    return {
        "view": EventType(reward=0.0),
        "click": EventType(reward=1.0),
        "like": EventType(reward=1.0, window=duration_ms("1d")),
        "share": EventType(reward=1.0, window=duration_ms("1d")),
        "add_to_cart": EventType(reward=2.0, cart="add", window=duration_ms("1d")),
        "remove_from_cart": EventType(reward=-1.0, cart="remove", window=duration_ms("1d")),
        "purchase": EventType(reward=5.0, consumes=True, cart="remove", window=duration_ms("7d")),
        "return": EventType(history=False, window=duration_ms("30d")),
        "dwell": EventType(history=False),
        "rating": EventType(reward=0.0, consumes=True, window=duration_ms("7d")),
        "dismiss": EventType(due=False, history=False, reward=-1.0, window=duration_ms("1d")),
        "search": EventType(item="optional", text="required"),
        "comment": EventType(item="optional", text="required"),
        "post": EventType(item="optional", text="required"),
        "impression": EventType(item="none", due=False, history=False, window=duration_ms("1d")),
    }


class Consumed(Section):
    """What becomes of consumed items: "exclude", "keep", or a duration after which they may return."""

    default: str = "exclude"
    categories: dict[str, str] = Field(default_factory=dict)  # a category or its prefix before "/"
    items: dict[str, str] = Field(default_factory=dict)
    cart: Literal["exclude", "keep"] = "exclude"  # what lies in the cart
    cap: int = Field(64, ge=0, le=1_000)  # consumed items, and items in the cart, remembered a user

    @property
    def repeats(self) -> bool:
        """Whether anything that was consumed may ever come again: only then is it counted how often."""
        return {self.default, *self.categories.values(), *self.items.values()} != {"exclude"}

    @model_validator(mode="after")
    def _readable(self) -> Consumed:
        for value in (self.default, *self.categories.values(), *self.items.values()):
            if value not in ("exclude", "keep"):
                duration_ms(value)
        return self


class Catalogue(Section):
    text_model: str = "all-MiniLM-L6-v2"  # a name the export knows, or the folder of an exported artifact
    batch: int = Field(32, ge=1)
    threads: int = Field(1, ge=1)
    # attributes whose words enter an item's text; numbers, sizes and stock codes would only blur it
    attributes: tuple[str, ...] = ("brand", "author", "artist", "genres", "color", "colour", "material", "style")


class Encoder(Section):
    artifact: str = "default"  # or the folder of an exported user encoder
    cache_bytes: int = Field(67_108_864, ge=0)
    threads: int = Field(1, ge=1)


class Worker(Section):
    history: int = Field(50, ge=2, le=500)
    seen: int = Field(32, ge=1, le=4_096)  # event ids remembered a user: the horizon for duplicates
    pending: int = Field(20, ge=1, le=1_000)  # open decisions a user
    max_trigger_age: Duration = duration_ms("10m")
    candidates: int = Field(120, ge=10, le=2_000)
    standby_replicas: int = Field(0, ge=0)
    store: Literal["memory"] = "memory"
    session_timeout: Duration = duration_ms("10s")
    busy_events: int = Field(50, ge=2)  # so many history events within `busy_within`: a crawler or a hot user
    busy_within: Duration = duration_ms("1m")  # 0: nobody is


class Decisions(Section):
    assume_shown: bool = False  # for shops that cannot send impressions: every slate counts as shown
    grace: Duration = duration_ms("1m")  # closing waits so much longer than the widest window
    reward_version: str = "r1"
    reward_function: Literal["sum", "first", "last", "max"] = "sum"  # of the outcomes at one position
    full_share: float = Field(0.02, ge=0, le=1)  # of so many decisions every candidate is logged: see `evaluate`


def _known_policy(name: str) -> str:
    if name not in POLICIES:
        raise ValueError(f"unknown policy; choose one of {', '.join(POLICIES)}")
    return name


PolicyName = Annotated[str, AfterValidator(_known_policy)]
NONE = "none"  # what a holdout runs: its users get no slates
HOLDOUT = "holdout"  # an arm of this name is one, unless arms.policies names a policy for it


class Policy(Section):
    name: PolicyName = "neural_linear"  # what the arm called `policy` runs
    floor: float = Field(0.1, gt=0, lt=1)  # share of each position spread evenly over its candidates
    alpha: float = Field(0.5, ge=0)  # LinUCB's width, Thompson sampling's scale
    draws: int = Field(32, ge=1, le=512)  # posterior draws that make the explicit distribution
    optimistic: bool = False  # lints
    ridge: float = Field(1.0, gt=0)
    seed: int = 7
    epsilon: float = Field(0.05, ge=0, le=1)  # epsilon_greedy, on top of the floor
    temperature: float = Field(0.05, gt=0)  # softmax
    gamma_scale: float = Field(10.0, gt=0)  # squarecb
    gamma_exponent: float = Field(0.5, ge=0)
    discount: float = Field(1.0, gt=0, le=1)  # of linear policies: what a newer example leaves of an older one's weight
    change_detector: bool = False  # of linear policies
    outer: bool = False  # context × item among the features
    largest_weight: float = Field(20.0, ge=1)  # cap of π/μ
    rl_discount: float = Field(0.9, ge=0, lt=1)  # dqn, slateq, reinforce: what a reward counts that is rl_horizon_s off
    rl_horizon_s: float = Field(3600.0, gt=0)
    rl_n_step: int = Field(1, ge=1)
    rl_conservative: float = Field(0.0, ge=0)  # dqn
    rl_slate: int = Field(10, ge=1)  # slateq, reinforce
    rl_hidden: int = Field(64, ge=1)
    rl_rate: float = Field(0.001, gt=0)
    rl_train_every: int = Field(16, ge=1)
    rl_replay: int = Field(1024, ge=64)
    rl_priority: float = Field(0.5, ge=0)
    start: str = ""  # the folder, written by `headrace train`, of what `policy.name` begins from and serves at once


class Arms(Section):
    """The traffic split, by stable hash of the user. Shares sum to 1."""

    salt: str = "arms-1"
    shares: dict[str, float] = Field(
        default_factory=lambda: {"policy": 0.7, "item_to_item": 0.1, "popular": 0.1, "random": 0.1}
    )
    policies: dict[str, PolicyName | Literal["none"]] = Field(
        default_factory=dict
    )  # what an arm runs, where it is neither `policy` nor a policy's own name; "none": a holdout

    @model_validator(mode="after")
    def _whole(self) -> Arms:
        total = sum(self.shares.values())
        if abs(total - 1) > 1e-6 or min(self.shares.values()) < 0:
            raise ValueError(f"shares sum to {total:g}: make them sum to 1")
        return self


class Learner(Section):
    open_decisions: int = Field(50_000, ge=100)  # decisions whose features are kept for outcomes still to come
    publish_messages: int = Field(64, ge=1)  # a version falls after so many transitions messages, or at a tick
    keep_versions: Duration = duration_ms("1d")
    learn_from: Literal["all", "own"] = "all"  # whose decisions a policy learns from: every arm's, or its own arms'
    outstanding: bool = True  # rewards still to come are allowed for: see docs/rewards.md
    popular_half_life: Annotated[Duration, Field(ge=60_000)] = duration_ms("7d")  # of what counts as popular
    position_weights: bool = False  # weights by how much a position is looked at, instead of the feature `place`


class Gate(Section):
    """Who may take the arm `policy` over, and what takes a bad version back."""

    challengers: tuple[str, ...] = ()  # arms whose policy may take the arm `policy` over
    margin: float = Field(0.0, ge=0)  # of the champion's value: by so much a challenger must be better
    error: float = Field(0.05, gt=0, lt=0.5)  # chance that a challenger that is no better is ever promoted
    min_decisions: int = Field(1_000, ge=1)  # shown, of each of the two
    planned: int = Field(50_000, ge=100)  # shown decisions at which the interval is narrowest
    guard: bool = True  # rolls the arm `policy` back where its rewards, propensities or weights go wrong
    control: str = ""  # the arm it is held against; "": the first baseline among the arms
    loss: float = Field(0.0, ge=0, lt=1)  # of the control's reward: what exploring may cost; 0: no limit, no ramp
    stage_every: int = Field(240, ge=1)  # boundaries (four a second) from one staged version to the next
    staged: int = Field(5, ge=2, le=50)  # staged versions kept a policy


class Metrics(Section):
    port: int = Field(9108, ge=0, le=65_535)
    host: str = "127.0.0.1"


class Settings(BaseSettings):
    """Everything headrace can be told. Unknown keys are refused by name."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", env_nested_delimiter="__", extra="forbid", frozen=True)

    data_dir: Path = Path(".headrace")
    kafka: dict[str, str] = Field(default_factory=dict)
    topics: Topics = Topics()
    ingest: Ingest = Ingest()
    event_types: dict[str, EventType] = Field(default_factory=builtin_event_types)
    placements: dict[str, Placement] = Field(default_factory=lambda: {"default": Placement()})
    context: dict[str, ContextField] = Field(default_factory=dict)
    consumed: Consumed = Consumed()
    rules: RuleSettings = RuleSettings()
    identities: Identities = Identities()
    catalogue: Catalogue = Catalogue()
    encoder: Encoder = Encoder()
    worker: Worker = Worker()
    decisions: Decisions = Decisions()
    policy: Policy = Policy()
    arms: Arms = Arms()
    learner: Learner = Learner()
    gate: Gate = Gate()
    live: Live = Live()
    explanations: Explanations = Explanations()
    worth: Worth = Worth()
    cost: Cost = Cost()
    metrics: Metrics = Metrics()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Built by hand, settings know neither file nor environment: `configuration.load` reads those."""
        return (init_settings,)

    @field_validator("event_types", mode="before")
    @classmethod
    def _types_given_change_the_built_in_ones(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        builtin = {name: known.model_dump() for name, known in builtin_event_types().items()}
        changed = {
            name: {**builtin.get(name, {}), **value} if isinstance(value, dict) else value
            for name, value in given.items()
        }
        return {**builtin, **changed}

    @field_validator("placements", mode="before")
    @classmethod
    def _default_placement_exists(cls, given: Any) -> Any:
        return {"default": Placement(), **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _gate_names_arms(self) -> Settings:
        for arm in (*self.gate.challengers, *([self.gate.control] if self.gate.control else [])):
            if arm not in self.arms.shares or arm == "policy":
                raise ValueError(f"gate names the arm {arm!r}: give it a share in [arms.shares], or leave it out")
        if self.gate.loss and not (self.gate.control or {*BASELINES} & {*self.arms.shares}):
            raise ValueError("gate.loss needs a control: give a baseline (item_to_item, popular, random) a share")
        return self

    @model_validator(mode="after")
    def _holdouts_decide_nothing(self) -> Settings:
        holdouts = {arm for arm in self.arms.shares if policy_of_arm(self, arm) == NONE}
        for arm in ("policy", *self.gate.challengers, self.gate.control):
            if arm in holdouts:
                raise ValueError(f"the arm {arm!r} is a holdout, which gets no slates: name another arm, or a policy")
        for name in self.live.shadow:
            _known_policy(name)
        return self

    @model_validator(mode="after")
    def _placements_name_arms(self) -> Settings:
        for name, placement in self.placements.items():
            for arm in placement.arms:
                if arm not in self.arms.shares:
                    raise ValueError(f"placements.{name} names the arm {arm!r}: give it a share in [arms.shares]")
                if policy_of_arm(self, arm) == NONE:
                    raise ValueError(f"placements.{name} names the arm {arm!r}, which gets no slates: name another arm")
            if placement.policy in TRAINED and placement.policy != self.policy.name:
                raise ValueError(
                    f"placements.{name}.policy: {placement.policy} learns nothing from traffic and is what policy.start"
                    " brings: name it in policy.name as well"
                )
            if placement.policy and placement.arms and "policy" not in placement.arms:
                raise ValueError(f"placements.{name}.policy is for the arm 'policy': add it to the arms there")
        return self

    @model_validator(mode="after")
    def _worth_names_types(self) -> Settings:
        for name in self.worth.revenue:
            if name not in self.event_types or name == "return":
                raise ValueError(f"worth.revenue names {name!r}: name a type of [event_types] that brings money")
        return self

    @model_validator(mode="after")
    def _linear_if_it_forgets(self) -> Settings:
        served = {self.policy.name, *self.arms.policies.values(), *self.arms.shares, *self.live.shadow}
        served |= {placement.policy for placement in self.placements.values()}
        if "neural_linear" in served and (self.policy.discount < 1 or self.policy.change_detector):
            raise ValueError(
                "neural_linear has neither discount nor change_detector: serve a linear policy, such as squarecb,"
                " instead, or leave both out of [policy]"
            )
        return self

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, masked(value) if name == "kafka" else value

    @property
    def bootstrap(self) -> str:
        return self.kafka.get("bootstrap.servers", "127.0.0.1:9092")

    @property
    def close_after_ms(self) -> int:
        """A decision closes when the widest window that earns, and the grace, have passed."""
        earning = [t.window for n, t in self.event_types.items() if t.reward or n == "impression"]
        return max(earning, default=0) + self.decisions.grace

    def topic(self, name: str) -> str:
        return self.topics.prefix + name


def policy_of_arm(settings: Settings, arm: str) -> str:
    """The policy an arm runs: as the settings say, else `policy` is the learned one and other arms are named after
    theirs; NONE for a holdout."""
    if arm in settings.arms.policies:
        return settings.arms.policies[arm]
    if arm == HOLDOUT:
        return NONE
    return settings.policy.name if arm == "policy" else arm


def is_secret(name: str) -> bool:
    return bool(_SECRET.search(name))


def masked(kafka: dict[str, str]) -> dict[str, str]:
    """Kafka's properties with passwords, tokens and keys hidden."""
    return {name: "***" if is_secret(name) else value for name, value in kafka.items()}


def cache_dir() -> Path:
    """Where what can be fetched or built again lies: `headrace` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace"
