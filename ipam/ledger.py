"""The state of one pool in memory: its leases, and the addresses whose claim or release the store has not confirmed.

No method awaits, so each is atomic for all tasks. An address is taken from the start of its claim until the store has
deleted its lease; meanwhile no other request can get it.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from .address_allocator import AddressAllocator
from .errors import IpamError, Kind
from .lease import LASTING, RETURNING, IPAddress, Lease, Owner, OwnerKind
from .pool import Pool, Usage


class Ledger:
    """The leases of `pool`. Allocation starts at the fraction `start` of its range.

    Attributes:
        pool: its current state, which the store may not have saved yet.
        closing: the store is deleting the pool.
        unreplayed: holds from before dockerd's restart that dockerd has not replayed.
        reserved: reservations, by address as a number: the name that will request it. It is retained while not leased.
    """

    def __init__(self, pool: Pool, start: float) -> None:
        self.pool = pool
        self.closing = False
        self.unreplayed = 0
        self.reserved: dict[int, str] = {}
        self.picker = AddressAllocator(*pool.window, start)
        self._leases: dict[int, Lease] = {}
        self._claiming: dict[int, Lease] = {}
        self._releasing: set[int] = set()
        self._replay: set[int] = set()
        self._held_elsewhere: OrderedDict[int, None] = OrderedDict()
        self._retained: OrderedDict[int, Lease] = OrderedDict()  # longest retained first
        self._retained_for: dict[str, int] = {}
        self._leaving: dict[int, Lease] = {}  # retained addresses that are being leased, or freed

    def begin_session(self) -> None:
        """Expect holds and leases to be requested once more (see `Allocator.begin_session`)."""
        self.unreplayed = self.pool.holds
        self._replay = set(self._leases) - self._releasing if self.pool.holds else set()

    def get(self, address: IPAddress) -> Lease | None:
        if address.version != self.pool.network.version:
            return None
        return self._leases.get(int(address))

    def leases(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def usage(self) -> Usage:
        return Usage(self.picker.size, self.picker.size - self.picker.taken, len(self._leases), len(self._retained))

    def confirm(self, address: IPAddress) -> Lease | None:
        """Return the lease that this request replays after dockerd's restart; each lease once."""
        number = int(address)
        if number not in self._replay or number in self._releasing:
            return None
        self._replay.remove(number)
        return self._leases[number]

    def forgotten(self) -> list[Lease]:
        """End the replay, and return the pending leases that dockerd did not replay."""
        missed, self._replay = self._replay, set()
        return [lease for number in missed if (lease := self._leases[number]).owner.kind is OwnerKind.PENDING]

    def check_free(self, address: IPAddress, called: Callable[[Owner], str] = str) -> None:
        """Check that the address is neither leased nor being claimed on this host.

        `called`: returns how the error names the owner.

        Raises:
            IpamError: unavailable.
        """
        number = int(address)
        holder = self._leases.get(number) or self._claiming.get(number)
        if holder is not None and not self._is_being_freed(number):
            end = "stop or detach it, or " if holder.owner.kind is OwnerKind.ENDPOINT else ""
            raise IpamError(
                Kind.UNAVAILABLE,
                f"address {address} of pool {self.pool.network} is leased to {called(holder.owner)}",
                hint=f"{end}choose another address, or none",
            )

    def _is_being_freed(self, number: int) -> bool:
        """Return whether a retained address is being deleted: who asks for just this one gets it after that."""
        return number in self._leaving and self._claiming.get(number) is self._leaving[number]

    def elsewhere(self, limit: int) -> tuple[int, ...]:
        """Return the addresses that other hosts have had, the oldest refusal first; they may be free by now."""
        return tuple(islice(self._held_elsewhere, limit))

    def is_elsewhere(self, number: int) -> bool:
        """Return whether the store refused this address, and no task is claiming it again."""
        return number in self._held_elsewhere and number not in self._claiming

    def begin_claim(self, lease: Lease) -> Lease | None:
        """Mark an address as being claimed. Return it as it was retained, or None."""
        number = int(lease.address)
        freed = self._leaving[number] if self._is_being_freed(number) else None
        self._claiming[number] = lease
        self.picker.take(number)
        retained = self._retained.pop(number, freed)
        if retained is not None:
            if self._retained_for.get(retained.owner.name) == number:
                del self._retained_for[retained.owner.name]
            self._leaving[number] = retained
        return retained

    def settle(self, lease: Lease) -> None:
        """Add a lease, or a retained address, that the store has."""
        number = int(lease.address)
        if lease.owner.kind is OwnerKind.KEPT:
            self._retain(lease)
            return
        self._claiming.pop(number, None)
        self._leaving.pop(number, None)
        self._held_elsewhere.pop(number, None)
        self._leases[number] = lease
        self.picker.take(number)

    def abandon(self, lease: Lease) -> None:
        """Undo a claim that failed, unless somebody else claims the address by now."""
        number = int(lease.address)
        if self._claiming.get(number) is not lease:
            return
        del self._claiming[number]
        if retained := self._leaving.pop(number, None):
            self._retained[number] = retained
            self._retained.move_to_end(number, last=False)
            if retained.until != LASTING:
                self._retained_for.setdefault(retained.owner.name, number)
            return
        if number not in self._held_elsewhere:
            self._free(number)

    def refuse(self, lease: Lease) -> None:
        """Record that another host has the address of this claim."""
        number = int(lease.address)
        del self._claiming[number]
        self._leaving.pop(number, None)
        first, last = self.pool.window
        if first <= number <= last:
            self._held_elsewhere[number] = None
            self._held_elsewhere.move_to_end(number)

    def change(self, old: Lease, new: Lease) -> bool:
        """Replace a lease, unless it has changed or ended meanwhile."""
        number = int(old.address)
        if self._leases.get(number) is not old or number in self._releasing:
            return False
        self._leases[number] = new
        self._replay.discard(number)
        return True

    def begin_release(self, address: IPAddress) -> bool:
        """Mark a lease as being released; return False if there is none, or another task is releasing it."""
        if self.get(address) is None or int(address) in self._releasing:
            return False
        self._releasing.add(int(address))
        return True

    def cancel_release(self, address: IPAddress) -> None:
        """Undo `begin_release`."""
        self._releasing.discard(int(address))

    def release(self, address: IPAddress) -> None:
        """Remove a lease that the store has deleted."""
        self._end(int(address))
        self._free(int(address))

    def _end(self, number: int) -> None:
        self._releasing.discard(number)
        self._replay.discard(number)
        del self._leases[number]

    # Retained addresses: taken, but not leased.

    def retained(self) -> tuple[Lease, ...]:
        """Return the retained addresses, longest retained first."""
        return tuple(self._retained.values())

    def retains(self, retained: Lease) -> bool:
        return self._retained.get(int(retained.address)) is retained

    def retained_at(self, address: IPAddress) -> Lease | None:
        return self._retained.get(int(address)) if address.version == self.pool.network.version else None

    def longest_retained(self) -> Lease | None:
        """Return the retained address to give away first when none is free; reserved ones come last."""
        unreserved = (retained for retained in self._retained.values() if retained.until != LASTING)
        return next(unreserved, None) or next(iter(self._retained.values()), None)

    def retained_for(self, owner: Owner, now: float) -> Lease | None:
        """Return the address retained for the name of `owner`, unless it has expired."""
        number = self._retained_for.get(owner.name) if owner.kind in RETURNING else None
        retained = self._retained[number] if number is not None else None
        return retained if retained is not None and retained.until > now else None

    def retention_of(self, address: IPAddress, mac: str, now: float) -> Lease | None:
        """Return the record that retains the address of a lease after its end; None if it is not retained."""
        lease = self.get(address)
        if lease is None or lease.owner.kind not in RETURNING:
            return None
        if reserved := self._reservation(int(address)):
            same = self.pool.sticky_s and lease.owner.name == reserved.owner.name
            return replace(reserved, mac=mac or lease.mac) if same else reserved
        if not self.pool.sticky_s or not lease.owner.name:
            return None
        owner = Owner(OwnerKind.KEPT, name=lease.owner.name)
        return Lease(self.pool.id, lease.address, owner, mac or lease.mac, now + self.pool.sticky_s)

    def release_to(self, retained: Lease) -> Lease | None:
        """Replace a lease by the retained address that the store has.

        A name has one retained address in a pool, the last one. Return the earlier one, which the caller frees.
        """
        self._end(int(retained.address))
        number = self._retained_for.get(retained.owner.name) if retained.until != LASTING else None
        older = self._retained[number] if number is not None else None
        if older is not None:
            self.begin_claim(older)
        # The reservations may have changed during the store's transaction.
        lasts = retained.until != LASTING or int(retained.address) in self.reserved
        self._retain(retained if lasts else replace(retained, until=0.0))
        self._retain_reserved(int(retained.address))
        return older

    def _retain(self, retained: Lease) -> None:
        number = int(retained.address)
        self._retained[number] = retained
        # A reserved address is requested explicitly, so it must not answer a request for any address.
        if retained.until != LASTING:
            self._retained_for[retained.owner.name] = number
        self.picker.take(number)

    def reserve(self, reserved: dict[int, str], now: float) -> None:
        """Replace the reservations. Addresses reserved before are retained only as long as those of a sticky pool."""
        self.reserved = reserved
        for retained in self.retained():
            if retained.until == LASTING and int(retained.address) not in reserved:
                self._retain(replace(retained, until=now + self.pool.sticky_s))
        for number in reserved:
            if number not in self._leases and number not in self._claiming:
                self._retain_reserved(number)

    def _reservation(self, number: int) -> Lease | None:
        """Return the record that retains a reserved address; None if it is not reserved."""
        name = self.reserved.get(number)
        if name is None:
            return None
        return Lease(self.pool.id, self.pool.address(number), Owner(OwnerKind.KEPT, name=name), until=LASTING)

    def _free(self, number: int) -> None:
        """Free an address without a lease, or retain it if it is reserved."""
        self.picker.release(number)
        self._retain_reserved(number)

    def _retain_reserved(self, number: int) -> None:
        """Retain an address without a lease if it is reserved."""
        retained, old = self._reservation(number), self._retained.get(number)
        if retained is None or (old is not None and (old.owner, old.until) == (retained.owner, retained.until)):
            return
        if old is not None and self._retained_for.get(old.owner.name) == number:
            del self._retained_for[old.owner.name]
        self._retain(replace(retained, mac=old.mac) if old and old.owner == retained.owner else retained)

    def forget(self, retained: Lease) -> None:
        """Free a retained address that the store has deleted, unless somebody claims it by now.

        `begin_claim` has marked it before.
        """
        number = int(retained.address)
        if self._claiming.get(number) is not retained:
            return
        del self._claiming[number]
        self._leaving.pop(number, None)
        self._free(number)

    def exhausted(self) -> IpamError:
        """Return the error for a request that finds no free address."""
        pool, picker = self.pool, self.picker
        where = f"pool {pool.network}" if pool.range is None else f"range {pool.range} of pool {pool.network}"
        return IpamError(
            Kind.UNAVAILABLE,
            f"{where} has no free address: {picker.taken} of {picker.size} are leased",
            hint="remove an endpoint, or create the network with a larger subnet",
        )

    def not_leased(self, address: IPAddress) -> IpamError:
        """Return the error for a change of a lease that does not exist."""
        return IpamError(Kind.NOT_FOUND, f"address {address} of pool {self.pool.network} is not leased")


def unknown_pool(pool_id: str) -> IpamError:
    """Return the error for a request to a pool that does not exist."""
    return IpamError(Kind.NOT_FOUND, f"pool {pool_id!r} does not exist", hint="request it first")
