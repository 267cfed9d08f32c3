"""Several hosts on one machine: network, mount, PID and UTS namespaces for each, and a switch between them.

A YAML file says what there is (`file`), `build` makes it, `state` remembers it, so that later commands find it again.
Nothing is made in the root namespaces but a folder and processes: when the first process of a host ends, the kernel
takes away all that belongs to it.
"""
