"""The laws of the Gymnasium world, each a switch; docs/training.md states them with their defaults.

A step is one slate shown to one user. For an item at position j (from 0), with t the user's taste, a the item's vector:

    z      = t · (a − mean of all items) / its standard deviation over users and items
    logit  = bias + taste · z + popular · popularity + quality · q
             − boredom · max(0, m · (a − mean)) − fading · age + trend · sin(2π (step / trend_steps + phase))
    click  with probability ceiling · σ(logit) · (1 + j)^−position_bias
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Laws:
    """0 switches a law off, where nothing else is said. Raises ValueError for a value out of range."""

    # clicks
    ceiling: float = 0.6  # the largest chance of a click
    bias: float = -3.0  # logit of an average item nobody knows
    taste: float = 1.5  # logits a standard deviation of likeness
    popular: float = 0.0  # logits from the least popular item to the most popular one
    quality: float = 0.3  # logits a unit of an item's hidden quality, standard normal
    position_bias: float = 0.0  # η of (1 + j)^−η

    # a second event after a click: a purchase, a share, a video watched to its end
    conversion: float = 0.0  # chance after a click
    delay: float = 0.0  # mean steps until it comes (geometric); what has not come at the end comes with the last step

    # the user changes
    evolution: float = 0.0  # y: after a click the taste moves by y·a, towards a with chance (1 + t·a) / 2, else away
    boredom: float = 0.0  # logits lost a unit of m · (a − mean)
    rest: float = 0.8  # m ← rest · m + mean of the vectors shown + sum of those clicked, every step
    drift: float = 0.0  # t ← unit(t + drift · ξ), ξ normal of length 1 on average, every step
    churn: float = 0.0  # chance to leave after a step, at satisfaction 0: churn · (1 − satisfaction)
    memory: float = 0.8  # satisfaction ← memory · satisfaction + (1 − memory) · [something was clicked]

    # items change
    fading: float = 0.0  # logits lost a step since the item appeared; items appear one by one
    trend: float = 0.0  # logits, the height of an item's wave of fashion
    trend_steps: float = 40.0  # its length

    # what users do without any slate
    organic: float = 0.3  # chance of an organic view after a step
    browsed: int = 5  # organic views before the first step: what a policy knows of the user then

    def __post_init__(self) -> None:
        shares = ("ceiling", "conversion", "rest", "churn", "memory", "organic")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "bias" and value < 0:
                raise ValueError(f"{field.name} is {value}: laws other than bias are 0 or more")
            if field.name in shares and value > 1:
                raise ValueError(f"{field.name} is {value}: it is a share, at most 1")
        if self.trend_steps <= 0:
            raise ValueError("trend_steps must be above 0")
