"""
The simulated shop's world: who comes, what they look at, what they think of a slate. No Kafka, no clock of its own.

    visit = world.visit(ts)                          a page of some user: organic events, or a look at a slate
    events = world.show(user, items, id, ts)         he looks: an impression, clicks; purchases are yet to come
    events = world.due(ts)                           carts, purchases and returns whose time has come
    changes = world.advance(ts)                      time passes: tastes drift, items arrive and sell out

The same settings and the same calls give the same world. It knows its oracle: `best` is what the best slate would earn.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.simulation import catalogue as shelf
from headrace.simulation.settings import DAY_MS, HOUR_MS, WorldSettings
from headrace.simulation.tastes import F32, Tastes


class Interaction(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of `events`, as CONTRACT describes it."""

    event_id: str
    user_id: str
    type: str
    ts: int
    item_id: str | None = None
    value: float | None = None
    quantity: float | None = None
    order_id: str | None = None
    recommendation_id: str | None = None
    position: int | None = None
    text: str | None = None
    shown: list[str] | None = None


@dataclass(frozen=True)
class Visit:
    """One page: the user's organic events; where `looks`, he will look at the latest slate he has not seen."""

    user: int
    events: list[Interaction]
    looks: bool


@dataclass(frozen=True)
class Rewards:
    """What the outcomes of a decision earn, as the settings of headrace say it."""

    click: float = 1.0
    add_to_cart: float = 0.0
    purchase: float = 2.0


class World:
    """Users and items are numbers inside; `user_ids` and `catalogue.ids` are their names outside."""

    def __init__(
        self, settings: WorldSettings, *, start_ms: int, seed: int = 0, rewards: Rewards | None = None
    ) -> None:
        """`settings.seed` makes the world, `seed` makes what happens in it."""
        self.settings, self.rewards = settings, rewards or Rewards()
        self._types = dict(settings.events)
        self.catalogue = shelf.make(settings)
        self.index = {item_id: i for i, item_id in enumerate(self.catalogue.ids)}
        self.user_ids = [f"u{i:04d}" for i in range(settings.users)]
        self.tastes = Tastes(settings, self.catalogue, np.random.default_rng([settings.seed, 2]))
        made = np.random.default_rng([settings.seed, 3])
        activity = made.lognormal(0, settings.activity_sigma, settings.users)
        self._activity = np.cumsum(activity) / activity.sum()
        self._buys = made.uniform(0.5, 1.5, len(self.catalogue.ids)) * settings.click_to_purchase / 1.5
        self._rng = np.random.default_rng([settings.seed, 4, seed])
        self.examination = (1.0 + np.arange(max(settings.depths))) ** -settings.examination
        self.live = np.arange(len(self.catalogue.ids)) < settings.items  # on the shelf and available
        self._born = settings.items
        self._restock: list[tuple[int, int]] = []
        self._now = self._drifted = start_ms
        self._pages: list[tuple[int, int, int]] = []  # (due, user, pages left): sessions going on
        self._in_session: dict[int, int] = {}  # user → what the session is about
        self._coming: list[tuple[int, int, Interaction]] = []
        self._ending = (-1, -1)  # the user whose session ended with the latest page, and what it was about
        self._events = self._orders = 0
        self._members = [np.flatnonzero(self.catalogue.category == k) for k in range(len(self.catalogue.categories))]

    # -- time ---------------------------------------------------------------------------------------------------------

    def advance(self, ts: int) -> list[dict[str, Any]]:
        """Time passes, hour by hour. Returns the messages for `items`: what arrived, sold out or came back."""
        settings, rng, changes = self.settings, self._rng, []
        self._now = max(self._now, ts)
        while self._drifted + HOUR_MS <= self._now:
            self._drifted += HOUR_MS
            self.tastes.drift(1 / 24)
            for _ in range(int(rng.poisson(settings.arrivals_per_day / 24))):
                if self._born < len(self.catalogue.ids):
                    self.live[self._born] = True
                    changes.append(self.catalogue.message(self._born))
                    self._born += 1
            while self._restock and self._restock[0][0] <= self._drifted:
                _, item = heapq.heappop(self._restock)
                self.live[item] = True
                changes.append(self.catalogue.message(item))
            for item in rng.integers(self._born, size=int(rng.poisson(settings.stockouts_per_day / 24))):
                if self.live[item]:
                    self.live[item] = False
                    heapq.heappush(self._restock, (self._drifted + int(settings.stockout_days * DAY_MS), int(item)))
                    changes.append(self.catalogue.message(int(item), available=False))
        return changes

    def due(self, ts: int) -> list[Interaction]:
        """Carts, purchases and returns whose time has come, in their order."""
        ready = []
        while self._coming and self._coming[0][0] <= ts:
            event = heapq.heappop(self._coming)[2]
            if event.type == self.type_of("purchase") and event.item_id is not None:
                self.tastes.buy(int(event.user_id[1:]), self.index[event.item_id])
            ready.append(event)
        return ready

    @property
    def outstanding(self) -> int:
        """Carts, purchases and returns still to come."""
        return len(self._coming)

    # -- pages --------------------------------------------------------------------------------------------------------

    def visit(self, ts: int) -> Visit:
        """The next page: of a session going on where one is due, else the first page of a new one."""
        rng, settings = self._rng, self.settings
        if self._pages and self._pages[0][0] <= ts:
            _, user, left = heapq.heappop(self._pages)
            looks = bool(rng.random() < settings.look)
        else:
            user = int(np.searchsorted(self._activity, rng.random()))
            while user in self._in_session:
                user = int(np.searchsorted(self._activity, rng.random()))
            self._in_session[user] = self.tastes.choose_intent(user)
            left, looks = int(rng.geometric(1 / settings.pages)), False
        events = [] if looks else self._organic(user, ts)
        if left > 1:
            gap = int((1 + rng.exponential()) * settings.page_gap_s * 1000)
            heapq.heappush(self._pages, (ts + gap, user, left - 1))
        else:
            # The intent outlives the page that ends the session: a look at its end is still about it.
            self._ending = (user, self._in_session.pop(user))
        return Visit(user, events, looks)

    def _intent(self, user: int) -> int:
        if user in self._in_session:
            return self._in_session[user]
        return self._ending[1] if self._ending[0] == user else self.tastes.favourites[user][0]

    def _organic(self, user: int, ts: int) -> list[Interaction]:
        """A search in words of the user's taste, or a view of an item, sometimes put into the cart or bought."""
        rng, settings, catalogue = self._rng, self.settings, self.catalogue
        intent = self._intent(user)
        kind = intent if rng.random() < settings.intent_views else self.tastes.choose_intent(user)
        if rng.random() < settings.search:
            noun = catalogue.nouns[kind][int(rng.integers(len(catalogue.nouns[kind])))]
            style = int(np.argmax(self.tastes.style[user] + rng.gumbel(size=len(catalogue.styles))))
            words = catalogue.style_words[style]
            text = f"{words[int(rng.integers(len(words)))]} {noun}".lower()
            return [self._event(user, "search", ts, text=text)]
        near = self._members[kind]
        near = near[self.live[near]]
        if not len(near):  # a small shop may have sold out of a whole category: he looks at what there is
            near = np.flatnonzero(self.live)
        # Gumbel-max: an item is viewed in proportion to exp(what the user feels for it).
        wish = self.tastes.lasting[user, near] + self.tastes.trend[near] + rng.gumbel(size=len(near))
        item = int(near[np.argmax(wish)])
        events = [self._event(user, "view", ts, item)]
        if rng.random() < settings.cart:
            self._later(self._event(user, "add_to_cart", ts + int(rng.uniform(20_000, 200_000)), item))
        if rng.random() < settings.organic_purchase:
            self._buy(user, item, ts)
        return events

    # -- slates -------------------------------------------------------------------------------------------------------

    def show(self, user: int, items: list[int], recommendation_id: str, ts: int) -> list[Interaction]:
        """The user looks at a slate: at its first 4 to 10 positions. Returns the impression and the clicks."""
        rng, settings, catalogue = self._rng, self.settings, self.catalogue
        shown = items[: self.depth(len(items))]
        feel = self._click(self.tastes.logits(user, self._intent(user), ts)[shown])
        clicked = np.flatnonzero(rng.random(len(shown)) < self.examination[: len(shown)] * feel)
        events = [
            self._event(
                user, "impression", ts, recommendation_id=recommendation_id, shown=[catalogue.ids[i] for i in shown]
            )
        ]
        tired = self.tastes.tired(user, ts)
        tired[shown] += settings.tiring
        for n, position in enumerate(clicked):
            item, at = shown[position], ts + 2_000 * (n + 1) + int(rng.uniform(0, 1_000))
            tired[item] += settings.clicked
            events.append(
                self._event(user, "click", at, item, recommendation_id=recommendation_id, position=int(position))
            )
            if rng.random() < settings.click_to_cart:
                cart_at = at + int(rng.uniform(20_000, 200_000))
                self._later(self._event(user, "add_to_cart", cart_at, item, recommendation_id=recommendation_id))
            if self.live[item] and rng.random() < self._buys[item]:
                named = None if rng.random() < settings.anonymous_purchases else recommendation_id
                self._buy(user, item, at, named)
        return events

    def depth(self, size: int) -> int:
        """How many positions of a slate the next page shows."""
        depths = self.settings.depths
        return min(size, depths[int(self._rng.integers(len(depths)))])

    def _click(self, logits: F32) -> F32:
        return np.asarray(self.settings.ceiling / (1 + np.exp(-logits)), np.float32)

    def _worth(self) -> NDArray[np.float64]:
        """(I,) what a click on each item is expected to earn: itself, the cart, the purchase unless it comes back."""
        bought = self._buys * self.live * (1 - self.settings.returned)
        return (
            self.rewards.click + self.settings.click_to_cart * self.rewards.add_to_cart + bought * self.rewards.purchase
        )

    def expected(self, user: int, items: list[int], ts: int, *, shown: int | None = None) -> float:
        """The expected reward of showing this user the first `shown` of `items` now."""
        first = items[:shown]
        feel = self._click(self.tastes.logits(user, self._intent(user), ts)[first])
        return float(np.sum(self.examination[: len(first)] * feel * self._worth()[first]))

    def best(self, user: int, ts: int, *, k: int = 10) -> tuple[NDArray[np.float64], list[int]]:
        """The oracle: the best slate of k items for this user now, and (k,) what its first 1, 2, … k positions earn.

        Clicks at different positions are independent given what the user feels, and examination falls with the
        position: the best slate holds the items of the largest expected reward, largest first.
        """
        value = self._click(self.tastes.logits(user, self._intent(user), ts)) * self._worth()
        value[~self.live] = -1
        top = np.argpartition(value, -k)[-k:]
        top = top[np.argsort(-value[top], kind="stable")]
        return np.cumsum(self.examination[:k] * value[top]), [int(i) for i in top]

    # -- events -------------------------------------------------------------------------------------------------------

    def _buy(self, user: int, item: int, ts: int, recommendation_id: str | None = None) -> None:
        rng, settings = self._rng, self.settings
        delay = rng.lognormal(np.log(settings.purchase_hours * HOUR_MS), settings.purchase_sigma)
        at = ts + 60_000 + int(min(delay, settings.purchase_days_max * DAY_MS))
        self._orders += 1
        order, price = f"o{self._orders}", float(self.catalogue.price[item])
        self._later(
            self._event(
                user,
                "purchase",
                at,
                item,
                value=price,
                quantity=1.0,
                order_id=order,
                recommendation_id=recommendation_id,
            )
        )
        if rng.random() < settings.returned:
            back = at + int(rng.uniform(*settings.return_days) * DAY_MS)
            self._later(self._event(user, "return", back, item, value=price, quantity=1.0, order_id=order))

    def _later(self, event: Interaction) -> None:
        heapq.heappush(self._coming, (event.ts, int(event.event_id[1:]), event))

    def _event(self, user: int, kind: str, ts: int, item: int | None = None, **fields: Any) -> Interaction:
        self._events += 1
        item_id = None if item is None else self.catalogue.ids[item]
        return Interaction(f"e{self._events}", self.user_ids[user], self.type_of(kind), ts, item_id, **fields)

    def type_of(self, kind: str) -> str:
        """The event type that a shop of this kind sends for a click, a cart, a purchase or a return."""
        return self._types.get(kind, kind)
