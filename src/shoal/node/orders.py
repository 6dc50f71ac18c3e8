"""Orders to nodes: which layers to load, and which neighbours to connect to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice

from shoal.address import is_loopback, is_wildcard
from shoal.control import messages as control
from shoal.membership import events, instructions
from shoal.membership.member import Member
from shoal.models.manifest import Manifest
from shoal.native import BLOCK_TOKENS
from shoal.node.environment import Environment
from shoal.node.expert_tables import tables_of
from shoal.node.observer import Served
from shoal.node.packing import packing_of
from shoal.node.share import Share
from shoal.pipeline_id import PipelineId

_PEERS = 8  # most peers that a node is told to fetch from


def blocks_of(kv_tokens: int) -> int:
    """KV blocks for that many tokens."""
    return max(kv_tokens // BLOCK_TOKENS, 2)


class Orders:
    """port: where this head listens for links; set once it does. manifest: the model's files, if they are handed out."""

    def __init__(
        self,
        pipeline: PipelineId,
        host: str,
        model: Served,
        environment: Environment,
        share: Share,
        members: Mapping[int, Member],
        machines: Mapping[int, control.Join],
    ) -> None:
        """host: where this head listens. members, machines: the current nodes by number, and what they reported about themselves."""
        self.port = 0
        self.manifest: Manifest | None = model.manifest
        self._pipeline, self._host, self._model, self._environment, self._share = str(pipeline), host, model, environment, share
        self._members, self._machines = members, machines

    def load(self, order: instructions.LoadStage) -> control.Load:
        layers = range(order.first, order.end)
        head = [layers.stop] if layers.stop == len(self._model.cost.layers) else []
        load = self._load(order.node, order.epoch, layers, [*layers, *head] if order.weight_memory else [])
        load.stage, load.stages, load.blocks = order.stage, order.stages, blocks_of(order.kv_tokens)
        load.keep_first, load.keep_end = order.keep.start, order.keep.stop
        load.weight_memory = order.weight_memory
        load.absent = tables_of(order.absent, layers)
        load.asking, load.asking_per_row = order.asking
        for node, table in order.workers:
            joined = self._members[node].joined
            load.workers.append(
                control.ExpertWorker(name=joined.profile.name, host=joined.host, port=joined.tensor_port, experts=tables_of(table, layers))
            )
        return load

    def hold(self, order: instructions.HoldExperts) -> control.Load:
        wanted = [layer for layer, experts in enumerate(order.table) if experts]
        load = self._load(order.node, order.epoch, range(wanted[0], wanted[-1] + 1), wanted if order.streamed else [])
        load.experts, load.weight_memory = tables_of(order.table), order.memory
        return load

    def _load(self, node: int, epoch: int, layers: range, streamed: Collection[int]) -> control.Load:
        """What stages and workers are told alike. layers: of which they need the files. streamed: of which they need the packed files; the
        head's is the number of layers."""
        settings = self._model.engine
        load = control.Load(
            epoch=epoch,
            model=self._model.reference,
            first_layer=layers.start,
            end_layer=layers.stop,
            precision=str(settings.precision),
            kv_type=str(settings.kv_type),
            codec=str(settings.activations),
            layers=len(self._model.cost.layers),
            context=self._model.context,
            degrade=settings.degrade,
            pipeline=self._pipeline,
        )
        if self.manifest is not None:
            load.files.extend(control.ModelFile(name=f.name, size=f.size, sha256=f.sha256) for f in self.manifest.files)
            packing = packing_of((f.sha256 for f in self.manifest.files), load.precision)
            offers = {n: [f for f in self._machines[n].packed if f.packing == packing and f.layer in streamed] for n in self._others(node)}
            packed = {(f.layer, f.size, f.sha256): f for offered in offers.values() for f in offered}
            load.packed.extend(packed.values())
            load.offer = not is_loopback(self._host)
            places = {key: i for i, key in enumerate(packed)}
            held = {n: [places[f.layer, f.size, f.sha256] for f in offered] for n, offered in offers.items()}
            load.peers.extend(islice(self._peers(node, {f.sha256: i for i, f in enumerate(self.manifest.files)}, held), _PEERS))
        return load

    def _others(self, node: int) -> list[int]:
        """The nodes after it in a circle, so that each node starts with a different peer."""
        return sorted(self._members.keys() & self._machines.keys() - {node}, key=lambda n: (n < node, n))

    def _peers(self, node: int, indexes: Mapping[str, int], packed: Mapping[int, list[int]]) -> Iterator[control.Peer]:
        """Who can give a node which files, the head first. indexes: by hash. packed: by node, indexes of packed files."""
        members = self._members
        if own := [indexes[sha256] for sha256 in self._share.files if sha256 in indexes]:
            yield control.Peer(host=self.seen_by(members[node].joined), port=self.port, files=own, head=True)
        for other in self._others(node):
            shared = [indexes[sha256] for sha256 in self._machines[other].shared if sha256 in indexes]
            if shared or packed[other]:
                joined = members[other].joined
                yield control.Peer(host=joined.host, port=joined.tensor_port, files=shared, packed=packed[other])

    def link(self, order: instructions.LinkStage) -> control.Link:
        """To the stage after it; after the last stage, to the head's own address as that node sees it."""
        if order.next is not None:
            joined = self._members[order.next].joined
            host, port = joined.host, joined.tensor_port
        else:
            host, port = self.seen_by(self._members[order.node].joined), self.port
        return control.Link(epoch=order.epoch, host=host, port=port, pipeline=self._pipeline)

    def rest(self, order: instructions.RestStage) -> control.Rest:
        return control.Rest(epoch=order.epoch, pipeline=self._pipeline)

    def seen_by(self, joined: events.Joined) -> str:
        return seen_by(self._host, joined, self._environment)


def seen_by(host: str, joined: events.Joined, environment: Environment) -> str:
    """The head's address as a node sees it. host: where the head listens."""
    return environment.facing(joined.host, joined.tensor_port) if is_wildcard(host) else host
