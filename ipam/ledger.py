"""What memory knows of one pool: its leases, and the addresses under way to or from the store.

All is plain code without a wait, so that each method is one moment for every task. An address counts as taken
from the moment when its claim begins until the moment when the store has dropped it; in between nobody else
can get it.
"""

from collections import OrderedDict
from itertools import islice

from .errors import IpamError, Kind
from .lease import IPAddress, Lease, OwnerKind
from .picker import Picker
from .pool import Pool, Usage


class Ledger:
    """The leases of `pool`; addresses are picked from the fraction `start` of it on.

    Attributes:
        pool: as it is now, or will be when the store has saved it.
        closing: the store is deleting it.
        unreplayed: holds from before dockerd's restart that it has not taken again.
    """

    def __init__(self, pool: Pool, start: float) -> None:
        self.pool = pool
        self.closing = False
        self.unreplayed = 0
        self.picker = Picker(*pool.window, start)
        self._leases: dict[int, Lease] = {}
        self._claiming: dict[int, Lease] = {}
        self._releasing: set[int] = set()
        self._replay: set[int] = set()
        self._elsewhere: OrderedDict[int, None] = OrderedDict()

    def begin_session(self) -> None:
        """Let holds and leases be requested once more (see `Allocator.begin_session`)."""
        self.unreplayed = self.pool.holds
        self._replay = set(self._leases) - self._releasing if self.pool.holds else set()

    def get(self, address: IPAddress) -> Lease | None:
        if address.version != self.pool.network.version:
            return None
        return self._leases.get(int(address))

    def leases(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def usage(self) -> Usage:
        return Usage(self.picker.size, self.picker.size - self.picker.taken, len(self._leases))

    def confirm(self, address: IPAddress) -> Lease | None:
        """Return the lease that this request repeats after dockerd's restart, the first time."""
        number = int(address)
        if number not in self._replay or number in self._releasing:
            return None
        self._replay.remove(number)
        return self._leases[number]

    def forgotten(self) -> list[Lease]:
        """End the replay, and return the pending leases that it did not repeat."""
        missed, self._replay = self._replay, set()
        return [lease for number in missed if (lease := self._leases[number]).owner.kind is OwnerKind.PENDING]

    def check_free(self, address: IPAddress) -> None:
        """Check that nobody here has the address.

        Raises:
            IpamError: unavailable: somebody has.
        """
        number = int(address)
        holder = self._leases.get(number) or self._claiming.get(number)
        if holder is not None:
            raise IpamError(
                Kind.UNAVAILABLE,
                f"address {address} of pool {self.pool.network} is leased to {holder.owner}",
                hint="choose another address, or none",
            )

    def elsewhere(self, limit: int) -> tuple[int, ...]:
        """Return the addresses that the store refused, longest ago first; they may be free again by now."""
        return tuple(islice(self._elsewhere, limit))

    def is_elsewhere(self, number: int) -> bool:
        """Tell whether the store refused this address and nobody is just asking again."""
        return number in self._elsewhere and number not in self._claiming

    def begin_claim(self, lease: Lease) -> None:
        number = int(lease.address)
        self._claiming[number] = lease
        self.picker.take(number)

    def settle(self, lease: Lease) -> None:
        """Enter a lease that the store has."""
        number = int(lease.address)
        self._claiming.pop(number, None)
        self._elsewhere.pop(number, None)
        self._leases[number] = lease
        self.picker.take(number)

    def abandon(self, lease: Lease) -> None:
        """Undo a claim that came to nothing."""
        number = int(lease.address)
        del self._claiming[number]
        if number not in self._elsewhere:
            self.picker.release(number)

    def refuse(self, lease: Lease) -> None:
        """Remember that somebody elsewhere holds the address of a claim."""
        number = int(lease.address)
        del self._claiming[number]
        first, last = self.pool.window
        if first <= number <= last:
            self._elsewhere[number] = None
            self._elsewhere.move_to_end(number)

    def change(self, old: Lease, new: Lease) -> bool:
        """Enter the new owner of a lease, unless it has changed or gone in the meantime."""
        number = int(old.address)
        if self._leases.get(number) is not old or number in self._releasing:
            return False
        self._leases[number] = new
        self._replay.discard(number)
        return True

    def begin_release(self, address: IPAddress) -> bool:
        """Mark a lease that is being released; False: there is none, or it is under way already."""
        if self.get(address) is None or int(address) in self._releasing:
            return False
        self._releasing.add(int(address))
        return True

    def keep(self, address: IPAddress) -> None:
        """Undo `begin_release`."""
        self._releasing.discard(int(address))

    def release(self, address: IPAddress) -> None:
        """Delete a lease that the store has deleted."""
        number = int(address)
        self._releasing.discard(number)
        self._replay.discard(number)
        del self._leases[number]
        self.picker.release(number)

    def exhausted(self) -> IpamError:
        """Return the error of a request that found no address."""
        pool, picker = self.pool, self.picker
        where = f"pool {pool.network}" if pool.range is None else f"range {pool.range} of pool {pool.network}"
        return IpamError(
            Kind.UNAVAILABLE,
            f"{where} has no free address: {picker.taken} of {picker.size} are leased",
            hint="remove an endpoint, or make the network with a larger subnet",
        )

    def not_leased(self, address: IPAddress) -> IpamError:
        """Return the error of a change to a lease that does not exist."""
        return IpamError(Kind.NOT_FOUND, f"address {address} of pool {self.pool.network} is not leased")


def unknown_pool(pool_id: str) -> IpamError:
    """Return the error of a request in a pool that does not exist."""
    return IpamError(Kind.NOT_FOUND, f"pool {pool_id!r} does not exist", hint="request it first")
