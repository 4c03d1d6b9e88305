"""A 350M-parameter transformer in bf16 on one GPU: with Workbench against the same model in a plain PyTorch script.

Needs only torch and this package's light core (safetensors, structlog, pydantic): no ray, polars or sklearn. Prints tokens/s and MFU of both
(interleaved rounds), the ratio (goal >= 0.97), and the stall share: time in `report` and `checkpoint` over all time (goal <= 1 %).
MFU = (6 x parameters + 12 x layers x width x length) x tokens/s over the device's peak in bf16 (known cards; else --peak in TFLOP/s).
On a machine without a GPU it runs a tiny model on the CPU, as a check that it works: those figures say nothing.
Usage: python benchmarks/gpu.py [--steps 30] [--rounds 3] [--batch 16] [--length 1024] [--compile] [--peak TFLOPS]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

PEAKS = {
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "L40": 181.0,
    "L4": 121.0,
    "4090": 165.0,
}  # dense bf16, TFLOP/s


class Block(nn.Module):
    "Attention and a feed-forward net, normalised before."

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(self.one(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.two(x))))


class Gpt(nn.Module):
    "A decoder; its output layer is its embedding."

    def __init__(self, width: int, layers: int, heads: int, words: int, length: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.norm(x) @ self.words.weight.T
        return nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.reshape(-1))


def made(asked: argparse.Namespace, device: torch.device) -> tuple[nn.Module, Any, dict[str, int]]:
    "Model, its step function, its shape."
    full = device.type == "cuda"
    shape = {"width": 1_024, "layers": 24, "heads": 16} if full else {"width": 64, "layers": 2, "heads": 2}
    words = 50_304 if full else 512
    torch.manual_seed(0)
    return Gpt(**shape, words=words, length=asked.length).to(device), words, shape


def step(model: Any, optimiser: Any, tokens: torch.Tensor, device: torch.device) -> torch.Tensor:
    "Forward in bf16, backward, update."
    with torch.autocast(device.type, torch.bfloat16):
        loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss


def adam(device: torch.device) -> Any:
    "The fastest AdamW of the device."
    return lambda p: torch.optim.AdamW(p, lr=3e-4, fused=True)


def wait(device: torch.device) -> None:
    "Until the device is done."
    if device.type == "cuda":
        torch.cuda.synchronize()


def plain(asked: argparse.Namespace, device: torch.device, tokens: torch.Tensor) -> float:
    "Seconds of a step in a plain loop."
    model, _, _ = made(asked, device)
    optimiser = adam(device)(model.parameters())
    run = torch.compile(model) if asked.compile else model
    begin = 0.0
    for number in range(asked.steps + 5):
        if number == 5:
            wait(device)
            begin = time.perf_counter()
        rows = torch.randint(0, len(tokens), (asked.batch,), device=device)
        step(run, optimiser, tokens[rows], device)
    wait(device)
    return (time.perf_counter() - begin) / asked.steps


def ours(
    work: Any, asked: argparse.Namespace, device: torch.device, tokens: torch.Tensor
) -> tuple[float, float]:
    "Seconds of a step with `prepare`, `batches`, `report` and one checkpoint; and the share spent in them."
    model, _, _ = made(asked, device)
    model, optimiser = work.prepare(model, adam(device))
    run = torch.compile(model) if asked.compile else model
    begin = held = 0.0
    for number, (rows,) in enumerate(work.batches((tokens,), batch_size=asked.batch, epochs=10**6)):
        if number == 5:
            wait(device)
            begin, held = time.perf_counter(), 0.0
        if number == asked.steps + 5:
            break
        loss = step(run, optimiser, rows, device)
        entered = time.perf_counter()
        work.report(loss=loss)
        if number == 5 + asked.steps // 2:
            work.checkpoint()
        held += time.perf_counter() - entered
    wait(device)
    spent = time.perf_counter() - begin
    return spent / asked.steps, held / spent


def peak(asked: argparse.Namespace) -> float:
    "TFLOP/s of the card in bf16; 0 where nobody knows."
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return asked.peak or next((value for key, value in PEAKS.items() if key in name), 0.0)


def main() -> None:
    "Rounds of both, in turns."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"steps": 30, "rounds": 3, "batch": 0, "length": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peak", type=float, default=0.0)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked.batch, asked.length = (
        asked.batch or (16 if device.type == "cuda" else 4),
        asked.length or (1_024 if device.type == "cuda" else 32),
    )
    if device.type == "cpu":
        torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    from workbench.train.work import Site, perform

    model, words, shape = made(asked, device)
    count = sum(p.numel() for p in model.parameters())
    del model
    tokens = torch.randint(0, words, (max(64, 4 * asked.batch), asked.length + 1), device=device)
    flop = 6 * count + 12 * shape["layers"] * shape["width"] * asked.length
    peers, ratios, stalls = [], [], []
    for number in range(asked.rounds):
        peers.append(plain(asked, device, tokens))
        site = Site(Path(f"round-{number}").resolve(), device=device.type, every=0)
        mine, stall = perform(ours, site, {"asked": asked, "device": device, "tokens": tokens})
        ratios.append(peers[-1] / mine)
        stalls.append(stall)
    rate = asked.batch * asked.length / statistics.median(peers)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, a tiny model: a check, no figure"
    mfu = f"{flop * rate / peak(asked) / 1e12:.1%}" if peak(asked) else "unknown peak: give --peak"
    print(
        f"{count / 1e6:,.1f}M parameters, {asked.batch} x {asked.length} tokens, bf16, compile {asked.compile}, {where}"
    )
    print(
        f"plain {rate:,.0f} tokens/s, MFU {mfu}; ours/plain {statistics.median(ratios):.3f} [{min(ratios):.3f} - {max(ratios):.3f}]   goal >= 0.97"
    )
    print(f"stall share {statistics.median(stalls):.2%}, one checkpoint in {asked.steps} steps   goal <= 1 %")


if __name__ == "__main__":
    main()
