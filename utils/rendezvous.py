"""How processes find each other: what a launcher says in their environment, the store, and the network interfaces.

torch's own TCP rendezvous listens on every interface, whatever address it is given; here rank 0 listens on the address of
the URL alone, and the connections between processes use the interface that leads there.
"""
from __future__ import annotations

import argparse
import datetime
import fcntl
import ipaddress
import os
import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from utils.cli import split_url
from utils.errors import AgreedError, InputError, PeerError

_GET_ADDRESS = 0x8915  # Linux, netdevice(7): SIOCGIFADDR
STORE_PORT = "port of the store of rank 0"
TORCHRUN = "TORCHELASTIC_RUN_ID"
# The number of processes that a launcher started -> the variables that torch's names stand for under it.
FOREIGN = {"SLURM_STEP_NUM_TASKS": "RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_STEP_NUM_TASKS LOCAL_RANK=$SLURM_LOCALID",
           "OMPI_COMM_WORLD_SIZE": "RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=$OMPI_COMM_WORLD_SIZE "
                                   "LOCAL_RANK=$OMPI_COMM_WORLD_LOCAL_RANK",
           "PMI_SIZE": "RANK=$PMI_RANK WORLD_SIZE=$PMI_SIZE LOCAL_RANK=$MPI_LOCALRANKID"}


class Ranks(NamedTuple):
    """This process among those that a launcher started; `local_rank` is None where the launcher does not give it."""

    rank: int
    world_size: int
    local_rank: int | None


def find_ranks(flags: argparse.Namespace) -> Ranks | None:
    """Returns what the environment says of this process, None where the launch flags alone determine its rank.

    InputError where several processes were started of which each would run alone, or where flags and environment
    contradict each other.
    """
    ranks, multi_node = read_ranks(), flags.num_nodes > 1
    if TORCHRUN in os.environ:
        return ranks
    if ranks is None:
        name, size = foreign_size()
        if size > max(1, flags.num_nodes):
            raise InputError(f"{name}={size}: {size} processes were started, of which each would run alone: set "
                             f"{FOREIGN[name]} and MASTER_ADDR, MASTER_PORT in each, or use torchrun (docs/operations.md)")
        return None
    if ranks.world_size == 1 or multi_node and (flags.num_nodes, flags.node_rank) == (ranks.world_size, ranks.rank):
        return None
    if multi_node or flags.multiprocessing_distributed:
        raise InputError(f"RANK={ranks.rank} WORLD_SIZE={ranks.world_size} in the environment: leave "
                         "--multiprocessing-distributed, --world-size and --rank out where these count processes; where "
                         "they count machines, pass them as --rank and --world-size too")
    if not flags.dist_url and not ("MASTER_ADDR" in os.environ and read_number("MASTER_PORT") is not None):
        raise InputError(f"WORLD_SIZE={ranks.world_size} in the environment, without MASTER_ADDR and MASTER_PORT: set them "
                         "to where rank 0 listens")
    return ranks


def read_ranks() -> Ranks | None:
    """Returns RANK, WORLD_SIZE and LOCAL_RANK, None where the first two are not set; InputError for impossible values."""
    rank, size, local_rank = map(read_number, ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None and size in (None, 1) or rank == 0 and size is None:
        return None
    if rank is None or size is None or rank >= size:
        raise InputError(f"RANK={os.environ.get('RANK', '')} WORLD_SIZE={os.environ.get('WORLD_SIZE', '')} in the "
                         "environment: must both be set, RANK below WORLD_SIZE, or neither")
    return Ranks(rank, size, local_rank)


def foreign_size() -> tuple[str, int]:
    """Returns (variable, number) of the most processes that a launcher other than torch's says it started."""
    return max(((name, read_number(name) or 1) for name in FOREIGN), key=lambda found: found[1])


def require_single_process() -> None:
    """Raises AgreedError in a program that runs in one process, if several were started."""
    name, size = foreign_size()
    ranks = read_ranks()
    if ranks:
        name, size = "WORLD_SIZE", ranks.world_size
    if size > 1:
        raise AgreedError(f"{name} {size}: this runs in a single process; start it once, without torchrun, srun or mpirun")


def read_number(name: str) -> int | None:
    """Returns the number in an environment variable, None where it is not set; InputError for anything else."""
    text = os.environ.get(name)
    if text and not text.isdecimal():
        raise InputError(f"{name}={text} in the environment: must be a number from 0")
    return int(text) if text else None


def open_store(url: str, rank: int, world_size: int, timeout: datetime.timedelta,
               listening: socket.socket | None = None) -> dist.TCPStore:
    """Returns the store at `url` (tcp://HOST:PORT), which rank 0 serves on the first address that HOST resolves to.

    `listening`: the socket that all processes of one machine inherited, served instead. InputError for an address that is
    taken or not of this machine; PeerError where the others do not connect in time.
    """
    place = "this machine" if listening else f"--dist-url {url}"
    try:
        if listening:
            family, address = listening.family, listening.getsockname()
            host = address[0]
        else:
            host, port = split_url(url)
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        keep_to_interface(family, address)
        if rank == 0:
            listening = listening or socket.create_server(address, family=family, backlog=max(128, world_size))
            return dist.TCPStore(*address[:2], world_size, is_master=True, timeout=timeout,
                                 master_listen_fd=listening.detach())
        if listening:
            listening.close()
        return dist.TCPStore(*address[:2], world_size, timeout=timeout)
    except OSError as error:
        raise InputError(f"{place}: {error.strerror or error}") from error
    except dist.DistError as error:
        here = "" if address[0] == host else f" ({address[0]} on this machine)"
        raise PeerError(f"{place}{here}: no process group: {str(error).splitlines()[0]}") from error


def environment_store(rank: int, world_size: int, timeout: datetime.timedelta) -> dist.Store:
    """Returns the store at MASTER_ADDR, MASTER_PORT of processes that torchrun or another launcher started.

    The store of torchrun's agents (its default) still holds the addresses of processes from before a restart, and the
    number of restarts differs between machines. So rank 0 opens another store, whose port it writes into the agents'.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return dist.TCPStore(host, port, world_size, is_master=rank == 0, timeout=timeout)
    agents = dist.TCPStore(host, port, timeout=timeout)
    if rank == 0:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        agents.set(STORE_PORT, str(store.port))
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        own_port = int(agents.get(STORE_PORT))
        try:  # it may still be the port from before the restart, where nobody answers (which torch would report at length)
            socket.create_connection((host, own_port), timeout=1).close()
            store = dist.TCPStore(host, own_port, timeout=datetime.timedelta(seconds=1))
            store.set_timeout(timeout)
            return store
        except (OSError, dist.DistError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def keep_to_interface(family: int, address: tuple) -> None:
    """Lets gloo and NCCL use the interface that leads to `address`, unless their environment variables name another."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # sends nothing: it only picks the route
        name = interface_of(probe.getsockname()[0])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without "=", all names with this prefix


def interface_of(address: str) -> str:
    """Returns the name of this machine's interface with the IP address `address`; OSError if there is none."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    if wanted.is_loopback:  # all of 127.0.0.0/8 and ::1, of which 127.0.0.1 names the interface
        wanted = ipaddress.ip_address("127.0.0.1")
    if wanted.version == 6:
        for number, *_, name in map(str.split, Path("/proc/net/if_inet6").read_text().splitlines()):
            if int(number, 16) == int(wanted):
                return name
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for _, name in socket.if_nameindex():
            try:
                request = fcntl.ioctl(control, _GET_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # an interface without an IPv4 address
                continue
            if ipaddress.ip_address(request[20:24]) == wanted:
                return name
    raise OSError(f"no interface of this machine has the address {address}")
