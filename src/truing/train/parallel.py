"""Several processes that train one model (torchrun): who they are, how they share work, and what they tell one another.

Every process takes a share of each batch and weighs its losses by the whole batch, so the *sum* of the processes'
gradients is the gradient that one process has. torch's DistributedDataParallel, and accelerate over it, average at
every backward of a module that was called through their wrapper; a step here runs twins of the body (a frozen trunk, a
top) over as many packs as the share has, which such a wrapper does not see. So gradients are summed once, after the
last pack, in ``Group.sum_gradients``. ``fsdp`` is torch's own ``fully_shard``.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from truing.models.compute import Compute, choose
from truing.runs import Run, config_dict
from truing.runs.facts import hash_data

T = TypeVar("T")
TIMEOUT = datetime.timedelta(hours=12)
"""Processes wait this long for one another: one may convert a model. A dead one is seen at once."""
BUCKET = 1 << 25
"""Numbers that are summed over the processes in one message."""
_LOST = ("closed by peer", "reset by peer", "broken pipe", "remote process", "timed out waiting", "nccl error")


class Group:
    """The processes of one training: one alone, unless torchrun started more.

    What is called of it is called by every process, in the same order. ``sharded``: weights, gradients and moments
    of what ``shard`` was given lie in parts in the processes.
    """

    def __init__(self, rank: int = 0, size: int = 1, sharded: bool = False) -> None:
        self.rank, self.size, self.sharded = rank, size, sharded

    @property
    def leads(self) -> bool:
        """True in the one process that writes and speaks."""
        return self.rank == 0

    # What they tell one another

    def same(self, value: T) -> T:
        """The leader's value, in every process."""
        if self.size == 1:
            return value
        box = [value if self.leads else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of rank, in every process."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        told = torch.tensor([int(flag)])
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told)

    def sum(self, numbers: Tensor) -> Tensor:
        """The same tensor, now the sum over the processes."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    # Shares of work

    def deal(self, items: Sequence[T]) -> list[T]:
        """This process's share of some work, as many items in every process: some are dealt twice where it must be."""
        rounds = math.ceil(len(items) / self.size)
        return [items[(i * self.size + self.rank) % len(items)] for i in range(rounds)]

    def most(self, count: int) -> int:
        """The largest of the processes' counts."""
        return max(self.gather(count))

    # Gradients

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every gradient the sum of the processes' gradients; a process that has none counts as zero.

        Gradients of sharded parameters are left alone: their backward has summed them.
        """
        if self.size == 1:
            return
        whole = [p for p in parameters if not isinstance(p, DTensor)]
        known = torch.tensor([int(p.grad is not None) for p in whole], dtype=torch.int32)
        dist.all_reduce(known, op=dist.ReduceOp.MAX)  # what no process has a gradient of stays without one
        for bucket in _buckets([p for p, some in zip(whole, known.tolist(), strict=True) if some]):
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
            dist.all_reduce(flat)
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = part.view_as(p)

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Clip gradients, sharded ones among them, to ``max_norm`` in all (0: do not clip); returns the norm before."""
        grads = [p.grad for p in parameters if p.grad is not None]
        sharded = [g.to_local() for g in grads if isinstance(g, DTensor)]
        whole = [g for g in grads if not isinstance(g, DTensor)]
        total = sum((g.double().square().sum().cpu() for g in sharded), torch.zeros((), dtype=torch.float64))
        norm = math.sqrt(float(self.sum(total)) + sum(float(g.double().square().sum()) for g in whole))
        if max_norm and norm > max_norm:
            for g in (*sharded, *whole):
                g.mul_(max_norm / (norm + 1e-6))
        return norm

    def align(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the leader's weights."""
        if self.size > 1:
            for p in parameters:
                if not isinstance(p, DTensor):
                    dist.broadcast(p.data, src=0)

    # Weights in parts

    def shard(self, body: nn.Module, layers: Iterable[nn.Module]) -> None:
        """Spread a body's parameters over the processes, layer by layer (FSDP2), if this group shards.

        From now on gradients are sums over the processes. Call it before the optimiser is made.
        """
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(next(body.parameters()).device.type, (self.size,))
        for module in (*layers, body):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
            assert isinstance(module, FSDPModule)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sums

    def whole(self, state: Any) -> Any:
        """A state with its sharded tensors put together in the leader's memory; other processes get empty ones."""
        if isinstance(state, DTensor):
            with torch.no_grad():
                full = state.full_tensor()
            return full.cpu() if self.leads else full.new_empty(0)
        if isinstance(state, Mapping):
            return {key: self.whole(value) for key, value in state.items()}
        if isinstance(state, (list, tuple)):
            return type(state)(self.whole(value) for value in state)
        return state


ALONE = Group()


def place(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as ``like`` lies: this process's part of it, if ``like`` is sharded."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        value = value.to(like.device)
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def place_moments(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's whole state as its parameters lie."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        i: {name: place(value, parameters[i]) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for i, entry in saved["state"].items()
    }
    return {**saved, "state": state}


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of parameters of one dtype and at most ``BUCKET`` numbers (or one parameter)."""
    bucket: list[nn.Parameter] = []
    for p in parameters:
        if bucket and (p.dtype != bucket[0].dtype or sum(q.numel() for q in bucket) + p.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket


# Meeting and parting


@contextmanager
def processes(mode: str = "ddp") -> Iterator[Group]:
    """The processes that torchrun started, or this one alone; only the leader's prints are shown inside.

    ``mode`` is ddp or fsdp. Raises ValueError where a process would train alone without knowing it, for fsdp in one
    process, and where another process is lost on the way.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        if mode == "fsdp":
            raise ValueError(
                "--parallel fsdp spreads a model over processes, and there is one. Start several with "
                "torchrun --nproc-per-node 2 -m truing …, or leave it out."
            )
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: each process would train alone. Start them "
            f"with torchrun --nproc-per-node {size} -m truing …, or unset WORLD_SIZE."
        )
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        atexit.register(_part)  # not sooner: torch cannot meet twice at one address
    try:
        group = _checked(Group(dist.get_rank(), dist.get_world_size(), mode == "fsdp"), size)
        with contextlib.nullcontext() if group.leads else _silence():
            yield group
    except RuntimeError as problem:
        if any(words in str(problem).lower() for words in _LOST):
            raise ValueError(
                "Another process of this training has ended, so this one ends too. What that one said stands above or "
                "below; the same command goes on from the last checkpoint."
            ) from problem
        raise


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _checked(group: Group, size: int) -> Group:
    """The group, if all processes that were started are in it."""
    ranks = group.gather(group.rank)
    if ranks != list(range(size)):
        raise ValueError(
            f"{size} processes were started, but {len(ranks)} met: each group would train alone. Start them all by "
            "one torchrun, with one --rdzv-endpoint where they are on several machines."
        )
    return group


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def group_for(group: Group) -> Group:
    """The group, unless several processes were started for work that knows of one: then ValueError."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if group.size != size:
        raise ValueError(
            f"WORLD_SIZE is {size}, and this command trains in one process: each would train alone. Start one process "
            "(without torchrun); `pm train` and `rlhf train` are what several can share."
        )
    return group


# The run they share


class Follower(Run):
    """The leader's run as the other processes see it: everything to read, nothing is written."""

    def log(self, step: int, **metrics: Any) -> None:
        """The leader writes it."""

    def truncate_metrics(self, step: int) -> None:
        """The leader does it."""

    def write_samples(self, rows: Iterable[Mapping[str, Any]], step: int | None = None) -> None:
        """The leader writes them."""

    def finish(self, numbers: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        """The leader does it."""

    def stop(self, numbers: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        """The leader does it."""


def open_run(
    group: Group,
    verb: str,
    config: Any,
    *,
    data_files: Sequence[str | Path] = (),
    data_hashes: Mapping[str, str] | None = None,
    slug: str = "",
) -> Run:
    """`Run.open` by the leader; the other processes get the same run to read.

    Raises ValueError in every process if they were given different options or data. Where the leader cannot open the
    run it raises, and the others end quietly.
    """
    given: dict[str, Any] = {"data_files": data_files, "data_hashes": data_hashes, "slug": slug}
    if group.size == 1:
        return Run.open(verb, config, **given)
    _refuse_different(group, {**config_dict(config), **hash_data(data_files), **(data_hashes or {})})
    run: Run | None = None
    failed: Exception | None = None
    if group.leads:
        try:
            run = Run.open(verb, config, **given)
        except Exception as problem:
            failed = problem
    told = group.same((str(run.path.absolute()), run.environment) if run else None)
    if failed is not None:
        raise failed
    if told is None:
        raise SystemExit(1)
    return run or Follower(Path(told[0]), verb, told[1])


def _refuse_different(group: Group, mine: dict[str, Any]) -> None:
    """Raise ValueError naming what differs between the processes' options and data."""
    for rank, theirs in enumerate(every := group.gather(mine)):
        odd = sorted(key for key in {*every[0], *theirs} if every[0].get(key) != theirs.get(key))
        if odd:
            shown = "; ".join(f"{key}: {every[0].get(key)!r} there, {theirs.get(key)!r} here" for key in odd[:3])
            raise ValueError(
                f"Processes 0 and {rank} were given different options or data ({shown}). Give all the same command and "
                "the same files."
            )


def compute_of(group: Group, run: Run, config: Any) -> Compute:
    """Device, dtype and threads: the leader chooses, the others follow; each process has a GPU, or its share of cores.

    Raises ValueError where there are fewer GPUs than processes on this machine.
    """
    if group.size == 1:
        return run.compute(config)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", group.size))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // here)
    if group.leads and not config.threads:
        config = dataclasses.replace(config, threads=share)
    chosen = run.compute(config) if group.leads else None
    facts = group.same((chosen.device.type, chosen.dtype, chosen.threads) if chosen else None)
    assert facts is not None
    kind, dtype, threads = facts
    if kind == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"{here} processes on this machine, which has {torch.cuda.device_count()} GPUs: each needs its own. "
                f"Use --nproc-per-node {torch.cuda.device_count()}, or --device cpu."
            )
        torch.cuda.set_device(local)
        kind = f"cuda:{local}"
    return choose(kind, dtype, min(threads, config.threads or share))  # a run begun alone may have chosen more
