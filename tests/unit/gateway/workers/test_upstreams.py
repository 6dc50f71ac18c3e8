"""What workers tell the head of upstreams."""

from __future__ import annotations

from shoal.gateway.upstream.hops import passed
from shoal.observed.models import UpstreamModel, UpstreamView
from tests.support.engine import FakeEngine
from tests.support.remote import Workers, run

URL = "http://one/v1"


def test_workers_count_at_the_head_and_are_one_server() -> None:
    view = UpstreamView(URL, "", [UpstreamModel("far", 100, ["shoal-0123456789ab"])])

    async def work(made: Workers) -> None:
        one, two = await made.join(), await made.join()
        one.observe_upstream(URL, "served", 0.1, 0.2, 11, 3)
        two.upstream_changed(view)
        await one.scrape()
        await two.scrape()
        assert fake.asked_elsewhere == [(URL, "served", 11, 3)] and fake.views == [view]
        assert one.server == two.server and passed([f"1.1 {one.server}"]) == [one.server]

    fake = FakeEngine()
    run(fake, work)
