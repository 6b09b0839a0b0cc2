"""Words that a text encoder's vocabulary does not hold, and the vector they get instead.

A tokenizer maps every word it does not know to one and the same token, so the model gives texts of a foreign language
vectors that are all alike. Such words are told here, in a whole text or in a part of one, and become hashed character
n-grams: texts that share n-grams are near each other, but they know no meaning.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

F32 = NDArray[np.float32]

_ENGLISH = 0.15  # a vocabulary with fewer tokens beyond ASCII was made for English
_SAMPLE = 20_000  # tokens by which a vocabulary is judged
_MOST = 0.5  # share of a word's bytes, or of a text's tokens, that say nothing
_PAIR, _NUMBER = 0.5, 0.3  # weights beside a single ideograph's 1: by benchmarks/texts.py


class Split(NamedTuple):
    """A text of which the tokenizer does not know some words."""

    known: str  # the text without them; empty where no letter is left
    unknown: str
    share: float  # unknown of all letters, in UTF-8 bytes: a Chinese one, which says as much as three Latin ones, has 3


class Familiarity:
    """Tells the words that `tokenizer` does not know."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = tokenizer.decoder
        self._unknown = {"[UNK]", "<unk>", json.loads(tokenizer.to_str())["model"].get("unk_token")}
        vocabulary = sorted(tokenizer.get_vocab(with_added_tokens=False))
        sample = vocabulary[:: 1 + len(vocabulary) // _SAMPLE]
        foreign = sum(not self._letters(token).isascii() for token in sample)
        self._letters_say_nothing = foreign < _ENGLISH * len(sample)
        self._says: dict[str, bool] = {}  # of the tokens met so far

    def split(self, text: str, encoding: Encoding, *, start: int = 0) -> Split | None:
        """None where `encoding`, of `text`, knows all that has letters. Before `start` stands a prefix of ours."""
        if all(map(self._says_something, encoding.tokens)):
            return None
        words: dict[object, list[tuple[int, int, bool]]] = {}
        for token, (begin, end), word in zip(encoding.tokens, encoding.offsets, encoding.word_ids, strict=True):
            if end > max(begin, start):  # [CLS] and the like cover nothing
                key = ("at", begin) if word is None else word  # an unknown token that was added as special has no word
                words.setdefault(key, []).append((max(begin, start), end, self._says_something(token)))
        pieces = [piece for of_word in words.values() for piece in of_word]
        unknown = np.zeros(max((end for _, end, _ in pieces), default=0), bool)  # of each character
        for of_word in words.values():
            silent = _bytes(text, [piece for piece in of_word if not piece[2]])
            if silent > _MOST * _bytes(text, of_word):
                unknown[min(begin for begin, _, _ in of_word) : max(end for _, end, _ in of_word)] = True
        told = [(letter, bool(unknown[at])) for at, letter in enumerate(text[: len(unknown)]) if at >= start]
        known_bytes = sum(len(letter.encode()) for letter, is_unknown in told if letter.isalpha() and not is_unknown)
        unknown_bytes = sum(len(letter.encode()) for letter, is_unknown in told if letter.isalpha() and is_unknown)
        if not known_bytes:
            mostly = unknown_bytes or sum(not says for _, _, says in pieces) > _MOST * len(pieces)
            return Split("", text[start:], 1.0) if mostly else None
        if not unknown_bytes:
            return None
        return Split(
            " ".join("".join(" " if is_unknown else letter for letter, is_unknown in told).split()),
            " ".join("".join(letter if is_unknown else " " for letter, is_unknown in told).split()),
            unknown_bytes / (unknown_bytes + known_bytes),
        )

    def _says_something(self, token: str) -> bool:
        """Not so: [UNK], a piece of a letter, a single letter of a script that the vocabulary hardly knows."""
        says = self._says.get(token)
        if says is None:
            letters = self._letters(token)
            alone = self._letters_say_nothing and len(letters) <= 1 and not letters.isascii()
            says = self._says[token] = token not in self._unknown and "\ufffd" not in letters and not alone
        return says

    def _letters(self, token: str) -> str:
        """What the token stands for; a piece of a letter, in a vocabulary of bytes, is a replacement character."""
        written = token if self._decoder is None else self._decoder.decode([token])
        return written.removeprefix("##").strip("▁ ")


def hashed_ngrams(text: str, dim: int) -> F32:
    """Unit vector (dim,) of the text's character n-grams, by a seeded sparse random projection. Zero where it has none.

    Each n-gram adds ± its weight in 8 of the dimensions, chosen by its hash (Li, Hastie & Church 2006, "Very sparse
    random projections"). Texts that share n-grams are near each other, others at right angles.
    """
    vector = np.zeros(dim, np.float64)
    for gram, weight in _ngrams(text):
        digest = np.frombuffer(
            hashlib.blake2b(gram.encode(), digest_size=32, person=b"headrace-ngrams").digest(), "<u4"
        )
        np.add.at(vector, digest % dim, np.where(digest >> 31, weight, -weight))
    norm = float(np.sqrt(vector @ vector))
    return (vector / norm if norm else vector).astype(np.float32)


def _ngrams(text: str) -> list[tuple[str, float]]:
    """What a text is likened by, with weights; by script, since letters of an alphabet alone say nothing.

    An ideograph or a Hangul syllable is a word or half of one: it counts alone, and less together with the next.
    Alphabets: three letters, the word's ends marked (Bojanowski et al. 2017, section 3.2). Numbers count little.
    """
    grams: list[tuple[str, float]] = []
    for kind, word in _runs(unicodedata.normalize("NFKC", text).lower()):
        if kind == "syllables":
            grams += [(letter, 1.0) for letter in word]
            grams += [(word[i : i + 2], _PAIR) for i in range(len(word) - 1)]
        elif kind == "letters":
            marked = f"<{word}>"
            grams += [(marked[i : i + 3], 1.0) for i in range(len(marked) - 2)]
        else:
            grams.append((word, _NUMBER))
    return grams or [(letter, 1.0) for letter in text.strip()]


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """Runs of letters of one kind."""
    for kind, run in groupby(text, _kind):
        if kind:
            yield kind, "".join(run)


def _kind(letter: str) -> str:
    if "\u3400" <= letter <= "\ud7a3":
        return "syllables"
    if letter.isdecimal():
        return "digits"
    return "letters" if letter.isalpha() or unicodedata.category(letter)[0] == "M" else ""  # M: vowel signs and accents


def _bytes(text: str, pieces: list[tuple[int, int, bool]]) -> int:
    return sum(len(text[begin:end].encode()) for begin, end, _ in pieces)
