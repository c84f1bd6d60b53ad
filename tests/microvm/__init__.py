"""A computer with a working `/dev/kvm`, where this one has none: QEMU emulates its processor.

    PYTHONPATH=tests python -m microvm [smoke | machines | kernel | all | shell]

QEMU's emulation of AMD-V is enough for a Debian kernel to offer KVM, and for micro-VMs to boot in
there: slowly, but really. Its clock counts instructions and not seconds, so that a time limit means
the same there as on hardware, however slow the emulation is and whatever else runs here. Of QEMU
a copy is used, without a defect of it (`emulator`). From 9.0 on it knows a processor's instructions
for hashing, which makes snapshots three times as quick; Debian 12 has such a one in its backports.

Needed are the packages of `TOOLS`, on Debian or a relative of it, and for a user who is not root
`uidmap` and an entry in /etc/subuid. Nothing else is done as root, or outside of the cache.
"""
