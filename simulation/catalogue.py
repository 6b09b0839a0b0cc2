"""The simulated shop's shelf: items with titles that read like a shop's, in categories, each in a style."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.simulation.settings import WorldSettings

_DESCRIPTIONS = (
    "{0}, {1} and {2}.",
    "Made {0} and {1}, with a {2} finish.",
    "For those who like it {0}: {1}, {2}.",
    "The {0} choice: {1} and {2} in every detail.",
)


@dataclass(frozen=True)
class Catalogue:
    """I items, K categories, S styles. An item's index is its place in every array; its id is `ids[index]`.

    `quality` and `hidden` are what no title tells: the first is felt alike by all, the second by each in his own way.
    """

    ids: list[str]  # (I,)
    titles: list[str]  # (I,)
    texts: list[str]  # (I,) descriptions, in the words of the item's style
    brands: list[str]  # (I,)
    categories: list[str]  # (K,) such as "sport/shoes"
    styles: list[str]  # (S,)
    style_words: list[list[str]]  # (S,) the words that say a style
    nouns: list[list[str]]  # (K,) the products of a category
    department: NDArray[np.int64]  # (K,)
    category: NDArray[np.int64]  # (I,)
    style: NDArray[np.int64]  # (I,)
    noun: NDArray[np.int64]  # (I,) index into its category's nouns
    price: NDArray[np.float64]  # (I,)
    quality: NDArray[np.float64]  # (I,) standard normal; brands differ in it
    hidden: NDArray[np.float64]  # (I, h) standard normal

    def message(self, item: int, *, available: bool = True) -> dict[str, Any]:
        """The item as the shop writes it to `items`."""
        return {
            "item_id": self.ids[item],
            "title": self.titles[item],
            "text": self.texts[item],
            "category": self.categories[self.category[item]],
            "price": float(self.price[item]),
            "available": available,
            "attributes": {"brand": self.brands[item]},
        }


def make(settings: WorldSettings) -> Catalogue:
    """A catalogue of `items + arriving` items, the same for the same settings."""
    words = tomllib.loads(files("headrace.simulation").joinpath("words.toml").read_text(encoding="utf-8"))
    rng = np.random.default_rng([settings.seed, 1])
    size = settings.items + settings.arriving

    departments = words["departments"]
    categories = [f"{department}/{name}" for department, inside in departments.items() for name in inside]
    nouns = [list(inside[name]) for inside in departments.values() for name in inside]
    department = np.repeat(np.arange(len(departments)), [len(inside) for inside in departments.values()])
    styles, style_words = list(words["styles"]), list(words["styles"].values())
    brand_names = [first + last for first in words["brands"]["first"] for last in words["brands"]["last"]]
    brand_quality = rng.standard_normal(len(brand_names))
    per_department = len(brand_names) // len(departments)
    brand_names = [brand_names[i] for i in rng.permutation(len(brand_names))]

    # Categories differ in size as a shop's do, by no more than about one to four.
    weight = rng.uniform(0.4, 1.6, len(categories))
    category = rng.choice(len(categories), size=size, p=weight / weight.sum())
    style = rng.integers(len(styles), size=size)
    noun = rng.integers(min(map(len, nouns)), size=size)
    brand = department[category] * per_department + rng.integers(per_department, size=size)
    category_price = rng.normal(np.log(settings.price_median), 0.5, len(categories))
    price = np.exp(category_price[category] + rng.normal(0, 0.4, size)).round(2)

    titles: list[str] = []
    texts: list[str] = []
    taken: set[str] = set()
    for i in range(size):
        while True:
            adjective = rng.choice(style_words[style[i]])
            colour, edition = rng.choice(words["variants"]["colours"]), rng.choice(words["variants"]["editions"])
            title = f"{brand_names[brand[i]]} {adjective} {nouns[category[i]][noun[i]]}, {colour}"
            title += f" – {edition}" if edition else ""
            if title not in taken:
                break
        taken.add(title)
        titles.append(title)
        words_of_style = style_words[style[i]]
        some = [words_of_style[j].lower() for j in rng.permutation(len(words_of_style))[:3]]
        texts.append(_DESCRIPTIONS[int(rng.integers(len(_DESCRIPTIONS)))].format(*some))

    return Catalogue(
        ids=[f"i{i:05d}" for i in range(size)],
        titles=titles,
        texts=texts,
        brands=[brand_names[b] for b in brand],
        categories=categories,
        styles=styles,
        style_words=style_words,
        nouns=nouns,
        department=department,
        category=category,
        style=style,
        noun=noun,
        price=price,
        quality=0.6 * brand_quality[brand] + 0.8 * rng.standard_normal(size),
        hidden=rng.standard_normal((size, settings.hidden)),
    )
