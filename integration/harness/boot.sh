#!/bin/sh
# Boot systemd over a root folder, in namespaces of its own. `booted.py` calls it inside the holder of a host.
#   boot.sh prepare ROOT STATE NAME     once: lay a layer that can be written over ROOT, at STATE/machine/root
#   boot.sh power STATE NAME [MASKED…]  at each boot: enter a control group, unshare, and go on as `init`
#   boot.sh init STATE NAME [MASKED…]   as process 1 of the new namespaces: mount what a container has, become systemd
set -eu

prepare() {
    root=$1 state=$2 name=$3
    mkdir "$state/machine"
    mount -t tmpfs -o mode=755 machine "$state/machine"
    cd "$state/machine"
    mkdir upper work root disks cgroup
    mount -t overlay machine root -o "lowerdir=$root,upperdir=upper,workdir=work"
    # Engines lay layers of their own, which the kernel refuses on an overlay.
    for folder in docker containerd containers; do
        mkdir -p "disks/$folder" "root/var/lib/$folder"
        mount --bind "disks/$folder" "root/var/lib/$folder"
    done
    mount -t cgroup2 cgroup cgroup
    echo "$name" >root/etc/hostname
    tr -d - </proc/sys/kernel/random/uuid >root/etc/machine-id
    rm -rf root/var/log/journal # else the journal moves from /run to there, when it has been started
    if [ "$root" = / ]; then blank; fi
}

# A copy of this machine has its programs, and none of its services, mounts and settings.
blank() {
    rm -rf root/etc/systemd/system root/etc/netplug root/etc/docker root/var/lib/netplug
    mkdir root/etc/systemd/system
    rm -f root/etc/fstab root/.dockerenv
    if [ -L root/etc/resolv.conf ]; then # into /run, which is empty there
        rm root/etc/resolv.conf
        cat /etc/resolv.conf >root/etc/resolv.conf 2>/dev/null || true
    fi
}

power() {
    state=$1 name=$2
    mkdir -p "$state/machine/cgroup/$name"
    echo $$ >"$state/machine/cgroup/$name/cgroup.procs"
    exec unshare --fork --kill-child --pid --mount --uts --ipc --net --cgroup --propagation private \
        sh "$0" init "$@"
}

init() {
    state=$1 name=$2
    shift 2
    root=$state/machine/root
    cd "$root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup sys/fs/cgroup
    mount -t tmpfs -o mode=755 run run
    mount -t tmpfs -o mode=1777 tmp tmp
    devices
    mkdir -p "$root$state" # the test's files, at their own path
    mount --bind "$state" "$root$state"
    mkdir -p run/systemd/system run/old
    for unit; do ln -s /dev/null "run/systemd/system/$unit"; done
    hostname "$name"
    pivot_root . run/old
    cd /
    umount -l run/old
    rmdir run/old
    mount --make-rshared / # as systemd does on a machine: services with mounts of their own see later ones, such as /run/netns
    exec env -i container=npit PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
}

# Without /dev/kmsg: the kernel's log is the machine's.
devices() {
    mount -t tmpfs -o mode=755 dev dev
    mkdir dev/pts dev/shm dev/mqueue dev/net
    for node in null zero full random urandom tty fuse net/tun; do
        [ -e "/dev/$node" ] || continue
        touch "dev/$node"
        mount --bind "/dev/$node" "dev/$node"
    done
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
    mount -t tmpfs -o mode=1777 shm dev/shm
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    ln -s /proc/self/fd/0 dev/stdin
    ln -s /proc/self/fd/1 dev/stdout
    ln -s /proc/self/fd/2 dev/stderr
}

"$@"
