"""The same question has the same name, and every other question another."""

from __future__ import annotations

from dataclasses import replace

from shoal.placement.fingerprint import fingerprint
from shoal.placement.policy import Grid
from shoal.placement.workload import Workload
from tests.support.plans import GIB, moe, processor

WORK = Workload(128, 128, 8)


def test_the_same_question_has_the_same_name():
    assert fingerprint(moe(), processor(GIB), WORK) == fingerprint(moe(), processor(GIB), WORK)
    assert fingerprint(moe(), processor(GIB), WORK) == fingerprint(moe(), processor(GIB), WORK, Grid.of(8))
    assert len(fingerprint(moe(), processor(GIB), WORK)) == 64


def test_whatever_differs_gives_another():
    model, here = moe(), processor(GIB)
    experts = model.layers[0].experts
    assert experts is not None
    popular = replace(model, layers=(replace(model.layers[0], experts=replace(experts, popularity=(8 / 128,) * 128)), *model.layers[1:]))
    questions = [
        (model, here, WORK, None),
        (moe(layers=15), here, WORK, None),
        (popular, here, WORK, None),
        (replace(model, row_bytes=1), here, WORK, None),
        (model, processor(GIB + 1), WORK, None),
        (model, processor(GIB, disk=1e9), WORK, None),
        (model, here, replace(WORK, prompt=129), None),
        (model, here, replace(WORK, chunk=0), None),
        (model, here, WORK, Grid((1,), (1,))),
    ]
    assert len({fingerprint(*question) for question in questions}) == len(questions)
