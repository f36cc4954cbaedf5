"""The model's shape and arithmetic: Transformers' Llama (asserted at export), leaner to train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

# Places of <|pad|> and <|end|> in the tokenizer's list of special tokens.
PAD_ID = 0
END_ID = 4


@dataclass
class Recipe:
    """Everything that a rerun needs; saved beside the weights."""

    vocab: int = 8192
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    ffn: int = 1024
    rope_theta: float = 10000.0
    row_tokens: int = 512
    rows: int = 12
    scored_tokens: int = 2560  # logits are computed for all answer tokens and a sample of others
    answer_weight: float = 4.0
    select_answer_weight: float = 2.0  # from select_at on: tokens that copying predicts,
    select_weight: float = 20.0  # and those that decide which passage is copied
    optimizer: str = "muon"
    peak_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    short_steps: int = 500  # curriculum: one short passage per question
    medium_steps: int = 1200  # curriculum: up to three short passages
    select_at: int = 100_000  # curriculum: choosing among passages; fresh optimizer state
    select_rate: float = 7e-4  # at 2e-3 the loss on choices rose again
    select_short_steps: int = 400  # of these, so many with short passages and easy distractors
    ranked_at: int = 100_000  # curriculum: better passages come first; fresh optimizer state
    decay_at: int = 100_000
    decay_steps: int = 1300
    seed: int = 20
    threads: int = 2


class Block(nn.Module):
    """Attention and gated feed-forward, each behind a norm and beside a residual."""

    def __init__(self, r: Recipe) -> None:
        super().__init__()
        self.heads = r.heads
        self.input_layernorm = nn.Parameter(torch.ones(r.hidden))
        self.post_attention_layernorm = nn.Parameter(torch.ones(r.hidden))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(r.hidden, r.hidden, bias=False) for _ in range(4)
        )
        self.gate_proj = nn.Linear(r.hidden, r.ffn, bias=False)
        self.up_proj = nn.Linear(r.hidden, r.ffn, bias=False)
        self.down_proj = nn.Linear(r.ffn, r.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, c = x.shape
        h = rms_norm(x, self.input_layernorm)
        q, k, v = (
            p(h).view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        a = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        x = x + self.o_proj(a.transpose(1, 2).reshape(b, t, c))
        h = rms_norm(x, self.post_attention_layernorm)
        return x + self.down_proj(functional.silu(self.gate_proj(h)) * self.up_proj(h))


class Nano(nn.Module):
    """The same arithmetic as Transformers' Llama (asserted at export), leaner to train."""

    def __init__(self, r: Recipe) -> None:
        super().__init__()
        self.embed = nn.Embedding(r.vocab, r.hidden)
        self.blocks = nn.ModuleList(Block(r) for _ in range(r.layers))
        self.norm = nn.Parameter(torch.ones(r.hidden))
        for name, p in self.named_parameters():
            if p.dim() == 2:
                scale = (2 * r.layers) ** -0.5 if "o_proj" in name or "down_proj" in name else 1.0
                nn.init.normal_(p, std=0.02 * scale)
        half = r.hidden // r.heads // 2
        freq = r.rope_theta ** (-torch.arange(half) / half)
        angle = torch.outer(torch.arange(4096), torch.cat((freq, freq)))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids: Tensor, positions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        x = self.embed(ids).bfloat16()
        cos, sin = self.cos[: ids.shape[1]].bfloat16(), self.sin[: ids.shape[1]].bfloat16()
        for block in self.blocks:
            x = block(x, cos, sin)
        x = rms_norm(x, self.norm).flatten(0, 1)[positions]
        logits = functional.linear(x, self.embed.weight.bfloat16()).float()
        loss = functional.cross_entropy(logits, targets, reduction="none")
        answer, text, choice = weights > 1, weights == 1, weights > 10
        return torch.stack(
            (
                (loss * weights).sum() / weights.sum(),
                (loss * answer).sum() / answer.sum(),
                (loss * text).sum() / text.sum(),
                (loss * choice).sum() / choice.sum().clamp(min=1),
            )
        )


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5) * weight).bfloat16()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def to_transformers(model: Nano, r: Recipe) -> LlamaForCausalLM:
    """The same weights under the names that Transformers gives them."""
    config = LlamaConfig(
        vocab_size=r.vocab,
        hidden_size=r.hidden,
        intermediate_size=r.ffn,
        num_hidden_layers=r.layers,
        num_attention_heads=r.heads,
        num_key_value_heads=r.heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_theta=r.rope_theta,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=None,
        eos_token_id=END_ID,
        attention_bias=False,
        mlp_bias=False,
        initializer_range=0.02,
    )
    hf = LlamaForCausalLM(config)
    names = {}
    for key, value in model.state_dict().items():
        if key == "embed.weight":
            names["model.embed_tokens.weight"] = names["lm_head.weight"] = value
        elif key == "norm":
            names["model.norm.weight"] = value
        else:
            _, layer, *rest = key.split(".")
            part = rest[0]
            if part.endswith("layernorm"):
                new = f"{part}.weight"
            else:
                room = "self_attn" if part in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
                new = f"{room}.{part}.weight"
            names[f"model.layers.{layer}.{new}"] = value
    hf.load_state_dict(names)
    return hf.eval()
