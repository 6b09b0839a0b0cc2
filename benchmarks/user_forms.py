"""Retention against softmax attention of the same size, both trained by headrace's recipe on Amazon Games.

python benchmarks/user_forms.py [--seeds N]

The quality of both forms of the user model (docs/decisions/0008). What a step of each costs is measured in
benchmarks/user_encoder.py.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import argparse
import json
import time
from pathlib import Path
from typing import Any

import next_item
import next_item_data as nid
import numpy as np
import torch
from next_item_ours import text_vectors
from torch import Tensor, nn

from headrace.export import ranking, train, validation
from headrace.export.log import Log, leave_one_out
from headrace.export.user_model import Retention, UserConfig, UserModel
from headrace.streams.records import item_key

RESULT = Path(__file__).parent / "results" / "user_forms.json"
Figures = dict[str, Any]


class SoftmaxAttention(Retention):
    """softmax(Q Kᵀ / √q + slope · (m - n)) V, where m <= n; the slopes tell order without an absolute position, which
    a moving window does not have (Press, Smith & Lewis 2022, ALiBi): they begin at log γ of the retention's heads."""

    def __init__(self, config: UserConfig) -> None:
        super().__init__(config)
        self.slope = nn.Parameter(self.decays.log())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, gate = self._split(x)
        steps = torch.arange(x.shape[1])
        back = steps[:, None] - steps[None, :]
        scores = torch.einsum("bnhq,bmhq->bhnm", q, k) * self.key_dim**-0.5 + self.slope[:, None, None] * back
        weights = scores.masked_fill(back < 0, -torch.inf).softmax(dim=-1)
        return self._merge(torch.einsum("bhnm,bmhv->bnhv", weights, v), gate)


def softmax_model(config: UserConfig) -> UserModel:
    model = UserModel(config)
    for layer in model.layers:
        attention = SoftmaxAttention(config)
        attention.load_state_dict(layer.retention.state_dict(), strict=False)  # the same weights to begin with
        layer.retention = attention
    return model


FORMS = {
    "retention, keys of 8 (shipped)": (UserModel, 8),
    "softmax attention, keys of 8": (softmax_model, 8),
    "softmax attention, keys of 16": (softmax_model, 16),
}


def measure(seeds: int) -> None:
    torch.set_num_threads(1)
    next_item.WORK.mkdir(parents=True, exist_ok=True)
    file, titles = next_item.SETS["Amazon Games"]
    data = nid.load(file, titles=titles)
    log = Log.of(
        users=np.repeat([str(user) for user in range(data.n_users)], np.diff(data.offsets)),
        items=data.items,
        keys=np.array([item_key(item) for item in data.ids], np.uint64),
        texts=text_vectors(data, next_item.WORK),
    )
    test = leave_one_out(log)
    rows = []
    for name, (make, keys) in FORMS.items():
        for seed in range(1, seeds + 1):
            started = time.process_time()
            trained = train.train(test.history, config=UserConfig(key_dim=keys), make=make, seed=seed, device="cpu")
            items = validation.item_vectors(trained.items, log)
            found = validation.rank(trained.model, test, items=items, words=np.zeros((0, items.shape[1]), np.float32))
            reached = {k: round(v, 5) for k, v in ranking.metrics(found.ranks).items()}
            weights = sum(parameter.numel() for parameter in trained.model.parameters())
            rows.append({"form": name, "seed": seed, "weights": weights, **reached,
                         "valid_ndcg10": round(trained.metrics["valid_ndcg10"], 5),
                         "cpu_seconds": round(time.process_time() - started)})  # fmt: skip
            print(rows[-1], flush=True)
            figures = {"users": int((test.targets >= 0).sum()), "seeds": seeds, "rows": rows}
            RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def section(figures: Figures) -> str:
    lines = [
        "## The user encoder's form\n",
        "Amazon Games, texts and ids, headrace's own recipe and harness for both; each user's last item, full ranking, "
        f"mean of {figures['seeds']} seed(s) (`benchmarks/user_forms.py`). For a step's cost see the user encoder.\n",
        "| form | weights of the user model | HR@10 | NDCG@10 |",
        "|---|---|---|---|",
    ]
    for form in dict.fromkeys(row["form"] for row in figures["rows"]):
        of = [row for row in figures["rows"] if row["form"] == form]
        hit, ndcg = (np.mean([row[key] for row in of]) for key in ("hit10", "ndcg10"))
        lines.append(f"| {form} | {of[0]['weights']:,} | {hit:.4f} | {ndcg:.4f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    measure(parser.parse_args().seeds)
