"""The settings of the simulated shop's world. They were fixed before any policy was tuned on it (docs/world.md).

Utilities are in logits: the probability that a user who looks at an item clicks it is `ceiling · σ(bias + taste + …)`.
"""

from __future__ import annotations

from dataclasses import dataclass

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass(frozen=True)
class WorldSettings:
    seed: int = 20_250_301
    events: tuple[tuple[str, str], ...] = ()  # (click, add_to_cart, purchase or return; the type sent in its place)

    # the catalogue
    items: int = 5_000  # on the shelf at the start
    arriving: int = 400  # more, that come later
    arrivals_per_day: float = 40.0
    stockouts_per_day: float = 20.0
    stockout_days: float = 1.0
    price_median: float = 30.0
    hidden: int = 3  # attributes that no title tells and no policy sees

    # the users
    users: int = 2_000
    activity_sigma: float = 0.8  # log-normal: some come often, most seldom
    favourite_categories: tuple[int, int] = (2, 4)  # how many a user has
    favourite_styles: int = 2

    # what a user feels, in logits
    bias: float = -3.2
    ceiling: float = 0.4
    favourite_category: tuple[float, float] = (2.2, 2.8)  # strength, uniform
    same_department: float = 0.7
    favourite_style: tuple[float, float] = (0.5, 0.8)
    disliked_style: float = -0.3
    quality: float = 0.2  # standard deviation over items, the same for all users
    trend: float = 0.1  # standard deviation of an item's passing popularity
    hidden_taste: float = 0.1  # standard deviation of the part that stays hidden
    price_gap: float = 0.15  # lost per unit of |log price − the user's|
    intent: float = 1.2  # for what the user came for in this session
    tiring: float = 0.1  # lost with every showing, halved every `rest_days`
    clicked: float = 0.8  # lost after a click, halved every `rest_days`
    rest_days: float = 1.0

    # drift
    drift_per_day: float = 0.03  # share of users who change a favourite category
    trend_days: float = 3.0  # how long an item's passing popularity lasts

    # sessions
    pages: float = 4.0  # mean pages a session (geometric)
    page_gap_s: float = 300.0  # between two pages pass at least so many seconds, and as many again on average
    look: float = 0.5  # a page after the first shows the slate with this probability
    search: float = 0.1  # an organic page is a search with this probability, else a view
    cart: float = 0.08  # a viewed item goes to the cart
    organic_purchase: float = 0.01  # a viewed item is bought, without any slate
    intent_views: float = 0.85  # an organic view stays with the session's intent

    # looking at a slate
    depths: tuple[int, ...] = (4, 6, 8, 10)  # positions the page shows, equally likely
    examination: float = 0.5  # position j (from 0) is looked at with probability (1 + j)^−this

    # after a click
    click_to_cart: float = 0.15
    click_to_purchase: float = 0.045  # never above 5 %
    purchase_hours: float = 8.0  # median of the log-normal delay
    purchase_sigma: float = 1.2
    purchase_days_max: float = 4.0
    returned: float = 0.08  # share of purchases
    return_days: tuple[float, float] = (0.5, 2.5)
    anonymous_purchases: float = 0.3  # carry no recommendation_id: attribution by item
