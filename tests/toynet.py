"""The nets of `toy`."""

import torch
from torch import nn


class Net(nn.Module):
    "Embeddings and a two-layer net."

    def __init__(self, n_dense: int, sizes: list[int], hidden: int = 96) -> None:
        super().__init__()
        self.config = {"n_dense": n_dense, "sizes": sizes, "hidden": hidden}
        self.n_dense = n_dense
        self.tables = nn.ModuleList(nn.Embedding(size, 7) for size in sizes)
        self.norm = nn.BatchNorm1d(n_dense + 7 * len(sizes))
        width = n_dense + 7 * len(sizes)
        self.body = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 33), nn.Tanh(), nn.Linear(33, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = x[:, self.n_dense :].long()
        parts = [x[:, : self.n_dense], *(table(codes[:, i]) for i, table in enumerate(self.tables))]
        return self.body(self.norm(torch.cat(parts, dim=1))).squeeze(1)


class Mixer(Net):
    "A net whose answer depends on the rest of the batch."

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        return logits - logits.mean()
