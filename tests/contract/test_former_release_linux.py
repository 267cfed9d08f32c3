"""What a release before 0.9 has left in the real kernel: it is found, kept for as long as needed, and removed."""

import os

import pytest

pytest.register_assert_rewrite("kernel_suite", "linux_host", "tables_suite", "tunnel_suite")

from kernel_suite import ANTISPOOF_TABLE, BRIDGE, NETWORKS_TABLE, VETH, gone, whats  # noqa: E402
from linux_host import LinuxHost, LinuxSurroundings, restore, run  # noqa: E402
from tables_suite import FROM, GUARD, LED  # noqa: E402
from tunnel_suite import FILTER, TUNNEL, VTEP, VTEP6, VXLAN, WAY, WAYS  # noqa: E402

from netplug.drivers.steps import FormerRules, Gate, Table  # noqa: E402
from netplug.kernel.api import Outcome  # noqa: E402
from netplug.kernel.linux import LinuxKernel  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")

TABLES = """
table bridge netplug {
    set ports { type ifname; }
    set macs { type ifname . ether_addr; elements = { "nphtest" . 02:00:00:00:02:01 } }
    set v4 { type ifname . ipv4_addr; elements = { "nphtest" . 10.9.0.2 } }
    chain other4 { udp dport 68 drop; }
    chain prerouting {
        type filter hook prerouting priority -350;
        iifname != @ports return
        iifname . ether saddr != @macs drop
        meta protocol ip meta l4proto != tcp jump other4
        iifname . ip saddr @v4 accept
    }
    chain input { type filter hook input priority -350; iifname != "nph*" return; }
}
table ip netplug {
    map any {
        type inet_proto . inet_service : ipv4_addr . inet_service
        elements = { tcp . 8080 : 10.9.0.2 . 80 }
    }
    chain prerouting { type nat hook prerouting priority dstnat - 1; dnat ip to meta l4proto . th dport map @any; }
}
table ip netplug-vxlan {
    set vteps {
        type ipv4_addr . inet_service . ipv4_addr
        elements = { 10.5.0.2 . 4789 . 0.16.1.0, 10.5.0.3 . 8472 . 1.2.3.0 }
    }
}
table ip6 netplug-vxlan {
    set vteps { type ipv6_addr . inet_service . ipv4_addr; elements = { fd00:5::2 . 4789 . 0.16.1.0 } }
}
table ip netplug-ingress {
    chain prerouting { type filter hook prerouting priority -450; iifname "nph*" drop; }
}
"""
FAST_PATH = """
table netdev netplug-%(vxlan)s {
    map near { type ether_addr : iface_index; }
    set remote { type ether_addr; }
    chain tunnel { type filter hook ingress device %(vxlan)s priority 0; fwd to ether daddr map @near; }
    chain %(port)s { type filter hook ingress device %(port)s priority 0; ether daddr != @remote accept; }
}
"""
MEMBERS = {"10.5.0.2 . 4789 . 4097", f"10.5.0.3 . 8472 . {0x010203}", "fd00:5::2 . 4789 . 4097"}
LATER = (NETWORKS_TABLE, ANTISPOOF_TABLE, FILTER, LED, FROM, *GUARD, TUNNEL, VTEP, VTEP6)


class TestFormerRelease(LinuxHost):
    @pytest.mark.parametrize("gates", [False, True], ids=["no gate", "gates"])
    async def test_host_is_taken_over_and_nothing_is_left(
        self, kernel: LinuxKernel, around: LinuxSurroundings, *, gates: bool
    ) -> None:
        if gates:
            around.have_rules(4, "nft")
            around.have_rules(6, "legacy")
        before = around.snapshot()
        run("nft", "-f", "-", text=TABLES)
        for family, flavour in ((4, "nft"), (6, "legacy")):
            around.leave_former_rules(family, flavour)
            around.leave_former_filter(family, flavour)
        (former,) = (await kernel.owned()).of(FormerRules)
        assert set(former.members) == MEMBERS
        wanted = (*LATER, *([Gate(4, "nft"), Gate(6, "legacy")] if gates else []))
        outcomes = await kernel.ensure(wanted)
        assert outcomes[:3] == [Outcome.CREATED, Outcome.ADJUSTED, Outcome.CREATED]
        assert await whats(kernel, *wanted) == []
        owned, keys = (await kernel.owned()).steps(), {step.key for step in wanted}
        assert {step.key for step in owned} > keys
        await kernel.remove([step for step in reversed(owned) if step.key not in keys])
        assert {step.key for step in (await kernel.owned()).steps()} == keys
        assert await whats(kernel, *wanted) == []
        await gone(kernel, *wanted[::-1])
        assert around.snapshot() == before

    async def test_members_of_overlays_are_told_only_with_the_rest(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        run("nft", "-f", "-", text=TABLES)
        owned = await kernel.owned()
        assert owned.of(FormerRules) == frozenset()
        names = {f"{it.family} {it.name}" for it in owned.of(Table)}
        assert names >= {"bridge netplug", "ip netplug", "ip netplug-vxlan", "ip6 netplug-vxlan", "ip netplug-ingress"}
        await kernel.remove(owned.steps()[::-1])
        assert "netplug" not in around.snapshot()

    async def test_fast_path_whose_rules_are_in_its_base_chains_is_replaced(self, kernel: LinuxKernel) -> None:
        there = (BRIDGE, VXLAN, VETH)
        await kernel.ensure(there)
        run("nft", "-f", "-", text=FAST_PATH % {"vxlan": VXLAN.name, "port": VETH.name})
        outcomes = await kernel.ensure((*WAYS, *WAY))
        assert outcomes[0] == Outcome.ADJUSTED
        assert await whats(kernel, *WAYS, *WAY) == []
        assert "chain tunnel " not in run("nft", "list", "ruleset")
        await gone(kernel, *reversed((*there, *WAYS, *WAY)))

    async def test_a_set_that_others_use_is_told_and_stays(
        self, kernel: LinuxKernel, around: LinuxSurroundings
    ) -> None:
        around.leave_former_rules(4, "nft")
        restore(4, "nft", "filter", "-A INPUT -m set --match-set netplug-masq4 src -j ACCEPT")
        with pytest.raises(ExceptionGroup) as caught:
            await kernel.remove((FormerRules(),))
        (error,) = caught.value.exceptions
        assert str(error) == "set 'netplug-masq4' of ipset cannot be removed: rules of others look into it"
        assert run("ipset", "list", "-name").split() == ["netplug-masq4"]
        assert len((await kernel.owned()).of(FormerRules)) == 1
        restore(4, "nft", "filter", "-D INPUT -m set --match-set netplug-masq4 src -j ACCEPT")
        await gone(kernel, FormerRules())
        assert run("ipset", "list", "-name") == ""
