"""The function of the kernel that dropped a packet, by the list of the kernel's symbols."""

from netplug.kernel.probes.kernel_drops import functions_at

SYMBOLS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81b00010 t ip_error
ffffffff81b00090 d a_variable
ffffffff81b00100 T ip_forward.cold
ffffffffc0a00000 t vxlan_rcv\t[vxlan]
"""


def test_location_is_in_the_function_that_begins_before_it() -> None:
    named = {0xFFFFFFFF81B00095: "ip_error", 0xFFFFFFFF81B00120: "ip_forward", 0xFFFFFFFFC0A00001: "vxlan_rcv"}
    assert functions_at(named, SYMBOLS) == named
    assert functions_at([5], SYMBOLS) == {5: ""}


def test_no_function_is_named_where_the_kernel_hides_its_addresses() -> None:
    hidden = "".join(f"{'0' * 16}{line[16:]}\n" for line in SYMBOLS.splitlines())
    assert functions_at([0xFFFFFFFF81B00095], hidden) == {0xFFFFFFFF81B00095: ""}
