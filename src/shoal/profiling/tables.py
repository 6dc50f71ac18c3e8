"""A profile in words and numbers, for people: rows with the same columns, for a terminal and for a page."""

from __future__ import annotations

from shoal.profiling.profile import Profile
from shoal.profiling.slices import Track, track_name
from shoal.sizes import human_bytes

Row = dict[str, str]

_PARTS = ("attention", "feed-forward", "experts", "waiting", "head", "other")

TITLES = {
    "parts": "Where the time of a step goes",
    "stages": "What each stage did",
    "computing": "What computing is made of",
    "limits": "Computing, and what the machine allows",
    "links": "Links",
    "changes": "What would help, by prediction",
}


def summary(profile: Profile) -> str:
    rate = f"{profile.tokens_per_second:.1f} tokens/s measured"
    predicted = f", {profile.predicted:.1f} predicted for decoding alone" if profile.predicted else ""
    streams = f"{profile.streams} stream{'s' if profile.streams != 1 else ''}"
    return f"{rate}{predicted}; {streams}, {profile.tokens} tokens in {profile.steps} steps, {profile.wall:.1f} s"


def tables(profile: Profile) -> dict[str, list[Row]]:
    """By name, as in TITLES; empty where nothing is known."""
    count, wall = max(profile.steps, 1), profile.wall or 1.0
    return {
        "parts": [
            {
                "where": track_name(Track(one.track, one.index), profile.nodes),
                "part": one.part,
                "a step": _ms(one.seconds / count),
                "share": f"{one.share:.1%}",
            }
            for one in profile.parts
            if one.seconds
        ],
        "stages": [
            {
                "stage": one.node,
                "busy": f"{one.busy / wall:.1%}",
                "bubbles": f"{one.bubble / wall:.1%}",
                "idle": f"{one.idle / wall:.1%}",
                "computing": f"{one.compute / wall:.1%}",
                "a step waits": _ms(one.wait / count),
            }
            for one in profile.stages
        ],
        "computing": [
            {
                "stage": one.node,
                "steps": one.kind,
                "a step": _ms(one.compute / one.steps),
                **{part: f"{one.parts[part] / one.compute:.1%}" if part in one.parts else "-" for part in _PARTS},
                "how": "measured" if one.counted else "estimated",
            }
            for one in profile.computing
        ],
        "limits": [
            {
                "stage": one.node,
                "steps": one.kind,
                "computed": _ms(one.compute / one.steps),
                "memory limit": _ms(one.memory / one.steps),
                "arithmetic limit": _ms(one.arithmetic / one.steps),
                "reached": f"{one.reached:.0%} of {one.bound}",
            }
            for one in profile.limits
        ],
        "links": [
            {"link": one.name, "takes": _ms(one.seconds), "a token": human_bytes(one.bytes_per_token) if one.bytes_per_token else "-"}
            for one in profile.links
        ],
        "changes": [
            {"change": one.change, "tokens/s": "-" if one.why else f"{one.predicted:.1f}", "gain": one.why or f"{one.gain:+.0%}"}
            for one in profile.changes
        ],
    }


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"
