"""The upper blocks of a text model, trained over what its frozen lower blocks say, which is computed once a text.

    upper = UpperBlocks(tower, texts, trained=2)
    upper.vectors(rows)       as tower(**tower.tokens(texts)) would give them, at the cost of two blocks
    upper.release()           the tower is whole again

For any model whose blocks stand in one ModuleList and hand on the hidden states as their first argument and result:
BERT, RoBERTa, MPNet, DistilBERT, and decoders such as Llama and Qwen. B = texts of a batch, L = tokens, H = width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.export.errors import ExportError
from headrace.export.text import TextTower

I64 = NDArray[np.int64]
_ROWS = 64  # texts a pass, near lengths beside each other: titles of 5 and 60 tokens do not pad each other


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of a model's blocks. Raises ValueError, one line, for a model without such a list."""
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) > 1]
    if not lists:
        raise ExportError(
            f"{type(model).__name__} has no list of blocks, so none of them can be tuned: serve it as it is"
        )
    return max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))


class UpperBlocks:
    def __init__(
        self,
        tower: TextTower,
        texts: Sequence[str],
        *,
        trained: int,
        max_tokens: int,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """The last `trained` blocks are to be trained; texts are cut at `max_tokens`. `progress` hears (done, all)."""
        self.tower = tower
        self.blocks = blocks_of(tower.model)[1]
        self.trained = min(trained, len(self.blocks) - 1)
        self._lower = list(self.blocks)[: -self.trained]
        self._given: Tensor | None = None
        self._as_tuple = False
        self.ids, self.lengths = self._tokens(texts, max_tokens)
        self._starts = np.concatenate([[0], self.lengths.cumsum()])
        self._hidden = self._lower_pass(progress)
        for number, block in enumerate(self._lower):
            setattr(block, "forward", self._stand_in(first=number == 0))  # noqa: B010  mypy knows methods only

    def release(self) -> None:
        for block in self._lower:
            del block.forward

    def vectors(self, rows: I64) -> Tensor:
        """Unit vectors of these texts (B, dim), with gradients where they are on."""
        order = np.argsort(self.lengths[rows], kind="stable")
        parts = [self._pass(rows[part]) for part in np.array_split(order, -(-len(rows) // _ROWS))]
        return torch.cat(parts)[torch.from_numpy(np.argsort(order))]

    @torch.no_grad()
    def all_vectors(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.vectors(np.arange(len(self.lengths))).numpy()
        return found

    def _pass(self, rows: I64) -> Tensor:
        ids, mask = self._padded(rows)
        hidden = torch.zeros(*ids.shape, self._hidden.shape[1])
        hidden[mask.bool()] = self._hidden[torch.from_numpy(self._flat(rows))].float()
        self._given = hidden
        return self.tower(ids, mask)  # type: ignore[no-any-return]

    def _lower_pass(self, progress: Callable[[int, int], None]) -> Tensor:
        """What the last lower block says of every token: (tokens of all texts, H), float16, which halves the memory."""
        order = np.argsort(self.lengths, kind="stable")
        kept: Tensor | None = None
        said: list[Tensor] = []

        def keep(module: nn.Module, given: Any, result: Any) -> None:
            self._as_tuple = isinstance(result, tuple)
            said.append(result[0] if self._as_tuple else result)

        hook = self._lower[-1].register_forward_hook(keep)
        with torch.inference_mode():
            for done in range(0, len(order), _ROWS):
                rows = order[done : done + _ROWS]
                ids, mask = self._padded(rows)
                self.tower(ids, mask)
                hidden = said.pop()
                if kept is None:
                    kept = torch.zeros(int(self._starts[-1]), hidden.shape[-1], dtype=torch.float16)
                kept[torch.from_numpy(self._flat(rows))] = hidden[mask.bool()].half()
                progress(done + len(rows), len(order))
        hook.remove()
        assert kept is not None
        return kept

    def _stand_in(self, *, first: bool) -> Callable[..., Any]:
        """The forward of a lower block whose work is done: the first gives what was kept, the others hand it on."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            given = self._given if first else hidden_states
            return (given,) if self._as_tuple else given

        return forward

    def _tokens(self, texts: Sequence[str], most: int) -> tuple[I64, I64]:
        """→ the tokens of all texts one after another, and how many each has."""
        ids: list[list[int]] = []
        for start in range(0, len(texts), 1_024):
            found = self.tower.tokens(texts[start : start + 1_024])
            for row, mask in zip(found["input_ids"], found["attention_mask"], strict=True):
                ids.append(row[: min(int(mask.sum()), most)].tolist())
        return np.concatenate([np.array(row, np.int64) for row in ids]), np.array([len(row) for row in ids])

    def _flat(self, rows: I64) -> I64:
        """Where the tokens of these texts stand in the flat arrays."""
        return np.concatenate([np.arange(self._starts[row], self._starts[row + 1]) for row in rows])

    def _padded(self, rows: I64) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask (B, L)."""
        lengths = torch.from_numpy(self.lengths[rows])
        mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        ids[mask] = torch.from_numpy(self.ids[self._flat(rows)])
        return ids, mask.long()
