#!/bin/sh
# The first process of the test host: mounts what programs expect, and lets us in.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run/sshd /packages /state
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
modprobe -a kvm-amd virtio_pci virtio_blk virtio_net virtio_rng overlay tun
mount -o ro /dev/vda /packages
mount /dev/vdb /state
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
/usr/sbin/sshd
echo ready
while :; do sleep 1000; done
