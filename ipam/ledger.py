"""What memory knows of one pool: its leases, and the addresses under way to or from the store.

All is plain code without a wait, so that each method is one moment for every task. An address counts as taken
from the moment when its claim begins until the moment when the store has dropped it; in between nobody else
can get it.
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
    """The leases of `pool`; addresses are picked from the fraction `start` of it on.

    Attributes:
        pool: as it is now, or will be when the store has saved it.
        closing: the store is deleting it.
        unreplayed: holds from before dockerd's restart that it has not taken again.
        promised: names of those who will come for an address again, by its number. It is kept for them when it is free.
    """

    def __init__(self, pool: Pool, start: float) -> None:
        self.pool = pool
        self.closing = False
        self.unreplayed = 0
        self.promised: dict[int, str] = {}
        self.picker = AddressAllocator(*pool.window, start)
        self._leases: dict[int, Lease] = {}
        self._claiming: dict[int, Lease] = {}
        self._releasing: set[int] = set()
        self._replay: set[int] = set()
        self._elsewhere: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, Lease] = OrderedDict()  # kept longest first
        self._kept_for: dict[str, int] = {}
        self._overtaken: dict[int, Lease] = {}  # kept addresses under way to somebody, or away

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
        return Usage(self.picker.size, self.picker.size - self.picker.taken, len(self._leases), len(self._kept))

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

    def check_free(self, address: IPAddress, called: Callable[[Owner], str] = str) -> None:
        """Check that nobody here has the address; `called`: the words for who has it.

        Raises:
            IpamError: unavailable: somebody has.
        """
        number = int(address)
        holder = self._leases.get(number) or self._claiming.get(number)
        if holder is not None:
            end = "stop or detach it, or " if holder.owner.kind is OwnerKind.ENDPOINT else ""
            raise IpamError(
                Kind.UNAVAILABLE,
                f"address {address} of pool {self.pool.network} is leased to {called(holder.owner)}",
                hint=f"{end}choose another address, or none",
            )

    def elsewhere(self, limit: int) -> tuple[int, ...]:
        """Return the addresses that the store refused, longest ago first; they may be free again by now."""
        return tuple(islice(self._elsewhere, limit))

    def is_elsewhere(self, number: int) -> bool:
        """Tell whether the store refused this address and nobody is just asking again."""
        return number in self._elsewhere and number not in self._claiming

    def begin_claim(self, lease: Lease) -> Lease | None:
        """Mark an address that is being claimed, and return what it was kept as, if it was."""
        number = int(lease.address)
        self._claiming[number] = lease
        self.picker.take(number)
        kept = self._kept.pop(number, None)
        if kept is not None:
            if self._kept_for.get(kept.owner.name) == number:
                del self._kept_for[kept.owner.name]
            self._overtaken[number] = kept
        return kept

    def settle(self, lease: Lease) -> None:
        """Enter a lease that the store has, or an address that it keeps."""
        number = int(lease.address)
        if lease.owner.kind is OwnerKind.KEPT:
            self._keep_for_name(lease)
            return
        self._claiming.pop(number, None)
        self._overtaken.pop(number, None)
        self._elsewhere.pop(number, None)
        self._leases[number] = lease
        self.picker.take(number)

    def abandon(self, lease: Lease) -> None:
        """Undo a claim that came to nothing."""
        number = int(lease.address)
        del self._claiming[number]
        if kept := self._overtaken.pop(number, None):
            self._kept[number] = kept
            self._kept.move_to_end(number, last=False)
            if kept.until != LASTING:
                self._kept_for.setdefault(kept.owner.name, number)
            return
        if number not in self._elsewhere:
            self._free(number)

    def refuse(self, lease: Lease) -> None:
        """Remember that somebody elsewhere holds the address of a claim."""
        number = int(lease.address)
        del self._claiming[number]
        self._overtaken.pop(number, None)
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
        self._end(int(address))
        self._free(int(address))

    def _end(self, number: int) -> None:
        self._releasing.discard(number)
        self._replay.discard(number)
        del self._leases[number]

    # Addresses that are kept for the names of their last owners: taken, but nobody's lease.

    def kept(self) -> tuple[Lease, ...]:
        """Return the kept addresses, kept longest first."""
        return tuple(self._kept.values())

    def keeps(self, kept: Lease) -> bool:
        return self._kept.get(int(kept.address)) is kept

    def kept_at(self, address: IPAddress) -> Lease | None:
        return self._kept.get(int(address)) if address.version == self.pool.network.version else None

    def longest_kept(self) -> Lease | None:
        """Return what is to be given away first when nothing is free; what is promised goes last."""
        passing = (kept for kept in self._kept.values() if kept.until != LASTING)
        return next(passing, None) or next(iter(self._kept.values()), None)

    def kept_for(self, owner: Owner, now: float) -> Lease | None:
        """Return the address that is kept for the name of `owner`, while it is."""
        number = self._kept_for.get(owner.name) if owner.kind in RETURNING else None
        kept = self._kept[number] if number is not None else None
        return kept if kept is not None and kept.until > now else None

    def keepsake(self, address: IPAddress, mac: str, now: float) -> Lease | None:
        """Return a lease as it is to be kept when it ends; None when it is not."""
        lease = self.get(address)
        if lease is None or lease.owner.kind not in RETURNING:
            return None
        if promised := self._promise(int(address)):
            his = self.pool.sticky_s and lease.owner.name == promised.owner.name
            return replace(promised, mac=mac or lease.mac) if his else promised
        if not self.pool.sticky_s or not lease.owner.name:
            return None
        owner = Owner(OwnerKind.KEPT, name=lease.owner.name)
        return Lease(self.pool.id, lease.address, owner, mac or lease.mac, now + self.pool.sticky_s)

    def release_to(self, kept: Lease) -> Lease | None:
        """Turn a lease into what the store keeps of it; return what was kept for the name before, now to be forgotten.

        A name has one address of a pool: the last that it had.
        """
        self._end(int(kept.address))
        number = self._kept_for.get(kept.owner.name) if kept.until != LASTING else None
        older = self._kept[number] if number is not None else None
        if older is not None:
            self.begin_claim(older)
        # What is promised may have changed while the store was asked.
        lasts = kept.until != LASTING or int(kept.address) in self.promised
        self._keep_for_name(kept if lasts else replace(kept, until=0.0))
        self._keep_promise(int(kept.address))
        return older

    def _keep_for_name(self, kept: Lease) -> None:
        number = int(kept.address)
        self._kept[number] = kept
        # Whoever was promised an address asks for it; any other will not do instead.
        if kept.until != LASTING:
            self._kept_for[kept.owner.name] = number
        self.picker.take(number)

    def promise(self, promised: dict[int, str], now: float) -> None:
        """Keep these addresses, and those of earlier promises no longer than any other of their names'."""
        self.promised = promised
        for kept in self.kept():
            if kept.until == LASTING and int(kept.address) not in promised:
                self._keep_for_name(replace(kept, until=now + self.pool.sticky_s))
        for number in promised:
            if number not in self._leases and number not in self._claiming:
                self._keep_promise(number)

    def _promise(self, number: int) -> Lease | None:
        """Return an address as it is to be kept for who was promised it; None when nobody was."""
        name = self.promised.get(number)
        if name is None:
            return None
        return Lease(self.pool.id, self.pool.address(number), Owner(OwnerKind.KEPT, name=name), until=LASTING)

    def _free(self, number: int) -> None:
        """Have an address free that is nobody's lease, or kept for who was promised it."""
        self.picker.release(number)
        self._keep_promise(number)

    def _keep_promise(self, number: int) -> None:
        """Keep an address that is nobody's lease for who was promised it, if anybody was."""
        kept, old = self._promise(number), self._kept.get(number)
        if kept is None or (old is not None and (old.owner, old.until) == (kept.owner, kept.until)):
            return
        if old is not None and self._kept_for.get(old.owner.name) == number:
            del self._kept_for[old.owner.name]
        self._keep_for_name(replace(kept, mac=old.mac) if old and old.owner == kept.owner else kept)

    def forget(self, kept: Lease) -> None:
        """Free a kept address that the store has dropped, marked by `begin_claim` before."""
        number = int(kept.address)
        del self._claiming[number]
        self._overtaken.pop(number, None)
        self._free(number)

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
