#!/usr/bin/env bash
# Install the missing requirements of netplug's tests and demo.
#   setup.sh system   Debian packages: container engines and network tools (needs root if one is missing)
#   setup.sh bench    additional Debian packages for the benches
#   setup.sh deb      Debian packages that `make deb` needs: a C compiler, and what removes symbols
#   setup.sh roots    roots of Debian 12 and 13 with Docker, below .venv/roots, for `make deb-test`
#   setup.sh venv     .venv with netplug (editable) and the development tools; PYTHON chooses the interpreter
# make runs it in the project's top folder, wherever that is.
set -euo pipefail

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# install PACKAGE...: with apt, or fail with the list of missing packages.
install() {
    [ $# -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "missing packages: $* (Debian's names); install them with this system's package manager"
    [ "$(id -u)" = 0 ] || die "missing packages: $*; run as root: apt-get install --no-install-recommends $*"
    echo "== installing $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

# install_quietly PACKAGE...: as `install`, and start none of their services (Debian policy, invoke-rc.d).
install_quietly() {
    [ $# -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    install "$@"
}

# Every command that netplug or its tests call, with its package. netplug itself needs libnftables, which nft brings along. It
# calls iptables where others have rules of it; ipset is for tests only: the former release, and what others leave.
system() {
    local missing=() quiet=() pair
    for pair in dockerd:docker.io docker:docker.io docker-compose:docker-compose iptables:iptables ip6tables:iptables \
        ipset:ipset nft:nftables ip:iproute2 ss:iproute2 tc:iproute2 bridge:iproute2 busybox:busybox-static ps:procps sysctl:procps \
        conntrack:conntrack curl:curl nsenter:util-linux unshare:util-linux podman:podman crun:crun runc:runc etcd:etcd-server etcdctl:etcd-client \
        openssl:openssl dig:bind9-dnsutils cc:gcc strip:binutils lintian:lintian tshark:tshark chromium:chromium man:man-db mandoc:mandoc zsh:zsh fish:fish; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    # The reference CNI plugins, for mixed plugin lists and for comparison.
    [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
    # The headers and the library for cc. Users need no compiler: without one they get the Python CNI executable.
    [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
    # The test image contains only busybox, so it must be statically linked.
    if command -v busybox >/dev/null && ldd "$(command -v busybox)" 2>/dev/null | grep -q "=>"; then
        missing+=(busybox-static)
    fi
    # If the kernel has AppArmor, dockerd loads a profile with this command.
    if grep -qs Y /sys/module/apparmor/parameters/enabled && ! command -v apparmor_parser >/dev/null; then
        missing+=(apparmor)
    fi
    # Requirements of firewalld, which tests run.
    if command -v apt-get >/dev/null; then
        command -v dbus-daemon >/dev/null || missing+=(dbus-daemon)
        /usr/bin/python3 -c 'import dbus, gi' 2>/dev/null || missing+=(python3-dbus python3-gi gir1.2-glib-2.0)
    fi
    # Machines of tests have systemd as their process 1; nothing of it is started here.
    if command -v apt-get >/dev/null; then
        [ -x /lib/systemd/systemd ] || quiet+=(systemd)
        [ -e /lib/systemd/system/dbus.socket ] || quiet+=(dbus)
    fi
    install_quietly "${quiet[@]}"
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u | sed '/^$/d')
    install "${missing[@]}"
    unpack_firewalls
    unpack_managers
    unpack_prometheus
    unpack_registry
}

# What tests run in namespaces only, and what would start as a service of this machine if it were installed.
# unpack NAME PACKAGE...: into .venv/NAME; fails if it is there already, or cannot be had.
unpack() {
    local to=.venv/$1 deb part
    if [ -d "$to" ] || ! command -v apt-get >/dev/null; then return 1; fi
    shift
    echo "== unpacking $1 into $to"
    part=$(mktemp -d)
    mkdir -p "$to.new"
    if (cd "$part" && apt-get -qq -o APT::Sandbox::User=root download "$@"); then
        for deb in "$part"/*.deb; do dpkg-deb -x "$deb" "$to.new"; done
        merge_usr "$to.new"
        mv "$to.new" "$to"
    else
        echo "setup: $1 cannot be downloaded: its tests will be skipped" >&2
    fi
    rm -rf "$part" "$to.new"
    [ -d "$to" ]
}

unpack_prometheus() {
    { command -v prometheus && command -v promtool; } >/dev/null || unpack prometheus prometheus || true
}

# merge_usr FOLDER: /bin, /lib and /sbin are links into /usr on a merged system.
merge_usr() {
    local name
    for name in bin lib sbin; do
        if [ -d "$1/$name" ] && [ ! -L "$1/$name" ]; then
            mkdir -p "$1/usr/$name"
            cp -a "$1/$name/." "$1/usr/$name/"
            rm -r "${1:?}/$name"
        fi
    done
}

# Installed, they would take hold of this machine's links and of its resolv.conf.
unpack_managers() {
    unpack managers network-manager libnm0 libndp0 libnewt0.52 libteamdctl0 libmm-glib0 libbluetooth3 libjansson4 \
        libpsl5 systemd-resolved systemd libsystemd-shared || true
    unpack resolvconf resolvconf || true
}

# From it, tests upgrade the managed plugin.
unpack_registry() {
    command -v docker-registry >/dev/null || unpack docker-registry docker-registry || true
}

# Installed, they would filter on this machine.
unpack_firewalls() {
    command -v firewalld >/dev/null || unpack firewalld firewalld python3-firewall python3-nftables || true
    if unpack ufw ufw; then
        # As the package does when it is configured.
        cp .venv/ufw/usr/share/ufw/{*.init,ufw.conf,iptables/*.rules} .venv/ufw/etc/ufw/
        chmod 640 .venv/ufw/etc/ufw/*.{init,rules}
    fi
}

deb() {
    local missing=() pair
    command -v dpkg-deb >/dev/null || die "a Debian package is built on Debian: there is no dpkg-deb"
    for pair in cc:gcc strip:binutils git:git; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
    install "${missing[@]}"
}

# Machines with systemd and Docker start from them. What they need is in there, since they have no network.
roots() {
    local release to packages
    packages=ca-certificates,curl,dbus,docker.io,init-system-helpers,iproute2,iptables,libnftables1,nftables,procps,python3
    packages+=,systemd,systemd-sysv
    command -v debootstrap >/dev/null || install debootstrap
    for release in bookworm trixie; do
        to=.venv/roots/$release
        [ ! -d "$to" ] || continue
        echo "== Debian $release into $to"
        rm -rf "$to.new"
        mkdir -p .venv/roots
        # In Debian 13, docker.io has no command.
        debootstrap --variant=minbase --include="$packages$([ $release = bookworm ] || echo ,docker-cli)" \
            "$release" "$to.new" >/dev/null
        rm -rf "$to.new"/var/cache/apt/archives/*.deb
        mv "$to.new" "$to"
    done
}

# Name servers to compare with, and a load generator, for the benches. None of them is started as a service.
bench() {
    local missing=() pair
    for pair in dnsperf:dnsperf dnsmasq:dnsmasq-base knotd:knot; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [ -x /usr/lib/podman/aardvark-dns ] || missing+=(aardvark-dns)
    install_quietly "${missing[@]}"
}

# Print the first Python interpreter that is new enough.
interpreter() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "netplug needs Python 3.11 or later; python3 is $(python3 --version 2>&1); set another one with PYTHON=…"
}

venv() {
    local python
    python=$(interpreter)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
    echo "== .venv with $("$python" --version)"
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || "$python" -m venv --clear .venv
    # Dependency groups need pip 25.1. The second q silences setuptools' warning about editable installs.
    .venv/bin/python -m pip install --quiet --upgrade pip
    .venv/bin/python -m pip install -qq --editable . --group dev
}

case "${1:-}" in
system) system ;;
venv) venv ;;
bench) bench ;;
deb) deb ;;
roots) roots ;;
*) die "usage: setup.sh system|venv|bench|deb|roots" ;;
esac
