"""Several hosts on one machine: network, mount, PID and UTS namespaces for each, and a switch between them.

A YAML file describes a lab (`file`), `build` creates it, and `state` records it for later commands. In the root
namespaces there are only a folder and processes: when the first process of a host ends, the kernel removes everything
that belongs to the host.
"""
