"""The user encoder: what a user did, oldest first, as one unit vector in the item space.

A causal transformer whose attention is retention (Sun et al. 2023, "Retentive Network", arXiv 2307.08621): linear
attention with a fixed decay γ a head. It has two forms that compute the same:

    parallel   O = (Q Kᵀ ⊙ D) V,  D[n, m] = γ^(n-m) for n >= m           (eq. 5)   a whole window, for training
    recurrent  S_n = γ S_(n-1) + k_nᵀ v_n,   o_n = q_n S_n               (eq. 6)   one event, at a cost that never grows

Order is told by the decay alone; the paper's rotation needs the absolute position, which a moving window does not have.
Beside the transformer run decaying sums of the item vectors themselves, m_n = γ m_(n-1) + w(type_n, gap_n) x_n. The
state is their mix plus what the transformer adds (a residual), so that even an untrained encoder is a sensible one.

B = users, L = events, d = dim, h = heads, q = key_dim, v = d / h, j = sums.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from headrace.export.names import GAP_BUCKETS, N_TYPE_CODES


class UserConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    model_type = "headrace_user"

    def __init__(
        self,
        *,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        key_dim: int = 8,  # a head's keys; its state is key_dim × dim / heads floats
        feed_forward: int = 128,
        head_decays: tuple[float, ...] = (0.5, 0.8, 0.93, 0.98),
        sum_decays: tuple[float, ...] = (0.6, 0.95),
        type_codes: int = N_TYPE_CODES,
        gap_buckets: int = GAP_BUCKETS,
        dropout: float = 0.0,  # in training
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim = dim
        self.layers = layers
        self.heads = heads
        self.key_dim = key_dim
        self.feed_forward = feed_forward
        self.head_decays = list(head_decays)
        self.sum_decays = list(sum_decays)
        self.type_codes = type_codes
        self.gap_buckets = gap_buckets
        self.dropout = dropout
        if len(self.head_decays) != heads:
            raise ValueError(f"{heads} heads need as many head_decays, got {len(self.head_decays)}")

    @property
    def retention_floats(self) -> int:
        """Floats of one layer's state: h · q · v."""
        return self.key_dim * self.dim

    @property
    def cache_floats(self) -> int:
        """Floats that a user's recurrent state takes."""
        return self.layers * self.retention_floats + len(self.sum_decays) * self.dim


def decay_matrix(decays: Tensor, length: int) -> Tensor:
    """decays (h,) → D (h, L, L), γ^(n-m) on and below the diagonal, 0 above (Sun et al. 2023, eq. 5)."""
    steps = torch.arange(length, device=decays.device)
    distance = (steps[:, None] - steps[None, :]).clamp(min=0)
    powers: Tensor = decays[:, None, None] ** distance
    return torch.tril(powers)


def unit(x: Tensor) -> Tensor:
    scaled: Tensor = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return scaled


class Retention(nn.Module):
    """Multi-scale retention with a swish gate (Sun et al. 2023, eq. 8)."""

    decays: Tensor  # γ (h,)

    def __init__(self, config: UserConfig) -> None:
        super().__init__()
        self.heads, self.key_dim, self.dim = config.heads, config.key_dim, config.dim
        keys = self.heads * self.key_dim
        self.sizes = [keys, keys, self.dim, self.dim]
        self.project = nn.Linear(self.dim, sum(self.sizes), bias=False)  # q, k, v, gate
        self.norm = nn.LayerNorm(self.dim // self.heads, elementwise_affine=False)  # a head at a time
        self.out = nn.Linear(self.dim, self.dim, bias=False)
        self.register_buffer("decays", torch.tensor(config.head_decays))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, gate = self.project(x).split(self.sizes, dim=-1)
        head = (*x.shape[:-1], self.heads, -1)
        return q.view(head), k.view(head), v.view(head), gate

    def _merge(self, o: Tensor, gate: Tensor) -> Tensor:
        return self.out(self.norm(o).flatten(-2) * nn.functional.silu(gate))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Parallel form: (B, L, d) → (B, L, d)."""
        q, k, v, gate = self._split(x)  # (B, L, h, ·)
        scores = torch.einsum("bnhq,bmhq->bhnm", q, k) * decay_matrix(self.decays, x.shape[1])
        return self._merge(torch.einsum("bhnm,bmhv->bnhv", scores, v), gate)

    def step(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Recurrent form: S (B, h, q, v), x (B, d) → S', (B, d)."""
        q, k, v, gate = self._split(x)  # (B, h, ·)
        state = state * self.decays.view(-1, 1, 1) + k.unsqueeze(-1) * v.unsqueeze(-2)
        return state, self._merge((q.unsqueeze(-2) @ state).squeeze(-2), gate)


class Layer(nn.Module):
    """Pre-norm: x + retention, then x + feed-forward (Sun et al. 2023, eq. 9)."""

    def __init__(self, config: UserConfig) -> None:
        super().__init__()
        self.norm_retention = nn.LayerNorm(config.dim)
        self.retention = Retention(config)
        self.norm_feed_forward = nn.LayerNorm(config.dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.dim, config.feed_forward), nn.ReLU(), nn.Linear(config.feed_forward, config.dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.retention(self.norm_retention(x)))
        return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))  # type: ignore[no-any-return]

    def step(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        state, kept = self.retention.step(state, self.norm_retention(x))
        x = x + kept
        return state, x + self.feed_forward(self.norm_feed_forward(x))


class UserModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Tokens are (vector (d,) unit or zero, event-type code, time-gap bucket); see names.py for the two codes."""

    config_class = UserConfig

    def __init__(self, config: UserConfig) -> None:
        super().__init__(config)
        d = config.dim
        self.vector_in = nn.Linear(d, d, bias=False)
        self.type_in = nn.Embedding(config.type_codes, d)
        self.gap_in = nn.Embedding(config.gap_buckets, d)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.layers)])
        self.norm_out = nn.LayerNorm(d)
        self.out = nn.Linear(d, d, bias=False)
        # The decaying sums: how much an event of this type, after this gap, weighs in each, and how the sums are mixed.
        sums = len(config.sum_decays)
        self.type_weight = nn.Embedding(config.type_codes, sums)
        self.gap_weight = nn.Embedding(config.gap_buckets, sums)
        self.sum_decay = nn.Parameter(torch.empty(sums))  # logit of γ
        self.mix = nn.Parameter(torch.empty(sums))
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, UserModel):
            nn.init.zeros_(module.type_weight.weight)
            nn.init.zeros_(module.gap_weight.weight)
            module.sum_decay.copy_(torch.tensor([math.log(g / (1 - g)) for g in self.config.sum_decays]))
            nn.init.ones_(module.mix)
            nn.init.normal_(module.out.weight, std=0.01)  # untrained, the transformer hardly moves the mix

    def _embed(self, vectors: Tensor, types: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """→ tokens (…, d) and what they add to the sums (…, j, d)."""
        weight = (self.type_weight(types) + self.gap_weight(gaps)).exp()
        token = self.vector_in(vectors) * self.config.dim**0.5 + self.type_in(types) + self.gap_in(gaps)
        return token, weight.unsqueeze(-1) * vectors.unsqueeze(-2)

    def _state(self, x: Tensor, sums: Tensor) -> Tensor:
        """x (…, d), sums (…, j, d) → unit state (…, d)."""
        return unit((self.mix.unsqueeze(-1) * unit(sums)).sum(-2) + self.out(self.norm_out(x)))

    def forward(self, vectors: Tensor, types: Tensor, gaps: Tensor) -> Tensor:
        """Whole windows: (B, L, d), (B, L), (B, L) → the state after each event (B, L, d). Causal: pad at the end."""
        x, added = self._embed(vectors, types, gaps)
        sums = torch.einsum("jnm,bmjd->bnjd", decay_matrix(self.sum_decay.sigmoid(), x.shape[1]), added)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x)
        return self._state(x, sums)

    def step(self, cache: Tensor, vectors: Tensor, types: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """One event a user: cache (B, cache_floats), (B, d), (B,), (B,) → cache', state (B, d). Begin with zeros."""
        c = self.config
        sizes = [c.retention_floats] * c.layers + [len(c.sum_decays) * c.dim]
        *states, sums = cache.split(sizes, dim=-1)  # type: ignore[no-untyped-call]
        x, added = self._embed(vectors, types, gaps)
        sums = sums.view(-1, len(c.sum_decays), c.dim) * self.sum_decay.sigmoid().unsqueeze(-1) + added
        kept = []
        for layer, state in zip(self.layers, states, strict=True):
            assert isinstance(layer, Layer)
            state, x = layer.step(state.view(-1, c.heads, c.key_dim, c.dim // c.heads), x)
            kept.append(state.flatten(1))
        return torch.cat([*kept, sums.flatten(1)], dim=-1), self._state(x, sums)


class StepGraph(nn.Module):
    """`UserModel.step` as a module of its own, for the exporter."""

    def __init__(self, model: UserModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, cache: Tensor, vectors: Tensor, types: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.step(cache, vectors, types, gaps)
