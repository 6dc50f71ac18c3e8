"""What the kernels' blocks compute, in NumPy's double precision, for one sequence from its first token on; and the blocks themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.support.kernel_parts import Doubles, Floats, linear, module, normal


@dataclass(frozen=True)
class Product:
    """A matrix, and a bias or none."""

    weight: Floats
    bias: Floats | None = None

    @classmethod
    def random(cls, n: int, k: int, seed: int, biased: bool = False) -> Product:
        return cls(normal(n, k, seed=seed) * np.float32(k**-0.5), normal(n, seed=seed + 1) if biased else None)

    def __call__(self, x: Doubles) -> Doubles:
        return x @ self.weight.T.astype(np.float64) + (0 if self.bias is None else self.bias)

    def made(self, target: str = "f32") -> Any:
        return linear(self.weight, self.bias, target)


@dataclass(frozen=True)
class Normed:
    weight: Floats
    bias: Floats | None = None
    centred: bool = False
    eps: float = 1e-5

    def __call__(self, x: Doubles) -> Doubles:
        if self.centred:
            x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weight + (0 if self.bias is None else self.bias)

    def made(self) -> Any:
        return module.Norm(self.weight, self.eps, self.bias, centred=self.centred)


def sigmoid(x: Doubles) -> Doubles:
    return 1 / (1 + np.exp(-x))


def softmax(x: Doubles) -> Doubles:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


ACTIVATIONS = {
    "silu": lambda g, u: g * sigmoid(g) * u,
    "gelu": lambda g, u: 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * u,
    "clamped": lambda g, u: (np.clip(u, -7, 7) + 1) * np.minimum(g, 7) * sigmoid(1.702 * np.minimum(g, 7)),
}


@dataclass(frozen=True)
class Mlp:
    gate: Product
    up: Product
    down: Product

    @classmethod
    def random(cls, hidden: int, width: int, seed: int, biased: bool = False) -> Mlp:
        sizes = ((width, hidden), (width, hidden), (hidden, width))
        return cls(*(Product.random(n, k, seed + 2 * i, biased) for i, (n, k) in enumerate(sizes)))

    def __call__(self, x: Doubles, activation: str) -> Doubles:
        return self.down(ACTIVATIONS[activation](self.gate(x), self.up(x)))

    def made(self, target: str = "f32") -> Any:
        return self.gate.made(target), self.up.made(target), self.down.made(target)


@dataclass(frozen=True)
class Routed:
    """Experts, and how they are chosen: the arguments of the kernels' constructor."""

    router: Product
    experts: list[Mlp]
    chosen: int = 2
    activation: str = "silu"
    selection_bias: Floats | None = None
    shared: Mlp | None = None
    shared_gate: Product | None = None
    how: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def random(cls, hidden: int = 64, count: int = 8, width: int = 32, biased: bool = False, **options: Any) -> Routed:
        experts = [Mlp.random(hidden, width, 100 + 10 * i, biased) for i in range(count)]
        return cls(Product.random(count, hidden, 7, biased), experts, **options)

    def choose(self, x: Doubles) -> tuple[list[int], Doubles]:
        """One row's experts, and their weights."""
        how, logits = self.how, self.router(x)
        scores = logits if how.get("softmax_after") else (sigmoid if how.get("sigmoid") else softmax)(logits)
        compared = scores + (0 if self.selection_bias is None else self.selection_bias)
        groups = how.get("groups", 1)
        by_group = compared.reshape(groups, -1)
        best = np.sort(by_group)[:, ::-1][:, : 2 if how.get("group_by_two") else 1].sum(-1)
        closed = np.lexsort((np.arange(groups), -best))[how.get("groups_chosen", 1) :]
        by_group[closed] = -np.inf
        taken = np.lexsort((np.arange(len(compared)), -compared))[: self.chosen]
        weights = softmax(scores[taken]) if how.get("softmax_after") else scores[taken]
        return taken.tolist(), (weights / weights.sum() if how.get("renormalised") else weights) * how.get("scale", 1.0)

    def __call__(self, x: Doubles) -> Doubles:
        out = np.zeros_like(x)
        for row, at in zip(out, x, strict=True):
            for expert, weight in zip(*self.choose(at), strict=True):
                row += weight * self.experts[expert](at, self.activation)
            if self.shared is not None:
                row += self.shared(at, self.activation) * (1.0 if self.shared_gate is None else sigmoid(self.shared_gate(at)))
        return out

    def made(self, around: Any, target: str = "f32") -> Any:
        return module.Experts(
            around, self.router.made(), [expert.made(target) for expert in self.experts], chosen=self.chosen, activation=self.activation,
            selection_bias=self.selection_bias, shared=self.shared and self.shared.made(target),
            shared_gate=self.shared_gate and self.shared_gate.made(), **self.how,
        )  # fmt: skip


def rotate(heads: Doubles, angles: Doubles, begin: int = 0) -> Doubles:
    """heads: [rows, heads, width]; angles: [rows, half]. The values from `begin` on that the angles reach, in halves."""
    half, out = angles.shape[1], heads.copy()
    a, b = heads[..., begin : begin + half], heads[..., begin + half : begin + 2 * half]
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    out[..., begin : begin + half], out[..., begin + half : begin + 2 * half] = a * c - b * s, b * c + a * s
    return out


def attended(q: Doubles, k: Doubles, v: Doubles, scale: float, cap: float = 0.0, window: int = 0, sinks: Floats | None = None) -> Doubles:
    """q: [rows, heads, width], k and v: [rows, KV heads, width]. All rows of one sequence: [rows, heads * values]."""
    rows, heads = q.shape[:2]
    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("rhd,thd->hrt", q, k) * scale
    if cap:
        scores = cap * np.tanh(scores / cap)
    at = np.arange(rows)
    hidden = (at[None] > at[:, None]) | ((at[None] <= at[:, None] - window) if window else False)
    scores[:, hidden] = -np.inf
    sink = (
        np.full((heads, rows, 1), -np.inf) if sinks is None else np.broadcast_to(sinks[:, None, None].astype(np.float64), (heads, rows, 1))
    )
    scores = np.concatenate([scores, sink], -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hrt,thd->rhd", weights[..., :-1], v).reshape(rows, -1)


@dataclass(frozen=True)
class Grouped:
    """Grouped-query attention."""

    hidden: int = 64
    q_heads: int = 4
    kv_heads: int = 2
    key_dim: int = 32
    value_dim: int = 32
    scale: float = 0.2
    cap: float = 0.0
    clip: float = 0.0
    window: int = 0
    rotated: int = 32
    sinks: bool = False
    biased: bool = False
    norm: str = ""
    """Of queries and keys: of each head, full, or centred of each head."""

    @property
    def kept(self) -> tuple[int, ...]:
        return (self.key_dim, self.value_dim) * self.kv_heads

    def _products(self) -> tuple[Product, Product, Product, Product]:
        q, k, v = self.q_heads * self.key_dim, self.kv_heads * self.key_dim, self.kv_heads * self.value_dim
        shapes = ((q, self.hidden), (k, self.hidden), (v, self.hidden), (self.hidden, self.q_heads * self.value_dim))
        q, k, v, o = (Product.random(*shape, 20 + 2 * i, self.biased) for i, shape in enumerate(shapes))
        return q, k, v, o

    def _norms(self) -> tuple[Normed, Normed] | None:
        if not self.norm:
            return None
        widths = [heads * self.key_dim if self.norm == "full" else self.key_dim for heads in (self.q_heads, self.kv_heads)]
        q, k = (Normed(normal(width, seed=40 + i), centred=self.norm == "centred") for i, width in enumerate(widths))
        return q, k

    def _sinks(self) -> Floats | None:
        return normal(self.q_heads, seed=50) if self.sinks else None

    def __call__(self, x: Doubles, angles: Doubles | None) -> Doubles:
        products, norms = self._products(), self._norms()
        q, k, v = (product(x) for product in products[:3])
        if norms is not None:
            q, k = (
                norm(values.reshape(len(x), -1, len(norm.weight))).reshape(len(x), -1) for norm, values in zip(norms, (q, k), strict=True)
            )
        if self.clip:
            q, k, v = (np.clip(values, -self.clip, self.clip) for values in (q, k, v))
        q, k, v = q.reshape(len(x), -1, self.key_dim), k.reshape(len(x), -1, self.key_dim), v.reshape(len(x), -1, self.value_dim)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return products[3](attended(q, k, v, self.scale, self.cap, self.window, self._sinks()))

    def made(self, around: Any, rotation: int = 0, target: str = "f32") -> Any:
        norms = self._norms()
        return module.GroupedQuery(
            around, *(product.made(target) for product in self._products()),
            q_heads=self.q_heads, kv_heads=self.kv_heads, key_dim=self.key_dim, value_dim=self.value_dim,
            q_norm=norms and norms[0].made(), k_norm=norms and norms[1].made(), scale=self.scale, cap=self.cap, clip=self.clip,
            window=self.window, rotation=rotation, rotated=self.rotated, sinks=self._sinks(),
        )  # fmt: skip


@dataclass(frozen=True)
class LatentQuery:
    """Latent attention, as its paper has it: keys and values of every head are made of the latent vectors."""

    hidden: int = 64
    heads: int = 4
    rank: int = 32
    nope: int = 32
    rope: int = 16
    value_dim: int = 48
    q_rank: int = 0
    scale: float = 0.15

    @property
    def kept(self) -> tuple[int, ...]:
        return self.rank + self.rope, self.rank

    def _products(self) -> dict[str, Product]:
        shapes = {
            **({"q_a": (self.q_rank, self.hidden)} if self.q_rank else {}),
            "q": (self.heads * (self.nope + self.rope), self.q_rank or self.hidden),
            "kv_a": (self.rank + self.rope, self.hidden),
            "k_b": (self.heads * self.rank, self.nope),
            "v_b": (self.heads * self.value_dim, self.rank),
            "o": (self.hidden, self.heads * self.value_dim),
        }
        return {name: Product.random(*shape, 60 + 2 * i) for i, (name, shape) in enumerate(shapes.items())}

    def _norm(self, width: int) -> Normed:
        return Normed(normal(width, seed=width))

    def __call__(self, x: Doubles, angles: Doubles) -> Doubles:
        made, rows = self._products(), len(x)
        q = made["q"](self._norm(self.q_rank)(made["q_a"](x)) if self.q_rank else x).reshape(rows, self.heads, -1)
        kv = made["kv_a"](x)
        latent = self._norm(self.rank)(kv[:, : self.rank])
        turned = rotate(kv[:, None, self.rank :], angles)
        k_b = made["k_b"].weight.reshape(self.heads, self.rank, self.nope).astype(np.float64)
        v_b = made["v_b"].weight.reshape(self.heads, self.value_dim, self.rank).astype(np.float64)
        k = np.concatenate([np.einsum("tr,hrn->thn", latent, k_b), np.repeat(turned, self.heads, axis=1)], -1)
        return made["o"](attended(rotate(q, angles, self.nope), k, np.einsum("tr,hvr->thv", latent, v_b), self.scale))

    def made(self, around: Any, rotation: int = 0, target: str = "f32") -> Any:
        made = {name: product.made(target) for name, product in self._products().items()}
        return module.Latent(
            around, made.get("q_a"), *(made[name] for name in ("q", "kv_a", "k_b", "v_b", "o")),
            q_a_norm=self._norm(self.q_rank).made() if self.q_rank else None, kv_a_norm=self._norm(self.rank).made(),
            heads=self.heads, rank=self.rank, nope=self.nope, rope=self.rope, value_dim=self.value_dim, scale=self.scale, rotation=rotation,
        )  # fmt: skip
