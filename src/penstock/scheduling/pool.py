"""What is free, by node, indexed so that a search costs a few bit operations.

A set of nodes is an int used as a bitmask (bit i = the i-th node ever put). Nodes lie in levels by their number of free
whole GPUs, each level such a mask, so "the first node with the fewest sufficient free GPUs" is: from level k upward,
the lowest set bit. Searching changes nothing; ``take`` and ``give`` do, and what-ifs are undone to a ``mark``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import or_

from penstock.scheduling.booking import Placed
from penstock.scheduling.masks import bits
from penstock.scheduling.models import any_means
from penstock.scheduling.possible import capacity, could_place
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Share, Workload
from penstock.scheduling.topology import Domains

__all__ = ["EPSILON", "WHOLE", "Placed", "Pool", "Scorer", "bits"]

EPSILON = 1e-9  # shares of a core are floats: 10 x 0.1 must fit on one core
WHOLE = 1000  # thousandths of a GPU
Scorer = Callable[["Pool", Ask, int], Share | None]


class Pool:
    """Capacity less what is held. Not over-committed by construction: ``take`` refuses what is not free."""

    def __init__(self, *, first_fit: bool = False, scorer: Scorer | None = None) -> None:
        self.first_fit = first_fit  # the first node that fits, instead of the fullest
        self.scorer = scorer  # where `find` is given none
        self.nodes: list[NodeState | None] = []
        self.free_cpus: list[float] = []
        self.free_memory: list[int] = []
        self.free_bits: list[int] = []  # whole GPUs that nobody uses, by position
        self.levels: list[int] = [0]  # by number of free whole GPUs: mask of nodes
        self.open = 0  # nodes that take new work
        self.fleet = 0  # every node that is there, closed ones too
        self.frees = 0  # grows whenever capacity may have appeared
        self.domains = Domains()
        self.held: dict[str, list[Placed]] = {}
        self._index: dict[str, int] = {}
        self._models: dict[str, int] = {}
        self._flavors: dict[str, int] = {}
        self._used_milli: dict[int, dict[int, int]] = {}  # node -> GPU position -> thousandths in use
        self._used_mig: dict[int, set[tuple[int, int]]] = {}
        self._mig: dict[str, int] = {}  # profile -> nodes that have such instances
        self._kinds: dict[tuple[Gpu, ...], int] = {}  # distinct sets of GPUs, numbered: most nodes of a fleet share one
        self._kind: list[int] = []  # of each node
        self._ids: list[dict[tuple[str, ...], int]] = []  # by kind: GPU ids -> bits
        self._of_models: dict[tuple[int, tuple[str, ...]], int] = {}  # (kind, models) -> GPUs, as bits
        self._picks: dict[tuple[int, int, int], tuple[str, ...]] = {}  # (kind, free bits, how many) -> GPU ids
        self._on: list[set[str]] = []
        self._idle = 0  # nodes on which nothing is held
        self.alike: dict[tuple[object, ...], int] = {}  # by capacity, ids of GPUs aside: nodes of it
        self._log: list[tuple[bool, str, list[Placed]]] | None = None

    # -- nodes

    def index(self, name: str) -> int:
        return self._index[name]

    def node_mask(self, names: Iterable[str]) -> int:
        return sum(1 << self._index[name] for name in set(names) if name in self._index)

    def put(self, node: NodeState) -> None:
        """Add or replace a node; what is held on it stays held."""
        i = self._index.get(node.name)
        if i is None:
            i = self._index[node.name] = len(self.nodes)
            self.nodes.append(None)
            self.free_cpus.append(0.0)
            self.free_memory.append(0)
            self.free_bits.append(0)
            self._on.append(set())
            self._kind.append(0)
        elif self.nodes[i] is not None:
            self._unlist(i)
        self.nodes[i] = node
        self._kind[i] = self._kinds.setdefault(node.gpus, len(self._kinds))
        if len(self._ids) < len(self._kinds):
            self._ids.append({})
        self.free_cpus[i], self.free_memory[i] = node.cpus, node.memory
        self.free_bits[i] = sum(1 << at for at, gpu in enumerate(node.gpus) if not gpu.mig)
        self._used_milli.pop(i, None)
        self._used_mig.pop(i, None)
        bit = 1 << i
        self._level(len(node.gpus))
        self.levels[self.free_bits[i].bit_count()] |= bit
        self.fleet |= bit
        self.open = self.open | bit if node.open else self.open & ~bit
        for gpu in node.gpus:
            self._models[gpu.model] = self._models.get(gpu.model, 0) | bit
            for profile in gpu.mig:
                self._mig[profile] = self._mig.get(profile, 0) | bit
        self._flavors[node.flavor] = self._flavors.get(node.flavor, 0) | bit
        self.domains.add(node.topology, bit)
        alike = capacity(node)
        self.alike[alike] = self.alike.get(alike, 0) | bit
        if not self._on[i]:
            self._idle |= bit
        for held in list(self._on[i]):
            for placed in self.held[held]:
                if placed.index == i:
                    self._book(self._fresh(placed.share, i))
        self.frees += 1

    def drop(self, name: str) -> None:
        """The node is gone. What is held on it is still known, and frees nothing when it is given back."""
        i = self._index.get(name)
        if i is None or self.nodes[i] is None:
            return
        self._unlist(i)
        self.nodes[i] = None
        self.free_bits[i] = 0

    def _unlist(self, i: int) -> None:
        bit = 1 << i
        for masks in (self._models, self._flavors, self._mig):
            for key in masks:
                masks[key] &= ~bit
        self.levels = [mask & ~bit for mask in self.levels]
        self.open &= ~bit
        self.fleet &= ~bit
        node = self.nodes[i]
        if node is not None:
            self.domains.remove(node.topology, bit)
            self.alike[capacity(node)] &= ~bit

    def _level(self, count: int) -> None:
        while len(self.levels) <= count:
            self.levels.append(0)

    def states(self) -> Iterator[NodeState]:
        return (node for node in self.nodes if node is not None)

    def state(self, name: str) -> NodeState | None:
        i = self._index.get(name)
        return None if i is None else self.nodes[i]

    def takes(self, name: str) -> bool:
        """Whether the node is there and takes new work."""
        return bool(self.open >> self._index[name] & 1)

    def flavor_mask(self, flavor: str) -> int:
        return self._flavors.get(flavor, 0)

    def known(self) -> dict[str, list[str]]:
        """The flavors, GPU models and MIG profiles that the fleet's nodes have."""
        kinds = {"flavor": self._flavors, "model": self._models, "mig": self._mig}
        return {kind: sorted(name for name, mask in masks.items() if mask) for kind, masks in kinds.items()}

    # -- search

    def candidates(self, w: Workload, within: int | None = None) -> int:
        """Open nodes that this workload may have at all."""
        mask = self.open if within is None else self.open & within
        if w.flavors:
            allowed = 0
            for flavor in w.flavors:
                allowed |= self._flavors.get(flavor, 0)
            mask &= allowed
        if w.exclude:
            mask &= ~self.node_mask(w.exclude)
        return mask

    def find(self, w: Workload, *, within: int | None = None, scorer: Scorer | None = None) -> tuple[Share, ...] | None:
        """A place for every group, or None. Flavors are tried in the workload's order, domains as its topology says."""
        scorer = scorer or self.scorer
        if not w.flavors and w.topology is None and not w.exclude:
            return self._gang(w.parts, self.open if within is None else self.open & within, scorer)
        for flavor in w.flavors or ("",):
            mask = self.candidates(w, within)
            if flavor:
                mask &= self._flavors.get(flavor, 0)
            found = self._in_domains(w, mask, scorer)
            if found is not None:
                return found
        return None

    def _in_domains(self, w: Workload, mask: int, scorer: Scorer | None) -> tuple[Share, ...] | None:
        if w.topology is None:
            return self._gang(w.parts, mask, scorer)
        for domains in self.domains.climb(w.topology, mask):
            best: tuple[int, tuple[Share, ...]] | None = None
            for domain in domains:
                left = self.free_gpus(domain)
                if best is not None and left >= best[0]:
                    continue  # a fuller one that fits is known
                found = self._gang(w.parts, domain, scorer)
                if found is not None:
                    best = (left, found)
            if best is not None:
                return best[1]
        return None

    def free_gpus(self, mask: int) -> int:
        """Whole GPUs free on these nodes."""
        return sum(count * (self.levels[count] & mask).bit_count() for count in range(1, len(self.levels)))

    def _gang(self, parts: Sequence[Part], mask: int, scorer: Scorer | None) -> tuple[Share, ...] | None:
        shares: list[Share] = []
        for part in parts:
            ask = part.ask
            if part.count > 1 and not ask.mig and self.with_free(ask.gpus, mask).bit_count() < part.count:
                return None
            simple = scorer is None and not (ask.cpus or ask.memory or ask.gpu_milli or ask.mig or ask.gpu_models)
            for _ in range(part.count):
                found = self._first(ask, mask) if simple else self._best(ask, mask, scorer)
                if found is None:
                    return None
                shares.append(found[1])
                mask &= ~(1 << found[0])  # each group on a node of its own
        return tuple(shares)

    def with_free(self, gpus: int, mask: int) -> int:
        """Of these nodes, those with at least so many free whole GPUs."""
        return mask & reduce(or_, self.levels[gpus:], 0) if gpus else mask

    def _first(self, ask: Ask, mask: int) -> tuple[int, Share] | None:
        """Fewest sufficient free GPUs, then the first node."""
        gpus = ask.gpus
        levels = self.levels
        if self.first_fit and len(levels) > gpus:
            levels = [reduce(or_, levels[gpus:], 0)]
            gpus = 0
        for level in range(gpus, len(levels)):
            hit = levels[level] & mask
            if hit:
                i = (hit & -hit).bit_length() - 1
                return i, Share(self.nodes[i].name, ask, self._pick(i, ask.gpus))  # type: ignore[union-attr]  # listed: there
        return None

    def _best(self, ask: Ask, mask: int, scorer: Scorer | None) -> tuple[int, Share] | None:
        """Fewest sufficient free GPUs, then the least free cores and memory, then the first; or what the scorer says."""
        mask = self.narrow(ask, mask)
        if scorer is not None:
            return self._by_score(ask, mask, scorer)
        if ask.gpu_milli:
            return self._best_share(ask, mask)
        for level in range(0 if ask.mig else ask.gpus, len(self.levels)):
            best: tuple[float, int, int] | None = None
            for i in bits(self._one_of_each(self.levels[level] & mask)):
                if self.fits(ask, i):
                    key = (self.free_cpus[i], self.free_memory[i], i)
                    if best is None or key < best:
                        best = key
            if best is not None:
                return best[2], self.share(ask, best[2])
        return None

    def _by_score(self, ask: Ask, mask: int, scorer: Scorer) -> tuple[int, Share] | None:
        """The scorer sees each node that fits and answers a share and, by its order, how good it is."""
        best: tuple[float, int, Share] | None = None
        for i in bits(mask):
            if self.fits(ask, i):
                share = scorer(self, ask, i)
                if share is not None:
                    key = (getattr(scorer, "last", 0.0), i, share)
                    if best is None or key[:2] < best[:2]:
                        best = key
        return None if best is None else (best[1], best[2])

    def _one_of_each(self, mask: int) -> int:
        """Of nodes that nobody uses and that are alike, the first alone: a search of an empty fleet stays short."""
        idle = mask & self._idle
        if not idle & (idle - 1):
            return mask
        mask ^= idle
        for alike in self.alike.values():
            hit = idle & alike
            mask |= hit & -hit
        return mask

    def _best_share(self, ask: Ask, mask: int) -> tuple[int, Share] | None:
        """A GPU in use with the least room that suffices; else a whole one, on the fullest node."""
        best: tuple[int, int] | None = None
        for i, used in self._used_milli.items():
            if mask >> i & 1 and self._holds_rest(ask, i):
                gpus = self.nodes[i].gpus  # type: ignore[union-attr]  # listed: there
                room = min(
                    (
                        WHOLE - u
                        for at, u in used.items()
                        if WHOLE - u >= ask.gpu_milli and self._model_ok(ask, gpus[at])
                    ),
                    default=None,
                )
                if room is not None and (best is None or (room, i) < best):
                    best = (room, i)
        if best is not None:
            return best[1], self.share(ask, best[1])
        for level in range(1, len(self.levels)):
            for i in bits(self.levels[level] & mask):
                if self._holds_rest(ask, i) and self._suitable(ask, i):
                    return i, self.share(ask, i)
        return None

    def narrow(self, ask: Ask, mask: int) -> int:
        """Nodes that have the ask's kind of device at all."""
        if ask.gpu_models:
            mask &= reduce(or_, (on for model, on in self._models.items() if any_means(ask.gpu_models, model)), 0)
        if ask.mig:
            mask &= self._mig.get(ask.mig, 0)
        return mask

    def fits(self, ask: Ask, i: int) -> bool:
        node = self.nodes[i]
        if node is None or not self._holds_rest(ask, i):
            return False
        if ask.mig:
            return len(self._free_instances(ask.mig, i)) >= max(ask.gpus, 1)
        if ask.gpu_milli:
            used = self._used_milli.get(i, {})
            return bool(self._suitable(ask, i)) or any(
                WHOLE - u >= ask.gpu_milli and self._model_ok(ask, node.gpus[at]) for at, u in used.items()
            )
        return self._suitable(ask, i).bit_count() >= ask.gpus

    def fits_empty(self, ask: Ask, node: NodeState) -> bool:
        """Whether the node could hold such a group if nobody used it."""
        if node.cpus + EPSILON < ask.cpus or node.memory < ask.memory:
            return False
        if ask.mig:
            return sum(gpu.mig.count(ask.mig) for gpu in node.gpus) >= max(ask.gpus, 1)
        need = 1 if ask.gpu_milli else ask.gpus
        return sum(1 for gpu in node.gpus if not gpu.mig and self._model_ok(ask, gpu)) >= need

    def could_place(self, w: Workload, within: int | None = None) -> bool:
        """Whether the nodes, closed ones included, hold it when empty; required topology included."""
        return could_place(self, w, within)

    def _holds_rest(self, ask: Ask, i: int) -> bool:
        return self.free_cpus[i] + EPSILON >= ask.cpus and self.free_memory[i] >= ask.memory

    @staticmethod
    def _model_ok(ask: Ask, gpu: Gpu) -> bool:
        return not ask.gpu_models or any_means(ask.gpu_models, gpu.model)

    def _suitable(self, ask: Ask, i: int) -> int:
        """Free whole GPUs of an allowed model, as bits."""
        free = self.free_bits[i]
        return free & self.model_bits(ask, i) if ask.gpu_models else free

    def _free_instances(self, profile: str, i: int) -> list[tuple[int, int]]:
        node = self.nodes[i]
        used = self._used_mig.get(i, set())
        if node is None:
            return []
        return [
            (at, n)
            for at, gpu in enumerate(node.gpus)
            for n, name in enumerate(gpu.mig)
            if name == profile and (at, n) not in used
        ]

    def model_bits(self, ask: Ask, i: int) -> int:
        """The node's GPUs that the ask may have by their model, as bits."""
        node = self.nodes[i]
        if node is None:
            return 0
        key = (self._kind[i], ask.gpu_models)
        found = self._of_models.get(key)
        if found is None:
            allowed = [at for at, gpu in enumerate(node.gpus) if not gpu.mig and self._model_ok(ask, gpu)]
            found = self._of_models[key] = sum(1 << at for at in allowed)
        return found

    def devices(self, ask: Ask, i: int) -> int:
        """How many devices of the ask's class are free on the node: MIG instances, or whole GPUs of its models."""
        return len(self._free_instances(ask.mig, i)) if ask.mig else self._suitable(ask, i).bit_count()

    def free_milli(self, i: int) -> tuple[int, ...]:
        """Thousandths free on each GPU of node ``i``, in its order; one that is cut into MIG instances has none."""
        node = self.nodes[i]
        used = self._used_milli.get(i, {})
        free = self.free_bits[i]
        gpus = () if node is None else node.gpus
        return tuple(WHOLE if free >> at & 1 else WHOLE - used[at] if at in used else 0 for at in range(len(gpus)))

    def share(self, ask: Ask, i: int, *, at: int | None = None) -> Share:
        """A share of node ``i``, which fits: the first suitable GPUs, or the fullest that still has the thousandths.

        ``at``: the position of the one GPU that it shall be a share of.
        """
        node = self.nodes[i]
        assert node is not None
        if ask.mig:
            instances = self._free_instances(ask.mig, i)[: max(ask.gpus, 1)]
            return Share(node.name, ask, tuple(f"{node.gpus[at].id}:{n}" for at, n in instances))
        if ask.gpu_milli:
            if at is None:
                used = self._used_milli.get(i, {})
                open_ = [
                    (WHOLE - u, gpu)
                    for gpu, u in used.items()
                    if WHOLE - u >= ask.gpu_milli and self._model_ok(ask, node.gpus[gpu])
                ]
                at = min(open_)[1] if open_ else next(bits(self._suitable(ask, i)))
            return Share(node.name, ask, (node.gpus[at].id,))
        if ask.gpu_models:
            found = list(bits(self._suitable(ask, i)))[: ask.gpus]
            return Share(node.name, ask, tuple(node.gpus[gpu].id for gpu in found))
        return Share(node.name, ask, self._pick(i, ask.gpus))

    def _pick(self, i: int, gpus: int) -> tuple[str, ...]:
        """Ids of the first free whole GPUs."""
        if not gpus:
            return ()
        node = self.nodes[i]
        assert node is not None
        key = (self._kind[i], self.free_bits[i], gpus)
        found = self._picks.get(key)
        if found is None:
            chosen = list(bits(self.free_bits[i]))[:gpus]
            found = tuple(node.gpus[at].id for at in chosen)
            if len(self._picks) > 1 << 16:
                self._picks.clear()
            self._picks[key] = found
        return found

    # -- hold and free

    def take(self, id: str, shares: Sequence[Share]) -> None:  # noqa: A002 - the word of every other place here
        """Hold these shares for ``id``. Raises ValueError where one is not free: the caller planned on another state."""
        if len(shares) == 1 and self._take_plain(id, shares[0]):
            return
        placed = [self._place(share) for share in shares]
        self._take(id, placed)
        if self._log is not None:
            self._log.append((True, id, placed))

    def _take_plain(self, id: str, share: Share) -> bool:  # noqa: A002 - the word of every other place here
        """The commonest case in one step: whole GPUs of one node and nothing else."""
        ask = share.ask
        i = self._index[share.node]
        if ask.cpus or ask.memory or ask.gpu_milli or ask.mig or self._log is not None or id in self.held:
            return False
        wanted = self._ids[self._kind[i]].get(share.gpus)
        if wanted is None or self.nodes[i] is None or wanted & ~self.free_bits[i]:
            return False
        self._set_free(i, self.free_bits[i] & ~wanted)
        self._enter(i, id)
        self.held[id] = [Placed(share, i, wanted)]
        return True

    def _take(self, id: str, placed: list[Placed]) -> None:  # noqa: A002 - the word of every other place here
        for one in placed:
            self._book(one)
            self._enter(one.index, id)
        self.held.setdefault(id, []).extend(placed)

    def _place(self, share: Share) -> Placed:
        i = self._index[share.node]
        if self.nodes[i] is None:
            return Placed(share, i)
        placed = self._fresh(share, i)
        ask = share.ask
        if placed.bits & ~self.free_bits[i] or not self._holds_rest(ask, i):
            raise ValueError(f"{share.node} has not {share.gpus or ask} free")
        return placed

    def _fresh(self, share: Share, i: int) -> Placed:
        """Where a share's GPUs are on the node as it is now; ids that it has no more are passed over."""
        node = self.nodes[i]
        ask = share.ask
        if node is None or not share.gpus:
            return Placed(share, i)
        known = self._ids[self._kind[i]]
        if ask.mig:
            names = {f"{gpu.id}:{n}": (at, n) for at, gpu in enumerate(node.gpus) for n in range(len(gpu.mig))}
            return Placed(share, i, instances=tuple(names[name] for name in share.gpus if name in names))
        found = known.get(share.gpus)
        if found is None:
            at_of = {gpu.id: at for at, gpu in enumerate(node.gpus)}
            found = known[share.gpus] = sum(1 << at_of[name] for name in share.gpus if name in at_of)
        if ask.gpu_milli:
            return Placed(share, i, shared=found.bit_length() - 1)
        return Placed(share, i, found)

    def _book(self, one: Placed) -> None:
        i, ask = one.index, one.share.ask
        if self.nodes[i] is None:
            return
        if ask.cpus:
            self.free_cpus[i] -= ask.cpus
        if ask.memory:
            self.free_memory[i] -= ask.memory
        if one.bits:
            self._set_free(i, self.free_bits[i] & ~one.bits)
        elif one.shared >= 0:
            used = self._used_milli.setdefault(i, {})
            used[one.shared] = used.get(one.shared, 0) + ask.gpu_milli
            self._set_free(i, self.free_bits[i] & ~(1 << one.shared))
        elif one.instances:
            self._used_mig.setdefault(i, set()).update(one.instances)

    def _unbook(self, one: Placed) -> None:
        i, ask = one.index, one.share.ask
        if self.nodes[i] is None:
            return
        if ask.cpus:
            self.free_cpus[i] += ask.cpus
        if ask.memory:
            self.free_memory[i] += ask.memory
        if one.bits:
            self._set_free(i, self.free_bits[i] | one.bits)
        elif one.shared >= 0:
            used = self._used_milli[i]
            used[one.shared] -= ask.gpu_milli
            if used[one.shared] <= 0:
                del used[one.shared]
                if not used:
                    del self._used_milli[i]
                self._set_free(i, self.free_bits[i] | 1 << one.shared)
        elif one.instances:
            self._used_mig[i].difference_update(one.instances)

    def _enter(self, i: int, id_: str) -> None:
        on = self._on[i]
        if not on:
            self._idle &= ~(1 << i)
        on.add(id_)

    def _leave(self, i: int, id_: str) -> None:
        """The last to leave also takes with it what adding and subtracting floats has left."""
        on = self._on[i]
        on.discard(id_)
        if not on:
            self._idle |= 1 << i
            node = self.nodes[i]
            if node is not None:
                self.free_cpus[i] = node.cpus

    def _set_free(self, i: int, free: int) -> None:
        before, after = self.free_bits[i].bit_count(), free.bit_count()
        self.free_bits[i] = free
        if before != after:
            bit = 1 << i
            self.levels[before] ^= bit
            self.levels[after] |= bit

    def give(self, id: str) -> tuple[Share, ...]:  # noqa: A002 - the word of every other place here
        """Free what ``id`` holds; empty when it holds nothing."""
        placed = self.held.pop(id, None)
        if placed is None:
            return ()
        for one in placed:
            self._unbook(one)
            self._leave(one.index, id)
        self.frees += 1
        if self._log is not None:
            self._log.append((False, id, placed))
        return tuple(one.share for one in placed)

    # -- what-if

    @contextmanager
    def what_if(self) -> Iterator[None]:
        """Whatever is taken and given inside is undone at the end."""
        outermost = self._log is None
        if self._log is None:
            self._log = []
        mark, frees = len(self._log), self.frees
        try:
            yield
        finally:
            self.undo(mark)
            self.frees = frees
            if outermost:
                self._log = None

    def mark(self) -> int:
        """Inside a what-if: where ``undo`` may go back to."""
        return len(self._log or ())

    def undo(self, mark: int) -> None:
        """Reverse every take and give since the mark, the last first."""
        log = self._log
        assert log is not None, "undo outside of a what-if"
        while len(log) > mark:
            took, id_, placed = log.pop()
            if not took:
                self._take(id_, placed)
                continue
            for one in placed:
                self._unbook(one)
                self._leave(one.index, id_)
            rest = self.held.pop(id_)[: -len(placed)] if placed else []
            if rest:
                self.held[id_] = rest
