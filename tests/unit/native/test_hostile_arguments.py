"""Blocks that do not fit together and steps that would read outside their arrays are refused, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.kernel_parts import ISAS, compiled, linear, module, normal, nothing_attended, nothing_fed_forward, packed
from tests.support.kernel_reference import Grouped, LatentQuery, Mlp, Product, Routed

pytestmark = compiled
HIDDEN = 64
OTHER = Product.random(48, 48, 1)
"""A matrix that fits nowhere."""


def around(**changes: Any) -> Any:
    return module.Around(**changes)


def short_norm(width: int = 48) -> Any:
    return module.Norm(np.ones(width, np.float32), 1e-5)


def grouped(at: int = -1, **changes: Any) -> Any:
    shapes = ((128, HIDDEN), (64, HIDDEN), (64, HIDDEN), (HIDDEN, 128))
    matrices = [OTHER.made() if i == at else Product.random(n, k, i).made() for i, (n, k) in enumerate(shapes)]
    return module.GroupedQuery(
        changes.pop("around", around()), *changes.pop("matrices", matrices),
        **{"q_heads": 4, "kv_heads": 2, "key_dim": 32, "value_dim": 32, "scale": 1.0, **changes},
    )  # fmt: skip


def latent(at: str = "", **changes: Any) -> Any:
    form = LatentQuery(q_rank=48)
    made = {name: product.made() for name, product in form._products().items()}
    if at:
        made[at] = OTHER.made()
    sizes = {"heads": 4, "rank": 32, "nope": 32, "rope": 16, "value_dim": 48, "scale": 1.0}
    norms = {"q_a_norm": short_norm(48), "kv_a_norm": short_norm(32)}
    return module.Latent(changes.pop("around", around()), *made.values(), **{**norms, **sizes, **changes})


def experts(**changes: Any) -> Any:
    one = Routed.random()
    given = {"router": one.router.made(), "experts": [expert.made() for expert in one.experts], "chosen": 2, **changes}
    return module.Experts(given.pop("around", around()), given.pop("router"), given.pop("experts"), **given)


def mlp(**changes: tuple[int, int]) -> Any:
    made: dict[str, tuple[int, int]] = {"gate": (32, HIDDEN), "up": (32, HIDDEN), "down": (HIDDEN, 32), **changes}
    return tuple(Product.random(n, k, 1).made() for n, k in made.values())


BLOCKS: dict[str, Callable[[], Any]] = {
    **{f"grouped: matrix {i}": lambda i=i: grouped(i) for i in range(4)},
    "grouped: a matrix is missing": lambda: grouped(matrices=[linear(normal(128, HIDDEN)), None, None, None]),
    "grouped: heads that do not divide": lambda: grouped(kv_heads=3),
    "grouped: no heads": lambda: grouped(q_heads=0),
    "grouped: no KV heads": lambda: grouped(kv_heads=0),
    "grouped: negative heads": lambda: grouped(q_heads=-4, kv_heads=-2),
    "grouped: another key": lambda: grouped(key_dim=24),
    "grouped: no key": lambda: grouped(key_dim=0),
    "grouped: another value": lambda: grouped(value_dim=24),
    "grouped: a value too wide": lambda: grouped(matrices=[None] * 4, value_dim=528),
    "grouped: a norm": lambda: grouped(q_norm=short_norm()),
    "grouped: a norm of all heads on keys": lambda: grouped(k_norm=short_norm(128)),
    "grouped: sinks": lambda: grouped(sinks=np.zeros(3, np.float32)),
    "grouped: a window": lambda: grouped(window=-1),
    "grouped: a rotation": lambda: grouped(rotation=-2),
    "grouped: more is rotated": lambda: grouped(rotated=34),
    "grouped: an odd number is rotated": lambda: grouped(rotated=15),
    "grouped: fewer than none": lambda: grouped(rotated=-2),
    "grouped: the norm before": lambda: grouped(around=around(before=short_norm())),
    "grouped: the norm after": lambda: grouped(around=around(after=short_norm())),
    **{f"latent: {name}": lambda name=name: latent(name) for name in ("q_a", "q", "kv_a", "k_b", "v_b", "o")},
    "latent: heads": lambda: latent(heads=5),
    "latent: no heads": lambda: latent(heads=0),
    "latent: rank": lambda: latent(rank=48),
    "latent: a rank too wide": lambda: latent(rank=544),
    "latent: rotated": lambda: latent(rope=24),
    "latent: not rotated": lambda: latent(nope=0),
    "latent: values": lambda: latent(value_dim=-16),
    "latent: the latent vectors' norm": lambda: latent(kv_a_norm=short_norm(48)),
    "latent: the queries' norm": lambda: latent(q_a_norm=short_norm(32)),
    "latent: no norm of the queries": lambda: latent(q_a_norm=None),
    "latent: the norm before": lambda: latent(around=around(before=short_norm())),
    "dense: gate": lambda: module.Dense(around(), mlp(gate=(48, HIDDEN))),
    "dense: up": lambda: module.Dense(around(), mlp(up=(32, 48))),
    "dense: down": lambda: module.Dense(around(), mlp(down=(48, 32))),
    "dense: another width": lambda: module.Dense(around(), mlp(gate=(24, HIDDEN), up=(24, HIDDEN), down=(HIDDEN, 24))),
    "dense: an activation": lambda: module.Dense(around(), mlp(), "relu"),
    "dense: the norm after": lambda: module.Dense(around(after=short_norm()), mlp()),
    "experts: none": lambda: experts(experts=[]),
    "experts: a router for fewer": lambda: experts(router=Product.random(7, HIDDEN, 1).made()),
    "experts: a router of other inputs": lambda: experts(router=Product.random(8, 48, 1).made()),
    "experts: a rounded router": lambda: experts(router=Product.random(8, HIDDEN, 1).made("q8")),
    "experts: one of another width": lambda: experts(experts=[Mlp.random(HIDDEN, w, 1).made() for w in (32,) * 7 + (48,)]),
    "experts: one of other inputs": lambda: experts(experts=[Mlp.random(h, 32, 1).made() for h in (HIDDEN,) * 7 + (48,)]),
    "experts: more chosen": lambda: experts(chosen=9),
    "experts: none chosen": lambda: experts(chosen=0),
    "experts: groups": lambda: experts(groups=3),
    "experts: no groups": lambda: experts(groups=0),
    "experts: more groups chosen": lambda: experts(groups=4, groups_chosen=5),
    "experts: no groups chosen": lambda: experts(groups=4, groups_chosen=0),
    "experts: more chosen than the groups have": lambda: experts(groups=8, groups_chosen=1),
    "experts: a bias": lambda: experts(selection_bias=np.zeros(7, np.float32)),
    "experts: an activation": lambda: experts(activation=""),
    "experts: a shared one of other inputs": lambda: experts(shared=Mlp.random(48, 32, 1).made()),
    "experts: a gate without a shared one": lambda: experts(shared_gate=Product.random(1, HIDDEN, 1).made()),
    "experts: a gate of two": lambda: experts(shared=Mlp.random(HIDDEN, 32, 1).made(), shared_gate=Product.random(2, HIDDEN, 1).made()),
    "experts: a rounded gate": lambda: experts(
        shared=Mlp.random(HIDDEN, 32, 1).made(), shared_gate=Product.random(1, HIDDEN, 1).made("q8")
    ),
    "experts: the norm before": lambda: experts(around=around(before=short_norm())),
    "linear: a bias": lambda: module.Linear(packed(normal(16, HIDDEN)), np.zeros(15, np.float32)),
    "norm: a bias": lambda: module.Norm(np.ones(HIDDEN, np.float32), 1e-5, np.zeros(48, np.float32)),
    "norm: empty": lambda: module.Norm(np.ones(0, np.float32), 1e-5),
    "head: its norm": lambda: module.Head(short_norm(), module.Linear(packed(normal(97, HIDDEN)))),
    "stage: an odd width": lambda: module.Stage(72, 1),
    "stage: no width": lambda: module.Stage(0, 1),
    "stage: no threads": lambda: module.Stage(HIDDEN, 0),
    "stage: an instruction set": lambda: module.Stage(HIDDEN, 1, "sse9"),
}


@pytest.mark.parametrize("what", BLOCKS)
def test_parts_that_do_not_fit(what: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        BLOCKS[what]()


def test_those_that_fit() -> None:
    """What the refused ones differ from."""
    assert grouped().nbytes > 0 and latent().nbytes > 0 and experts().nbytes > 0 and module.Dense(around(), mlp()).nbytes > 0


@pytest.mark.parametrize("make", [lambda: grouped(around=None), lambda: module.Dense(around(), (None,) * 3), lambda: experts(experts=None)])
def test_what_is_nothing(make: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        make()


# Steps

FORM = Grouped()


def step(**changes: Any) -> dict[str, Any]:
    """Two sequences of 3 and 2 rows, the second with a past of 40 tokens."""
    given: dict[str, Any] = {
        "hidden": normal(5, HIDDEN),
        "starts": np.array([0, 3, 5], np.int32),
        "positions": np.array([0, 40], np.int32),
        "tables": np.array([[2, -1], [0, 1]], np.int32),
        "rotations": [(normal(5, 16), normal(5, 16))],
        "attention": [FORM.made(around())],
        "feed_forward": [module.Dense(around(), mlp())],
        "pools": [np.zeros((3, 32 * sum(FORM.kept) * 4), np.uint8)],
        "kv_type": "fp32",
    }
    return {**given, **changes}


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


STEPS: dict[str, dict[str, Any]] = {
    "hidden of another width": {"hidden": normal(5, 48)},
    "starts that cover fewer rows": {"starts": ints(0, 3, 4)},
    "starts that cover more": {"starts": ints(0, 3, 6)},
    "starts from the middle": {"starts": ints(1, 3, 5)},
    "a sequence without rows": {"starts": ints(0, 5, 5)},
    "starts that fall": {"starts": ints(0, 6, 5)},
    "too few starts": {"starts": ints(0, 5)},
    "no sequence": {"starts": ints(0), "positions": ints(), "tables": np.zeros((0, 2), np.int32), "hidden": normal(0, HIDDEN)},
    "a negative position": {"positions": ints(-1, 40)},
    "a position beyond its table": {"positions": ints(0, 63)},
    "the largest position": {"positions": ints(0, 2**31 - 1)},
    "a table too few": {"tables": np.zeros((1, 2), np.int32)},
    "a block outside the pool": {"tables": np.array([[3, -1], [0, 1]], np.int32)},
    "a negative block": {"tables": np.array([[-1, -1], [0, 1]], np.int32)},
    "no rotation": {"rotations": []},
    "a rotation of another width": {"rotations": [(normal(5, 8), normal(5, 8))]},
    "a rotation of fewer rows": {"rotations": [(normal(4, 16), normal(4, 16))]},
    "sines of another shape": {"rotations": [(normal(5, 16), normal(5, 8))]},
    "no layers": {"attention": [], "feed_forward": [], "pools": []},
    "a part too few": {"feed_forward": []},
    "a pool too few": {"pools": []},
    "a pool of other blocks": {"pools": [np.zeros((3, 32 * sum(FORM.kept) * 2), np.uint8)]},
    "a pool of rounded blocks": {"kv_type": "bf16"},
    "a pool of blocks of 8 bits": {"kv_type": "q8"},
    "an unknown type of keys and values": {"kv_type": "q9"},
    "an attention of another width": {"attention": [nothing_attended(48)] if ISAS else []},
    "an attention without matrices": {"attention": [None]},
    "a feed-forward part of another width": {"feed_forward": [nothing_fed_forward(48)] if ISAS else []},
}


@pytest.mark.parametrize("what", STEPS)
def test_steps_that_cannot_be(what: str) -> None:
    given = step(**STEPS[what])
    if what == "an attention without matrices":
        given["attention"] = [grouped(matrices=[None] * 4, rotation=0, rotated=32)]
    with pytest.raises(ValueError, match=r"\w"):
        module.Stage(HIDDEN, 1).forward(*given.values())


def test_pools_of_different_numbers_of_blocks() -> None:
    one = step()
    twice = {name: one[name] * 2 for name in ("attention", "feed_forward")}
    pools = [np.zeros((blocks, 32 * sum(FORM.kept) * 4), np.uint8) for blocks in (3, 2)]
    with pytest.raises(ValueError, match="numbers of blocks"):
        module.Stage(HIDDEN, 1).forward(*step(**twice, pools=pools).values())


def test_the_step_that_the_others_differ_from() -> None:
    given = step()
    before = given["hidden"].copy()
    module.Stage(HIDDEN, 1).forward(*given.values())
    assert np.isfinite(given["hidden"]).all() and (given["hidden"] != before).any(-1).all()


@pytest.mark.parametrize(
    ("hidden", "picked", "out"),
    [((5, 48), [0], (1, 112)), ((5, 64), [5], (1, 112)), ((5, 64), [-1], (1, 112)), ((5, 64), [0], (2, 112)), ((5, 64), [0], (1, 97))],
)
def test_logits_that_cannot_be(hidden: tuple[int, int], picked: list[int], out: tuple[int, int]) -> None:
    head = module.Head(short_norm(HIDDEN), module.Linear(packed(normal(97, HIDDEN))))
    with pytest.raises(ValueError, match=r"\w"):
        module.Stage(HIDDEN, 1).logits(normal(*hidden), head, ints(*picked), np.empty(out, np.float32))


def test_a_head_of_another_width() -> None:
    head = module.Head(short_norm(48), module.Linear(packed(normal(97, 48))))
    with pytest.raises(ValueError, match="hidden"):
        module.Stage(HIDDEN, 1).logits(normal(5, HIDDEN), head, ints(0), np.empty((1, 112), np.float32))
